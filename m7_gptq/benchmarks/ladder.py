"""The ladder: one workload, and every stage from M1 to M7 serves it.

All requests arrive at once and begin with the same system prompt; texts and answers have random
lengths. Each stage runs at its best settings, alone on the device, one after the other in one
process. Three things are held against M1: output tokens per second, the median time to the first
token under this load, and the time per token of one stream. Beside them stand the bytes that it
took: weights, reserved K and V, and the peak of everything else.
"""

from __future__ import annotations

import math
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from common.memory import PeakMemory
from common.metrics import serving_metrics
from common.outputs import RequestOutput
from common.profiling import profile_kernels
from common.results import Result, Row, make_result, row
from common.serve import run_batch
from common.workload import Workload
from m4_flash.benchmarks.engines import announce, model_of, release
from m6_prefix.benchmarks.engines import BUDGET, forget
from m6_prefix.engine import LLMEngine as M6Engine
from m7_gptq.benchmarks.ladder_gains import by_rung, derived_rows, summary
from m7_gptq.benchmarks.ladder_rungs import (
    Engine,
    Labels,
    Rung,
    Sizes,
    rungs,
    sizes,
)
from m7_gptq.benchmarks.rounded import spec_of
from m7_gptq.engine import LLMEngine as M7Engine

T = TypeVar("T")

SAMPLING = 0.02
"""Seconds between two looks at a process's memory while it is timed."""
NOT_PROFILED = ("m1_basic", "m2_batching", "m3_paged")
"""Their steps are hundreds of launches each: a round of them is long under the profiler."""

GAIN_NOTE = (
    "a gain is M1's median over the rung's, of throughput the other way round; geometric_mean is "
    "that of the three. Rungs run one after the other, so ratios are of medians"
)
SUBSET_NOTE = (
    "M1 serves the first {few} of {all} requests. One after the other, a subset has the same "
    "tok/s, but its median time to the first token is a lower bound of the whole's, and so are "
    "ttft_gain and geometric_mean"
)
ROUNDS_NOTE = (
    "n is the number of rounds: one where a round takes longer than {slow:g} s, unless --full. "
    "Every round of M6 and M7 begins with an empty prefix cache"
)
KV_NOTE = (
    "kv_bytes: M1 reserves {longest} places, M2 as many for each of {seats} seats. Later stages "
    "have a pool of as many blocks as are owned at most when nobody waits for one, counted by a "
    "run of their scheduler without a model"
)
MEMORY_NOTE = (
    "activation_peak is everything else. On a GPU: the allocator's peak less weights and reserved "
    "KV; what CUDA graphs keep to themselves is in reserved_peak only. On a CPU: what the process "
    "grew by during a round, looked at every {sampling:g} ms"
)
BITS_NOTE = (
    "4-bit: linear layers rounded to nearest in groups of {group}. On a CPU no kernel reads them: "
    "every product unpacks its weights first, which saves memory and costs time"
)
BUSY_NOTE = "busy is kernel time over wall time of one more round under the profiler, from M4 on"


def run(args: Namespace, notes: list[str]) -> tuple[Result, str]:
    """Build each rung, let it serve, and hold it against M1.

    Args:
        args: The benchmark's command line.
        notes: Sentences for the result file.

    Returns:
        The result and the summary line.

    Raises:
        FoloError: The model cannot be loaded.
    """
    announce("ladder", args, 150, 240)
    size, rows = sizes(args), list[Row]()
    for rung in rungs(args, size):
        found = rung_rows(rung, size, args)
        print(f"  {rung.stage} {rung.weights}: {_in_brief(found)}", flush=True)
        rows += found
    model, dtype = model_of(args)
    group = spec_of(model).group_size
    config = {
        "model": args.model, "dtype": dtype, "group_size": group,
        "max_model_len": size.max_model_len, "max_num_seqs": size.seats,
        "max_num_batched_tokens": BUDGET, "m1_requests": size.few, "stream": size.stream.name,
    }  # fmt: skip
    result = make_result(
        "m7_gptq", "ladder", [*rows, *derived_rows(rows)], device=args.device,
        workload=size.workload, config=config, notes=[*notes, *notes_of(args, size, group)],
    )  # fmt: skip
    return result, summary(result)


