"""What the KV cache is worth: time of one decode step against context length, with and without.

With the cache a step computes one token; without it, the whole sequence. The floor is the least
time in which the device can read what a cached step must read: all weights, and the context's KV.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable

from common.bench import summary_line
from common.metrics import mbu
from common.model_costs import decode_bytes
from common.peaks import measured_bandwidth
from common.request import SamplingParams
from common.results import Result, Row, make_result, row
from common.timing import interleaved_calls
from common.workload import Workload
from m1_basic.benchmarks.latency import one_of_each
from m1_basic.engine import LLMEngine


def run(args: Namespace, notes: list[str]) -> tuple[Result, str]:
    """Measure the step time at several context lengths, cache on and off, in turn.

    Args:
        args: The benchmark's command line.
        notes: Sentences for the result file.

    Returns:
        The result and the summary line.
    """
    lengths: tuple[int, ...] = (16, 32, 64, 128, 256)
    if args.smoke:
        lengths = (8, 16)
    elif args.full:
        lengths += (512, 1024, 2048)
    engines = {
        "on": LLMEngine(args.model, dtype=args.dtype, device=args.device),
        "off": LLMEngine(args.model, dtype=args.dtype, device=args.device, use_cache=False),
    }
    device = str(engines["on"].device)
    workload = one_of_each(lengths, 4)
    rows: list[Row] = []
    for prompt in workload.prompts:
        calls = {name: _step_of(engine, prompt) for name, engine in engines.items()}
        for name, seconds in interleaved_calls(calls, args.repeat, 1).items():
            rows.append(row("step_time", "s", seconds, cache=name, context=len(prompt)))
    floors, bandwidth = _floor_rows(engines["on"], workload, device)
    config = {"model": args.model, "dtype": str(engines["on"].model.dtype)}
    result = make_result(
        "m1_basic", "cache_curve", rows + floors, device=device, workload=workload,
        config=config | {"copy_bandwidth": bandwidth}, notes=notes,
    )  # fmt: skip
    return result, _summary(engines["on"], result, lengths[-1], device)


def _step_of(engine: LLMEngine, prompt: list[int]) -> Callable[[], float]:
    """A call that returns the mean of three decode steps after ``prompt``, in seconds."""

    def measure() -> float:
        params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
        stream = engine.stream(prompt, params)
        next(stream)  # the prefill
        begin = time.perf_counter()
        steps = sum(1 for _ in stream)  # each yields once its id is on the host
        return (time.perf_counter() - begin) / steps

    return measure


def _floor_rows(engine: LLMEngine, workload: Workload, device: str) -> tuple[list[Row], float]:
    """Bytes of a cached step over the measured copy bandwidth, per context."""
    peak = measured_bandwidth(device)
    dtype = str(engine.model.dtype).removeprefix("torch.")
    rows = []
    for prompt in workload.prompts:
        moved = decode_bytes(engine.model.config, 1, len(prompt), dtype)
        rows.append(row("step_floor", "s", moved / peak.value, context=len(prompt)))
    return rows, peak.value


def _summary(engine: LLMEngine, result: Result, context: int, device: str) -> str:
    (on,) = result.select(metric="step_time", cache="on", context=context)
    dtype = str(engine.model.dtype).removeprefix("torch.")
    moved = decode_bytes(engine.model.config, 1, context, dtype)
    used = mbu(moved, on["median"], measured_bandwidth(device))
    return summary_line(f"m1_basic with cache, context {context}", 1 / on["median"], used, None)
