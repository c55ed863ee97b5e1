"""``--profile`` on a CPU: what is recorded, how it is grouped, and that the work is unchanged."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path

import pytest

from common.cli import cli
from common.config import STAGES
from common.metrics import Peak
from common.op_groups import ATTENTION_SCOPE
from common.step_budget import HOST, PhaseBudget, Span
from common.step_profiler import MAX_STEPS, ORIGIN, StepProfiler, budget_text, to_spans
from common.testing.conformance import GREEDY, build, ids_of
from common.testing.fixtures import TinyModel

WITH_LOOP = [stage for stage in STAGES if stage != "m0_init"]


class Device(enum.Enum):
    CPU = 0
    CUDA = 1


@dataclass
class Range:
    start: float
    end: float


@dataclass
class Event:
    name: str
    time_range: Range
    device_type: Device = Device.CPU


def event(name: str, begin: float, end: float, device: Device = Device.CPU) -> Event:
    """An event with times in seconds."""
    return Event(name, Range(begin * 1e6, end * 1e6), device)


class TestSpans:
    def test_operators_inside_attention_are_attention(self) -> None:
        events = [
            event("aten::mm", 6.0, 7.0),
            event(ATTENTION_SCOPE, 2.0, 5.0),
            event("aten::bmm", 3.0, 4.0),
            event(ORIGIN, 0.0, 1.0),
        ]
        assert to_spans(events, 101.0, gpu=False) == [
            Span(102.0, 105.0, HOST),
            Span(103.0, 104.0, "attention"),
            Span(106.0, 107.0, "matrix products"),
        ]

    def test_on_a_gpu_kernels_alone_count(self) -> None:
        cuda = Device.CUDA
        events = [
            event("cudaLaunchKernel", 1.0, 9.0),
            event("void at::native::fill", 0.0, 1.0, cuda),
            event(ATTENTION_SCOPE, 2.0, 5.0, cuda),
            event("gemm", 3.0, 4.0, cuda),
            event("Memcpy DtoH", 6.0, 7.0, cuda),
        ]
        assert to_spans(events, 1.0, gpu=True) == [
            Span(3.0, 4.0, "attention"),
            Span(6.0, 7.0, "copies"),
        ]

    def test_nothing_recorded(self) -> None:
        assert to_spans([], 1.0, gpu=False) == []


@pytest.mark.parametrize("stage", WITH_LOOP)
def test_every_stage_profiles_its_steps_and_answers_the_same(stage: str, tiny: TinyModel) -> None:
    engine = build(stage, tiny)
    prompts = list(tiny.prompts[:2])
    with StepProfiler(engine) as profiler:
        outputs = engine.generate(prompts, GREEDY)
    assert ids_of(outputs) == ids_of(build(stage, tiny).generate(prompts, GREEDY))
    assert engine.recorder.watch is None
    steps = profiler.steps
    assert len(steps) == min(engine.stats().num_steps, MAX_STEPS)
    assert sum(step.num_tokens for step in steps if step.prefill) >= len(prompts[0])
    lines = profiler.report().splitlines()
    assert lines[0].startswith("[step budget · ")
    cells = {line[:26].strip(): line[26:].split() for line in lines[1:-1]}
    shares = {name: [float(x) for x in row if x != "%"] for name, row in list(cells.items())[3:]}
    phases = len(cells[""])
    for column in range(phases):
        assert sum(row[column] for row in shares.values()) == pytest.approx(100.0)
    assert shares["attention"][-1] > 0
    assert shares["matrix products"][-1] > 0
    assert lines[-1].startswith(f"{cells[''][0]} MBU ")
    assert "MFU" in lines[-1]
    assert lines[-1].endswith("GFLOP/s, measured here")


def test_the_profiler_stops_after_its_steps(tiny: TinyModel) -> None:
    engine = build("m2_batching", tiny)
    with StepProfiler(engine, max_steps=3) as profiler:
        engine.generate(tiny.prompts[0], GREEDY)
        assert engine.recorder.watch is None
        assert not engine.model._forward_pre_hooks
    assert len(profiler.steps) == 3 < engine.stats().num_steps


def test_no_step_no_budget(tiny: TinyModel) -> None:
    with StepProfiler(build("m1_basic", tiny)) as profiler:
        pass
    assert profiler.report() == "[profile: no step ran]"


def test_the_table() -> None:
    budget = PhaseBudget("decode", 2, 0.5, {"attention": 0.25, HOST: 0.25}, 10**9, 10**9)
    for group in ("matrix products", "small operations", "sampling", "copies"):
        budget.parts[group] = 0.0
    peaks = Peak(4e9, "measured"), Peak(8e9, "measured")
    lines = budget_text("here", [budget], *peaks, gpu=True).splitlines()
    assert lines[0] == "[here]"
    assert [line.split() for line in lines[1:5]] == [
        ["decode"], ["steps", "2"], ["ms", "per", "step", "250.00"], ["attention", "50.0", "%"],
    ]  # fmt: skip
    assert lines[-2] == f"{'idle, waits for the host':<26}{'50.0 %':>12}"
    assert lines[-1] == "decode MBU 50.0%, MFU 25.0% · of 4 GB/s and 8 GFLOP/s, measured here"


def test_command_line(tiny: TinyModel, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = ["hello", "--model", str(tiny.folder), "--device", "cpu", "--max-tokens", "5"]
    argv += ["--temperature", "0", "--ignore-eos"]
    assert cli("m1_basic", argv) == 0
    plain, _ = capsys.readouterr()
    assert cli("m1_basic", [*argv, "--profile"]) == 0
    out, err = capsys.readouterr()
    assert out == plain
    assert "[step budget · " in err
    assert err.splitlines()[-1].startswith("prefill MBU ")
