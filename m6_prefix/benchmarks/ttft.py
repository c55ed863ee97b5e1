"""What a hit saves: the time to the first token, cold against cached, and by hit ratio.

::

    cold     | prefix ……………………………………………… | 32 tokens |    all computed
    cached   | prefix, known already ………… | 32 others |    only the tail computed

Every cold run starts from an empty cache, and what it leaves there is what the cached run finds.
One model explains both: ``TTFT = T0 + t · (tokens computed)``. The fixed cost T0 (planning, one
pass over the weights, sampling) is what no cache takes away, and the reason why short prompts gain
little.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

from common.bench import serving_rows
from common.memory import PeakMemory
from common.metrics import serving_metrics
from common.outputs import RequestOutput
from common.results import Result, Row, make_result, row
from common.serve import run_batch
from common.timing import Measurement, interleaved_calls
from common.workload import Workload, fixed, shared_prefix
from m4_flash.benchmarks.engines import release
from m6_prefix.benchmarks.engines import FirstToken, first_token, forget, options, settings
from m6_prefix.engine import LLMEngine

TAIL = 32
"""Tokens at the end of a prompt that nobody has sent before."""
RATIOS = (0.0, 0.25, 0.5, 0.75, 1.0)

MEMORY_NOTE = (
    "peak_memory is the most that was held during the request: on a GPU by the allocator, with "
    "weights, KV pool and graphs; on a CPU weights and KV pool plus what the request added"
)


def run(args: Namespace, notes: list[str]) -> tuple[Result, str]:
    """Time pairs of cold and cached prompts, one prompt at five hit ratios, and batches likewise.

    Args:
        args: The benchmark's command line.
        notes: Sentences for the result file.

    Returns:
        The result and the summary line.
    """
    gpu = args.device.startswith("cuda")
    lengths, ratio_length, batch = sizes(args)
    longest = max(lengths)
    limits = options(
        args, max_model_len=longest + 16, max_num_seqs=batch.count,
        pool_tokens=max(2 * longest, batch_places(batch.workload(0.0))), budget=max(longest, 64),
    )  # fmt: skip
    engine = LLMEngine(args.model, **limits)
    warm = int(gpu)  # a GPU compiles for every new size
    first_token(engine, list(range(48)))
    pairs = prefix_pairs(lengths)
    rows = pair_rows(engine, pairs, args.repeat, warm)
    rows += ratio_rows(engine, ratio_length, args.repeat, warm, args.device)
    workloads = {ratio: batch.workload(ratio) for ratio in RATIOS}
    rows += batch_rows(engine, workloads, args.repeat, warm)
    result = make_result(
        "m6_prefix", "ttft", rows, device=args.device, workload=pairs,
        config={**settings(args, engine), "tail": TAIL}, notes=[*notes, MEMORY_NOTE],
    )  # fmt: skip
    own = {"prompt_tokens": longest, "case": "pair"}
    (hit,) = result.select(metric="ttft", cache="cached", **own)
    (ratio,) = result.select(metric="cold_over_cached", **own)
    return result, (
        f"m6_prefix, {longest:,} tokens, all but {TAIL} cached: first token after "
        f"{hit['median'] * 1e3:.1f} ms, {ratio['median']:.1f}x faster than cold"
    )


@dataclass(frozen=True)
class Batch:
    """Requests that share a stated part of their prompts.

    Attributes:
        count: How many.
        length: Tokens of each prompt.
        output_len: Tokens of each output.
    """

    count: int
    length: int
    output_len: int

    def workload(self, ratio: float) -> Workload:
        """The requests of which the first ``ratio`` of each prompt is the same for all."""
        shared = round(ratio * self.length)
        return shared_prefix(self.count, shared, self.length - shared, self.output_len)


def sizes(args: Namespace) -> tuple[tuple[int, ...], int, Batch]:
    """Lengths of the pairs, the length whose hit ratio varies, and the batch of each ratio."""
    if args.smoke:
        return (48, 64), 64, Batch(3, 32, 4)
    if args.device.startswith("cuda"):
        return (512, 2048, 8192, 15_000), 8192, Batch(64, 2048, 64)
    return (128, 512, 1024), 512, Batch(4, 256, 8)


def batch_places(workload: Workload) -> int:
    """Places that all requests of a workload fill together, with a block each to spare."""
    return workload.prompt_tokens + workload.max_output_tokens + 16 * len(workload.requests)


def prefix_pairs(lengths: Sequence[int]) -> Workload:
    """Two prompts of each length that differ in their last :data:`TAIL` tokens, one token each."""
    requests = [
        item for length in lengths for item in shared_prefix(2, length - TAIL, TAIL, 1).requests
    ]
    return Workload(f"pairs-{'-'.join(map(str, lengths))}", 0, tuple(requests))


def pair_rows(engine: LLMEngine, pairs: Workload, repeat: int, warm: int) -> list[Row]:
    """Each pair in turn: the first prompt from an empty cache, then the second.

    Args:
        engine: An idle engine.
        pairs: From :func:`prefix_pairs`.
        repeat: Recorded rounds.
        warm: Rounds before them.
    """
    prompts = pairs.prompts

    def both(cold: list[int], cached: list[int]) -> tuple[FirstToken, FirstToken]:
        forget(engine)
        return first_token(engine, cold), first_token(engine, cached)

    calls = {
        str(len(cold)): partial(both, cold, cached)
        for cold, cached in zip(prompts[::2], prompts[1::2], strict=True)
    }
    rows = list[Row]()
    for length, taken in interleaved_calls(calls, repeat, warm).items():
        labels: dict[str, str | int] = {"case": "pair", "prompt_tokens": int(length)}
        for name, runs in zip(("cold", "cached"), zip(*taken, strict=True), strict=True):
            rows.append(row("ttft", "s", [item.seconds for item in runs], cache=name, **labels))
            found = [float(item.cached_tokens) for item in runs]
            rows.append(row("cached_tokens", "tokens", found, cache=name, **labels))
        gains = [cold.seconds / cached.seconds for cold, cached in taken]
        rows.append(row("cold_over_cached", "ratio", gains, **labels))
    return rows


def ratio_rows(engine: LLMEngine, length: int, repeat: int, warm: int, device: str) -> list[Row]:
    """One prompt of which more and more is known, and the line through the medians.

    At a ratio of 1 the whole prompt is known, and still its last block is computed.
    """
    (prompt,) = fixed(1, length, 1).prompts

    def prepare(ratio: float) -> None:
        forget(engine)
        if known := round(ratio * length):
            first_token(engine, prompt[:known])

    def begin(ratio: float) -> FirstToken:
        prepare(ratio)
        return first_token(engine, prompt)

    calls = {str(ratio): partial(begin, ratio) for ratio in RATIOS}
    taken = interleaved_calls(calls, repeat, warm)
    rows, points = list[Row](), list[tuple[float, float]]()
    for ratio in RATIOS:
        runs = taken[str(ratio)]
        labels: dict[str, str | int | float] = {
            "case": "ratio", "prompt_tokens": length, "hit_ratio": ratio,
        }  # fmt: skip
        seconds = Measurement(tuple(item.seconds for item in runs))
        cached = [float(item.cached_tokens) for item in runs]
        points.append((length - cached[0], seconds.median))
        rows.append(row("ttft", "s", seconds, **labels))
        rows.append(row("cached_tokens", "tokens", cached, **labels))
        prepare(ratio)
        release(device)
        with PeakMemory(device) as watch:
            first_token(engine, prompt)
        stats, memory = engine.stats(), watch.result
        gpu = device.startswith("cuda")
        held = memory.peak if gpu else stats.weight_bytes + stats.kv_bytes + memory.growth
        rows.append(row("peak_memory", "B", float(held), **labels))
    fixed_cost, per_token = fit_line(points)
    worst = max(abs(fixed_cost + per_token * x - y) for x, y in points)
    own: dict[str, str | int] = {"case": "fit", "prompt_tokens": length}
    return [
        *rows,
        row("fixed_cost", "s", fixed_cost, **own),
        row("time_per_token", "s", per_token, **own),
        row("largest_error", "s", worst, **own),
    ]


def fit_line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Intercept and slope of the line with the least squared errors."""
    mean_x, mean_y = fmean(x for x, _ in points), fmean(y for _, y in points)
    across = sum((x - mean_x) * (y - mean_y) for x, y in points)
    slope = across / sum((x - mean_x) ** 2 for x, _ in points)
    return mean_y - slope * mean_x, slope


def batch_rows(
    engine: LLMEngine, workloads: dict[float, Workload], repeat: int, warm: int
) -> list[Row]:
    """Throughput of a batch at each ratio; the shared part is in the cache before it begins."""

    def serve(workload: Workload, shared: int) -> list[RequestOutput]:
        forget(engine)
        if shared:
            first_token(engine, workload.prompts[0][:shared])
        return run_batch(engine, workload)

    calls = {
        str(ratio): partial(serve, workload, round(ratio * len(workload.prompts[0])))
        for ratio, workload in workloads.items()
    }
    taken, rows = interleaved_calls(calls, repeat, warm), list[Row]()
    for ratio, workload in workloads.items():
        metrics = [serving_metrics(outputs) for outputs in taken[str(ratio)]]
        labels: dict[str, str | float] = {
            "case": "batch", "workload": workload.name, "hit_ratio": ratio,
        }  # fmt: skip
        rows += serving_rows(metrics, **labels)
        rows.append(row("hit_rate", "share", [item.hit_rate for item in metrics], **labels))
    return rows
