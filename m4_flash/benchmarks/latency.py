"""One request at a time: time to the first token and memory by prompt length, and decode speed.

Every backend serves every prompt, alone on the device, so that a peak of memory is its own. Naive
attention needs memory that grows with the square of the prompt; where it no longer fits, a row
``fits`` of 0 says so, and longer prompts are left out.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

from common.bench import summary_line
from common.errors import OutOfMemoryError
from common.memory import MemoryPeak, PeakMemory
from common.metrics import mbu, mfu
from common.model_costs import decode_bytes, linear_flops_per_token, lm_head_flops_per_row
from common.peaks import measured_bandwidth, measured_flops
from common.request import SamplingParams
from common.results import Result, Row, make_result, row
from common.timing import Measurement, interleaved_calls
from common.workload import DEFAULT_VOCAB, Workload, fixed
from m1_basic.benchmarks.latency import one_of_each
from m4_flash.backends.select import BACKENDS
from m4_flash.benchmarks.engines import (
    Engine,
    announce,
    labels_of,
    m3_engine,
    m4_engine,
    model_of,
    model_shape,
    name_of,
    release,
    usable,
)

SLOW = 5.0
"""Seconds of a prompt from which on it is run once: a warm-up would not change it."""

MEMORY_NOTE = (
    "peak_memory is the most that was held during the request: on a GPU by the allocator, with "
    "weights, KV pool and graphs; on a CPU weights and KV pool plus what the request added. The KV "
    "pool holds one sequence of the longest prompt"
)

Make = Callable[[], Engine]


def run(args: Namespace, notes: list[str]) -> tuple[Result, str]:
    """Measure TTFT and memory per backend, then the decode step of one stream.

    Args:
        args: The benchmark's command line.
        notes: Sentences for the result file.

    Returns:
        The result and the summary line.
    """
    announce("latency", args, 120, 60)
    notes = [*notes, MEMORY_NOTE]
    lengths, decode_length, new_tokens = sizes(args)
    gpu = args.device.startswith("cuda")
    candidates = ("naive", "paged", "sdpa", "flash_attn", "triton") if gpu else ("sdpa",)
    names = usable(candidates, model_shape(args), notes)
    prompts = one_of_each(lengths, 1, DEFAULT_VOCAB)
    rows: list[Row] = []
    for make in prompt_engines(args, names, lengths[-1] + 1):
        rows += prompt_rows(make, prompts, args, notes)
    stream = fixed(1, decode_length, new_tokens)
    makes = decode_engines(args, names, decode_length + new_tokens)
    rows += decode_rows(makes, stream, args)
    config = {
        "model": args.model, "dtype": model_of(args)[1], "new_tokens": new_tokens,
        "max_num_seqs": 1,
    }  # fmt: skip
    result = make_result(
        "m4_flash", "latency", rows, device=args.device, workload=prompts, config=config,
        notes=notes,
    )  # fmt: skip
    return result, _summary(result, args, decode_length + new_tokens // 2)


def sizes(args: Namespace) -> tuple[tuple[int, ...], int, int]:
    """Prompt lengths for TTFT; prompt length and new tokens of the decoding stream."""
    if args.smoke:
        return (16, 32), 16, 5
    if args.device.startswith("cuda"):
        return (512, 2048, 4096, 8192, 32768), 512, 129
    return ((128, 512, 2048) if args.full else (128, 512)), 128, 17


def prompt_engines(args: Namespace, names: tuple[str, ...], longest: int) -> list[Make]:
    """M3, and M4 with each backend: each seats one sequence."""
    limits: dict[str, Any] = {"max_model_len": longest, "max_num_seqs": 1, "pool_tokens": longest}
    return [
        partial(m3_engine, args, **limits),
        *(partial(m4_engine, args, name, **limits) for name in names),
    ]


def decode_engines(args: Namespace, names: tuple[str, ...], longest: int) -> list[Make]:
    """M3; the fast backends, with graphs and without."""
    limits: dict[str, Any] = {"max_model_len": longest, "max_num_seqs": 1, "pool_tokens": longest}
    makes: list[Make] = [partial(m3_engine, args, **limits)]
    for name in names:
        if BACKENDS[name].capturable:
            makes.append(partial(m4_engine, args, name, **limits, graphs=True))
        if name in ("triton", "sdpa"):
            makes.append(partial(m4_engine, args, name, **limits, graphs=False))
    return makes


def prompt_rows(make: Make, prompts: Workload, args: Namespace, notes: list[str]) -> list[Row]:
    """TTFT and memory of one engine, alone on the device, for prompts in ascending length."""
    engine, rows = make(), list[Row]()
    for prompt in prompts.prompts[:2]:  # compiles: the shortest may be a graph, longer ones are not
        first_token(engine, prompt)
    for prompt in prompts.prompts:
        labels = {**labels_of(engine), "prompt_tokens": len(prompt)}
        try:
            seconds, memory = first_tokens(engine, prompt, args.repeat, args.device)
        except OutOfMemoryError as error:
            notes.append(f"{name_of(engine)}, {len(prompt):,} tokens: {error}")
            rows.append(row("fits", "count", 0.0, **labels))
            break
        stats, growth = engine.stats(), float(memory.growth)
        gpu = args.device.startswith("cuda")
        peak = memory.peak if gpu else stats.weight_bytes + stats.kv_bytes + growth
        rows += [
            row("ttft", "s", seconds, **labels),
            row("request_memory", "B", growth, **labels),
            row("peak_memory", "B", float(peak), **labels),
        ]
    del engine
    release(args.device)
    return rows


def first_tokens(
    engine: Engine, prompt: list[int], repeat: int, device: str
) -> tuple[list[float], MemoryPeak]:
    """Seconds to the first token, several times, and the memory of one run before them.

    Raises:
        OutOfMemoryError: The prompt does not fit the device.
    """
    release(device)
    with PeakMemory(device) as watch:
        first = first_token(engine, prompt)
    if first > SLOW:
        return [first], watch.result
    return [first_token(engine, prompt) for _ in range(repeat)], watch.result


def first_token(engine: Engine, prompt: list[int]) -> float:
    """Seconds from a request to its first token on the host."""
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    begin = time.perf_counter()
    (at,) = (time.perf_counter() for _ in engine.stream(prompt, params))
    return at - begin


def decode_rows(makes: list[Make], stream: Workload, args: Namespace) -> list[Row]:
    """Seconds per decode step of one stream, every engine in turn."""
    (prompt,), (params,) = stream.prompts, stream.sampling_params

    def step_time(engine: Engine) -> float:
        times = [time.perf_counter() for _ in engine.stream(prompt, params)]
        return (times[-1] - times[0]) / (len(times) - 1)

    engines = [make() for make in makes]
    calls = {name_of(engine): partial(step_time, engine) for engine in engines}
    assert len(calls) == len(engines), "every engine has labels of its own"
    taken, rows = interleaved_calls(calls, args.repeat, 1), list[Row]()
    for engine in engines:
        labels = {**labels_of(engine), "prompt_tokens": len(prompt)}
        seconds = Measurement(tuple(taken[name_of(engine)]))
        rows.append(row("step_time", "s", seconds, **labels))
        rows.append(row("decode_throughput", "tok/s", seconds.map(lambda s: 1 / s), **labels))
    del engine, engines, calls
    release(args.device)
    return rows


def _summary(result: Result, args: Namespace, context: int) -> str:
    """The fastest decode of this stage beside the device's measured ceilings."""
    found = result.select(metric="decode_throughput", engine="m4_flash")
    best = max(found, key=lambda item: item["median"])
    config, dtype = model_of(args)
    seconds = 1 / best["median"]
    flops = linear_flops_per_token(config) + lm_head_flops_per_row(config)
    return summary_line(
        f"m4_flash one stream, {best['backend']}, {'graphs' if best['graphs'] else 'eager'}",
        best["median"],
        mbu(decode_bytes(config, 1, context, dtype), seconds, measured_bandwidth(args.device)),
        mfu(flops, seconds, measured_flops(args.device, dtype)),
    )
