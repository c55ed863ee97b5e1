"""How fast the whole engine is, and what each of its optimisations is worth.

The engine with everything on serves one stream, batches of 16 and 64, and on a GPU nano-vllm's 256
requests of random length. Then one thing at a time is switched off, and it serves the same again;
the ratio of the two is that thing's own effect, which may well be below one.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from common.bench import serving_rows, summary_line
from common.metrics import mbu, mfu, serving_metrics
from common.model_costs import decode_bytes, linear_flops_per_token, lm_head_flops_per_row
from common.peaks import measured_bandwidth, measured_flops
from common.profiling import KernelProfile, profile_kernels
from common.request import SamplingParams
from common.results import Result, Row, make_result, row
from common.serve import run_batch
from common.workload import Workload, fixed, random_lengths
from m2_batching.step_engine import StepEngine
from m4_flash.backends.select import BACKENDS
from m4_flash.benchmarks.engines import announce, model_of, model_shape, release, usable
from m5_chunked.benchmarks.variants import Labels
from m5_chunked.engine import LLMEngine

ALL_ON = "all on"
GAP = 5e-6
"""Seconds without any kernel that count as the host's: between two kernels of a graph pass 1 µs."""
WINDOW = 32
"""Steps under the profiler."""

THROUGHPUT_NOTE = (
    "output_throughput is generated tokens over wall time, from the first request handed in to the "
    "last id returned: prompts, sampling and the host included"
)
EXPOSED_NOTE = (
    f"exposed_host is the time per step in which nothing ran on the GPU for {GAP * 1e6:.0f} µs or "
    "longer, while everybody decodes, under the profiler, which adds to it"
)
SPEEDUP_NOTE = "speedup is the time without the thing over the time with all on; below 1 it costs"


@dataclass(frozen=True)
class Sizes:
    """What is served.

    Attributes:
        prompt: Tokens of the single stream's prompt, also of the one whose TTFT is taken.
        steps: Decode steps of the single stream.
        batches: Smaller workloads.
        whole: The large one, of which all on alone serves more than one round; None for none.
        max_model_len: Longest sequence.
        max_num_seqs: Sequences at a time.
        pool_tokens: Places of the KV pool.
    """

    prompt: int
    steps: int
    batches: tuple[Workload, ...]
    whole: Workload | None
    max_model_len: int
    max_num_seqs: int
    pool_tokens: int


def sizes(args: Namespace) -> Sizes:
    """Workloads of the size that was asked for."""
    if args.smoke:
        return Sizes(16, 4, (fixed(2, 8, 4),), None, 64, 4, 256)
    if args.device.startswith("cuda"):
        batches = (fixed(16, 512, 128), fixed(64, 512, 128))
        return Sizes(512, 256, batches, random_lengths(), 2048, 256, 215_040)
    return Sizes(128, 24, (fixed(4, 64, 24), fixed(16, 64, 24)), None, 256, 16, 4096)


def variants(args: Namespace, notes: list[str]) -> dict[str, dict[str, Any]]:
    """Engine options by name; the first has everything on."""
    if not args.device.startswith("cuda"):
        return {ALL_ON: {}, "PyTorch's products": {"linear_backend": "torch"}}
    found: dict[str, dict[str, Any]] = {
        ALL_ON: {},
        "no overlap": {"overlap": False},
        "no early launches": {"programmatic_launch": False},
        "PyTorch's products": {"linear_backend": "torch"},
        "no graphs": {"enforce_eager": True},
    }
    if usable(("flash_attn",), model_shape(args), notes):
        found["FlashAttention-2"] = {"attention_backend": "flash_attn"}
    return found


def run(args: Namespace, notes: list[str]) -> tuple[Result, str]:
    """Serve everything with all on, then with one thing off at a time.

    Args:
        args: The benchmark's command line.
        notes: Sentences for the result file.

    Returns:
        The result and the summary line.
    """
    announce("speed", args, 260, 60)
    size = sizes(args)
    notes = [*notes, THROUGHPUT_NOTE, SPEEDUP_NOTE, *([EXPOSED_NOTE] if size.whole else [])]
    rows: list[Row] = []
    base: dict[str, float] = {}
    for name, options in variants(args, notes).items():
        found = variant_rows(name, options, size, args)
        rows += found
        seconds = times_of(found)
        print(f"  {name}: {seconds}", flush=True)
        base = base or seconds
        rows += [
            row("speedup", "ratio", taken / base[workload], variant=name, workload=workload)
            for workload, taken in seconds.items()
            if name != ALL_ON
        ]
    config: dict[str, Any] = {
        "model": args.model, "dtype": model_of(args)[1], "max_num_seqs": size.max_num_seqs,
        "max_model_len": size.max_model_len, "pool_tokens": size.pool_tokens,
        "max_num_batched_tokens": 16_384,
    }  # fmt: skip
    largest = size.whole or size.batches[-1]
    result = make_result(
        "m5_chunked", "speed", rows, device=args.device, workload=largest, config=config,
        notes=notes,
    )  # fmt: skip
    return result, _summary(result, args, size)


