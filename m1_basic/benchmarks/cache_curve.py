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
from m1_basic.benchmarks.latency import dtype_name, one_of_each
from m1_basic.engine import LLMEngine


def context_lengths(args: Namespace) -> tuple[int, ...]:
    """Context lengths of the size that was asked for."""
    if args.smoke:
        return (8, 16)
    short = (16, 32, 64, 128, 256)
    return (*short, 512, 1024, 2048) if args.full else short


def run(args: Namespace, notes: list[str]) -> tuple[Result, str]:
    """Measure the step time at several context lengths, cache on and off, in turn.

    Args:
        args: The benchmark's command line.
        notes: Sentences for the result file.

    Returns:
        The result and the summary line.
    """
    lengths = context_lengths(args)
    engines = {
        "on": LLMEngine(args.model, dtype=args.dtype, device=args.device),
        "off": LLMEngine(args.model, dtype=args.dtype, device=args.device, use_cache=False),
    }
    device = str(engines["on"].device)
    workload = one_of_each(lengths, 4, engines["on"].model.config.vocab_size)
    rows: list[Row] = []
    for prompt in workload.prompts:
        calls = {name: _step_of(engine, prompt) for name, engine in engines.items()}
        for name, seconds in interleaved_calls(calls, args.repeat, 1).items():
            rows.append(row("step_time", "s", seconds, cache=name, context=len(prompt)))
    engine, bandwidth = engines["on"], measured_bandwidth(device)
    floors = {length: _bytes(engine, length) / bandwidth.value for length in lengths}
    rows += [row("step_floor", "s", floor, context=length) for length, floor in floors.items()]
    config = {
        "model": args.model, "dtype": dtype_name(engine), "copy_bandwidth": bandwidth.value
    }  # fmt: skip
    result = make_result(
        "m1_basic", "cache_curve", rows, device=device, workload=workload, config=config,
        notes=notes,
    )  # fmt: skip
    [longest] = result.select(metric="step_time", cache="on", context=lengths[-1])
    seconds = longest["median"]
    used = mbu(_bytes(engine, lengths[-1]), seconds, bandwidth)
    name = f"m1_basic with cache, context {lengths[-1]}"
    return result, summary_line(name, 1 / seconds, used, None)


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


def _bytes(engine: LLMEngine, context: int) -> int:
    """What a step with the cache must read: all weights, and K and V of the context."""
    return decode_bytes(engine.model.config, 1, context, dtype_name(engine))