def rung_rows(rung: Rung, size: Sizes, args: Namespace) -> list[Row]:
    """All that is measured of one engine, which lives no longer than this."""
    release(args.device)
    engine, workload = rung.make(), size.served_by(rung.stage)
    run_batch(engine, size.warm_up)
    time_per_token(engine, size.short_stream)
    slow = math.inf if args.full else size.slow
    served = rounds(lambda: serve(engine, workload, args.device), args.repeat, slow)
    tokens = rounds(lambda: time_per_token(engine, size.stream), args.repeat, slow)
    labels: Labels = {
        "engine": rung.stage, "weights": rung.weights, "requests": len(workload.requests)
    }  # fmt: skip
    rows = [
        *speed_rows(served, labels),
        row("time_per_token", "s", tokens, **labels),
        *memory_rows(engine, served, labels),
    ]
    preemptions = getattr(getattr(engine, "scheduler", None), "num_preemptions", None)
    if preemptions is not None:  # counted from M3 on
        rows.append(row("preemptions", "count", float(preemptions), **labels))
    gpu = args.device.startswith("cuda")
    if gpu:  # gpu-only: m7_gptq/tests/test_ladder.py::test_on_a_gpu
        rows.append(row("reserved_peak", "B", float(max(s.reserved for s in served)), **labels))
        if rung.stage not in NOT_PROFILED:
            begin_cold(engine)
            busy = profile_kernels(lambda: run_batch(engine, workload), args.device).busy
            rows.append(row("busy", "share", busy, **labels))
    return rows


@dataclass(frozen=True)
class Served:
    """One round.

    Attributes:
        outputs: What the requests got.
        growth: Bytes by which memory grew at most.
        peak: The most that a GPU's allocator gave out; 0 on a CPU.
        reserved: The most that it held; 0 on a CPU.
    """

    outputs: list[RequestOutput]
    growth: int
    peak: int = 0
    reserved: int = 0


def serve(engine: Engine, workload: Workload, device: str) -> Served:
    """All requests at once, from an empty prefix cache."""
    begin_cold(engine)
    gpu = device.startswith("cuda")
    if not gpu:
        release(device)  # what the round before has freed would hide the growth of this one
    with PeakMemory(device, SAMPLING) as watch:
        outputs = run_batch(engine, workload)
    found = watch.result
    if gpu:  # gpu-only: m7_gptq/tests/test_ladder.py::test_on_a_gpu
        return Served(outputs, found.growth, found.peak, found.resident_peak)
    return Served(outputs, found.growth)


def begin_cold(engine: Engine) -> None:
    """Empty the prefix cache of an idle engine, where there is one."""
    if isinstance(engine, (M6Engine, M7Engine)):
        forget(engine)


def time_per_token(engine: Engine, stream: Workload) -> float:
    """Seconds per token of one stream, after its first."""
    begin_cold(engine)
    (prompt,), (params,) = stream.prompts, stream.sampling_params
    times = [time.perf_counter() for _ in engine.stream(prompt, params)]
    return (times[-1] - times[0]) / (len(times) - 1)


def rounds(call: Callable[[], T], repeat: int, slow: float) -> list[T]:
    """``repeat`` calls, or a single one if that takes longer than ``slow`` seconds."""
    begin = time.perf_counter()
    found = [call()]
    more = 0 if time.perf_counter() - begin > slow else repeat - 1
    return [*found, *(call() for _ in range(more))]


def speed_rows(served: Sequence[Served], labels: Labels) -> list[Row]:
    """Throughput, median time to the first token, seconds of the whole, and prefix hits."""
    metrics = [serving_metrics(item.outputs) for item in served]
    waits = [item.ttft.p50 for item in metrics if item.ttft is not None]
    rows = [
        row("output_throughput", "tok/s", [item.output_throughput for item in metrics], **labels),
        row("ttft_p50", "s", waits, **labels),
        row("duration", "s", [item.duration for item in metrics], **labels),
    ]
    hits = [float(item.cached_tokens) for item in metrics]
    return [*rows, row("cached_tokens", "tokens", hits, **labels)] if any(hits) else rows


def memory_rows(engine: Engine, served: Sequence[Served], labels: Labels) -> list[Row]:
    """Weights, reserved K and V, the peak of everything else, and their sum."""
    stats = engine.stats()
    weights, kv = stats.weight_bytes, stats.kv_bytes
    other = max(item.peak - weights - kv if item.peak else item.growth for item in served)
    parts = {"weight_bytes": weights, "kv_bytes": kv, "activation_peak": other}
    parts["total_bytes"] = sum(parts.values())
    return [row(name, "B", float(value), **labels) for name, value in parts.items()]


def notes_of(args: Namespace, size: Sizes, group: int) -> list[str]:
    """What a reader of the numbers must know."""
    subset = [SUBSET_NOTE.format(few=size.few, all=size.seats)] if size.few < size.seats else []
    busy = [BUSY_NOTE] if args.device.startswith("cuda") else []
    return [
        GAIN_NOTE,
        *subset,
        ROUNDS_NOTE.format(slow=size.slow),
        KV_NOTE.format(longest=size.max_model_len, seats=size.seats),
        MEMORY_NOTE.format(sampling=SAMPLING * 1e3),
        BITS_NOTE.format(group=group),
        *busy,
    ]


def _in_brief(rows: Sequence[Row]) -> str:
    """A rung as soon as it is done: all of them take minutes."""
    (value,) = by_rung(rows).values()
    return (
        f"{value['output_throughput']:,.1f} tok/s, first token {value['ttft_p50']:.3g} s, "
        f"{value['time_per_token'] * 1e3:.3g} ms per token, "
        f"{value['total_bytes'] / 2**20:,.0f} MiB"
    )