def variant_rows(name: str, options: Mapping[str, Any], size: Sizes, args: Namespace) -> list[Row]:
    """All that is measured of one engine, which lives no longer than this."""
    release(args.device)
    engine = make_engine(options, size, args)
    for _ in range(2):
        stream(engine, size, new_tokens=3)
        run_batch(engine, (size.whole or size.batches[-1]).subset(2))
    first, step = zip(*(stream(engine, size) for _ in range(args.repeat)), strict=True)
    labels = {"variant": name, "workload": stream_name(size)}
    rows = [
        row("ttft", "s", list(first), **labels),
        row("step_time", "s", list(step), **labels),
        row("decode_throughput", "tok/s", [1 / seconds for seconds in step], **labels),
    ]
    for workload in (*size.batches, *([size.whole] if size.whole else ())):
        once = workload is size.whole and name != ALL_ON  # it takes ten seconds and more
        rounds = 1 if once else args.repeat
        served = [serving_metrics(run_batch(engine, workload)) for _ in range(rounds)]
        rows += serving_rows(served, variant=name, workload=workload.name)
    if size.whole:  # gpu-only: m5_chunked/tests/test_benchmarks.py::test_exposed_host_time
        rows += exposed_rows(engine, size.whole, name, args.device)
    return rows


def make_engine(options: Mapping[str, Any], size: Sizes, args: Namespace) -> LLMEngine:
    """An engine over a stated pool, with nothing else said than what is switched."""
    gpu = args.device.startswith("cuda")
    backend = options.get("attention_backend", "triton" if gpu else "sdpa")
    block_size = BACKENDS[backend].default_block_size
    return LLMEngine(
        args.model,
        dtype=args.dtype,
        device=args.device,
        max_model_len=size.max_model_len,
        max_num_seqs=size.max_num_seqs,
        max_num_batched_tokens=16_384,
        num_blocks=-(-size.pool_tokens // block_size),
        **{"attention_backend": backend, **options},
    )


def stream_name(size: Sizes) -> str:
    """``1x512+256``: one stream, its prompt, its steps."""
    return f"1x{size.prompt}+{size.steps}"


def stream(engine: StepEngine, size: Sizes, new_tokens: int | None = None) -> tuple[float, float]:
    """Seconds to the first token of one prompt, and per step of the rest, sampled."""
    count = new_tokens or size.steps + 1
    params = SamplingParams(temperature=0.6, max_tokens=count, ignore_eos=True)
    prompt = fixed(1, size.prompt, count).prompts[0]
    begin = time.perf_counter()
    times = [time.perf_counter() for _ in engine.stream(prompt, params)]
    gaps = [after - before for before, after in pairwise(times)]
    return times[0] - begin, sum(gaps) / len(gaps)


def times_of(rows: list[Row]) -> dict[str, float]:
    """Seconds by workload: a step of the stream, the whole of a batch."""
    return {
        str(item["workload"]): item["median"]
        for item in rows
        if item["metric"] in ("step_time", "duration")
    }


def exposed_rows(  # gpu-only: m5_chunked/tests/test_benchmarks.py::test_exposed_host_time
    engine: LLMEngine, workload: Workload, name: str, device: str
) -> list[Row]:
    """Time in which the GPU waits for the host, while all requests decode."""
    pairs = zip(workload.prompts, workload.sampling_params, strict=True)
    ids = [engine.add_request(prompt, params) for prompt, params in pairs]
    while engine.scheduler.waiting:
        engine.step(only_finished=True)
    for _ in range(4):
        engine.step(only_finished=True)
    running, before = len(engine.scheduler.running), engine.stats().num_steps

    def decode() -> None:
        for _ in range(WINDOW):
            engine.step(only_finished=True)

    profile = profile_kernels(decode, device)
    steps = engine.stats().num_steps - before
    for request_id in ids:
        engine.abort(request_id)
    labels: Labels = {"variant": name, "workload": workload.name, "running": running}
    return [
        row("exposed_host", "s", idle_time(profile) / steps, **labels),
        row("busy", "share", profile.busy, **labels),
        row("kernels_per_step", "count", profile.num_kernels / steps, **labels),
    ]


def idle_time(profile: KernelProfile, least: float = GAP) -> float:
    """Seconds between kernels, of gaps of at least ``least``; what is before the first and after
    the last one is not counted.
    """  # noqa: D205
    idle, end = 0.0, None
    for begin, stop in profile.intervals:
        if end is not None and begin - end >= least:
            idle += begin - end
        end = stop if end is None else max(end, stop)
    return idle


def _summary(result: Result, args: Namespace, size: Sizes) -> str:
    """The largest workload with all on, and the step of one stream beside the bandwidth."""
    (step,) = result.select(metric="step_time", variant=ALL_ON)
    name = (size.whole or size.batches[-1]).name
    (speed,) = result.select(metric="output_throughput", variant=ALL_ON, workload=name)
    config, dtype = model_of(args)
    moved = decode_bytes(config, 1, size.prompt + size.steps // 2, dtype)
    flops = linear_flops_per_token(config) + lm_head_flops_per_row(config)
    return summary_line(
        f"m5_chunked, {name}: {speed['median']:,.0f} tok/s; one stream",
        1 / step["median"],
        mbu(moved, step["median"], measured_bandwidth(args.device)),
        mfu(flops, step["median"], measured_flops(args.device, dtype)),
    )
