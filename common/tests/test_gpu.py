"""What the measuring tools do on a real GPU. Every test skips itself elsewhere."""

import importlib
import time

import pytest

from common.environment import device_info, versions
from common.memory import PeakMemory
from common.peaks import measured_bandwidth, measured_flops
from common.profiling import profile_kernels
from common.timing import device_timer, interleaved_calls, measure, synchronizer

pytestmark = pytest.mark.gpu

MIB = 1024**2


def test_device_info() -> None:
    info = device_info("cuda")
    assert info.kind == "cuda"
    assert info.cores > 1
    assert info.memory_bytes > 2**30
    assert info.slug.startswith("nvidia")
    found = versions("cuda")
    assert found["cuda"][0].isdigit()
    assert found["driver"][0].isdigit()


def test_peak_memory() -> None:
    import torch

    with PeakMemory("cuda") as peak:
        block = torch.empty(256 * MIB, dtype=torch.uint8, device="cuda")
        del block
    assert 256 * MIB <= peak.result.growth < 300 * MIB
    assert peak.result.resident_peak >= peak.result.peak
    assert peak.result.source == "allocator"


def test_event_timer() -> None:
    import torch

    source = torch.ones(512 * MIB, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    for flush_bytes in (0, 64 * MIB):
        timer = device_timer("cuda", flush_bytes)
        fns = {"copy": timer(lambda: target.copy_(source)), "none": timer(lambda: None)}
        times = interleaved_calls(fns, repeat=5, warmup=2)
        assert min(times["copy"]) > 5 * max(min(times["none"]), 1e-6)
        # The wall clock, which adds a launch, cannot see less than the events.
        wall = measure(lambda: target.copy_(source), sync=synchronizer("cuda")).median
        assert sorted(times["copy"])[2] < 1.5 * wall


def test_measured_peaks() -> None:
    # Any data-centre or gaming card of the last ten years lies inside these.
    assert 1e11 < measured_bandwidth("cuda").value < 2e13
    assert 1e12 < measured_flops("cuda", "bfloat16").value < 1e16


def test_profile_kernels() -> None:
    import torch

    a = torch.randn(4096, 4096, device="cuda")

    def work() -> None:
        for _ in range(8):
            a @ a
        torch.cuda.synchronize()
        time.sleep(0.05)

    work()
    profile = profile_kernels(work)
    assert profile.num_kernels >= 8
    assert 0.0 < profile.busy < 0.9
    assert profile.wall > 0.05


def test_step_profiler() -> None:
    """Kernels are grouped and a GPU's idle time is the host's; a tiny model mostly waits."""
    from common.random_model import RANDOM_MODEL
    from common.request import SamplingParams
    from common.step_profiler import StepProfiler

    module = importlib.import_module("m4_flash.engine")
    engine = module.LLMEngine(RANDOM_MODEL, max_num_seqs=4, max_model_len=512)
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    engine.generate([[1, 2, 3]], params)  # compiles
    with StepProfiler(engine) as profiler:
        engine.generate([[4, 5, 6], [7, 8, 9]], params)
    text = profiler.report()
    rows = {line[:26].strip(): line[26:] for line in text.splitlines() if "MBU" not in line}
    decode = {name: float(cells.split()[-2]) for name, cells in rows.items() if "%" in cells}
    assert decode["attention"] > 0
    assert decode["matrix products"] > 0
    assert 0 < decode["idle, waits for the host"] < 100
