"""One request at a time: M1 beside ``transformers.generate``, in turn, in one process.

Every token is timed when it is on the host: in M1's stream, and in a streamer of transformers.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable

from common.bench import summary_line
from common.memory import PeakMemory
from common.metrics import mbu, mfu
from common.model_costs import decode_bytes, linear_flops_per_token, lm_head_flops_per_row
from common.peaks import measured_bandwidth, measured_flops
from common.request import SamplingParams
from common.results import Result, Row, make_result, row
from common.timing import Measurement, interleaved_calls, synchronizer
from common.workload import DEFAULT_VOCAB, Workload, WorkloadRequest, fixed
from m1_basic.benchmarks.baseline import TransformersGenerate
from m1_basic.engine import LLMEngine

TokenTimes = Callable[[list[int], int], list[float]]
"""From a prompt and a number of tokens to the time at which each token was there."""

MEMORY_NOTE = (
    "peak_memory is what the engine holds before the request (weights, and for m1_basic the KV "
    "cache it reserved for max_model_len tokens) plus request_memory, what the request adds"
)


def prompt_lengths(args: Namespace) -> tuple[int, ...]:
    """Prompt lengths of the size that was asked for."""
    if args.smoke:
        return (16,)
    return (128, 512, 2048) if args.full else (128, 512)


def run(args: Namespace, notes: list[str]) -> tuple[Result, str]:
    """Measure TTFT, TPOT and memory of the engines at several prompt lengths.

    Args:
        args: The benchmark's command line.
        notes: Sentences for the result file.

    Returns:
        The result and the summary line.
    """
    lengths = prompt_lengths(args)
    new_tokens = 5 if args.smoke else 33
    engine = LLMEngine(args.model, dtype=args.dtype, device=args.device)
    device = str(engine.device)
    place = (engine.folder, engine.model.dtype, device)
    baseline, eager = TransformersGenerate(*place), TransformersGenerate(*place, "eager")

    def ours(prompt: list[int], count: int) -> list[float]:
        params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        return [time.perf_counter() for _ in engine.stream(prompt, params)]

    engines: dict[str, TokenTimes] = {
        "m1_basic": ours,
        "transformers": baseline.token_times,
        "transformers-eager": eager.token_times,
    }
    weights, stats = baseline.weight_bytes(), engine.stats()
    held = dict.fromkeys(engines, weights) | {"m1_basic": stats.weight_bytes + stats.kv_bytes}
    workload = one_of_each(lengths, new_tokens, engine.model.config.vocab_size)
    rows: list[Row] = []
    for prompt in workload.prompts:
        rows += _latency_rows(engines, prompt, new_tokens, args.repeat, device)
        rows += _memory_rows(engines, held, prompt, new_tokens, device)
    config = {
        "model": args.model,
        "dtype": dtype_name(engine),
        "new_tokens": new_tokens,
        "max_model_len": engine.max_model_len,
        "reserved_kv_bytes": stats.kv_bytes,
    }
    result = make_result(
        "m1_basic", "latency", rows, device=device, workload=workload, config=config,
        notes=[*notes, MEMORY_NOTE],
    )  # fmt: skip
    return result, _summary(engine, result, lengths[0], new_tokens)


def dtype_name(engine: LLMEngine) -> str:
    """``bfloat16`` for ``torch.bfloat16``."""
    return str(engine.model.dtype).removeprefix("torch.")


def one_of_each(lengths: tuple[int, ...], new_tokens: int, vocab: int) -> Workload:
    """One request of each prompt length, of ids that a vocabulary of size ``vocab`` has."""
    requests: list[WorkloadRequest] = []
    for length in lengths:
        requests += fixed(1, length, new_tokens, vocab=min(vocab, DEFAULT_VOCAB)).requests
    return Workload(f"one prompt each of {', '.join(map(str, lengths))}", 0, tuple(requests))


def _latency_rows(
    engines: dict[str, TokenTimes], prompt: list[int], new_tokens: int, repeat: int, device: str
) -> list[Row]:
    """TTFT, TPOT and throughput of one prompt, both engines in turn."""
    sync = synchronizer(device)

    def call(times_of: TokenTimes) -> Callable[[], list[float]]:
        def run_once() -> list[float]:
            sync()
            begin = time.perf_counter()
            return [at - begin for at in times_of(prompt, new_tokens)]

        return run_once

    calls = {name: call(times_of) for name, times_of in engines.items()}
    rows = []
    for name, runs in interleaved_calls(calls, repeat, 1).items():
        labels: dict[str, str | int] = {"engine": name, "prompt_tokens": len(prompt)}
        tpot = Measurement(tuple((t[-1] - t[0]) / (new_tokens - 1) for t in runs))
        rows.append(row("ttft", "s", [t[0] for t in runs], **labels))
        rows.append(row("tpot", "s", tpot, **labels))
        rows.append(row("decode_throughput", "tok/s", tpot.map(lambda s: 1 / s), **labels))
        speed = [new_tokens / t[-1] for t in runs]
        rows.append(row("output_throughput", "tok/s", speed, **labels))
    return rows


def _memory_rows(
    engines: dict[str, TokenTimes],
    held: dict[str, int],
    prompt: list[int],
    new_tokens: int,
    device: str,
) -> list[Row]:
    """What a request adds, and the peak of each engine by itself (both are loaded all the while).

    Args:
        engines: How to generate.
        held: Bytes that each of them holds before the request.
        prompt: Prompt ids.
        new_tokens: Tokens to generate.
        device: Where to look.
    """
    rows = []
    for name, times_of in engines.items():
        with PeakMemory(device) as watch:
            times_of(prompt, new_tokens)
        labels: dict[str, str | int] = {"engine": name, "prompt_tokens": len(prompt)}
        growth = float(watch.result.growth)
        rows.append(row("request_memory", "B", growth, **labels))
        rows.append(row("peak_memory", "B", held[name] + growth, **labels))
    return rows


def _summary(engine: LLMEngine, result: Result, length: int, new_tokens: int) -> str:
    """Decode speed at the shortest prompt, beside the device's measured ceilings."""
    (speed,) = result.select(metric="decode_throughput", engine="m1_basic", prompt_tokens=length)
    config, device = engine.model.config, str(engine.device)
    dtype = dtype_name(engine)
    seconds = 1 / speed["median"]
    moved = decode_bytes(config, 1, length + new_tokens // 2, dtype)
    flops = linear_flops_per_token(config) + lm_head_flops_per_row(config)
    return summary_line(
        f"m1_basic latency, {length} prompt tokens",
        speed["median"],
        mbu(moved, seconds, measured_bandwidth(device)),
        mfu(flops, seconds, measured_flops(device, dtype)),
    )
