"""Beside ``transformers.generate``, alone and in a batch: one process, the same threads, in turn.

Both get the same prompts of one length, so that transformers' batch needs no padding, and answer
greedily to the end, with their caches. Two numbers are aimed at on a CPU: at least 1.5 times
transformers' tokens per second for one request, and from our own batch of 16 at least 6 times what
one request gets.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial

import torch

from common.bench import summary_line
from common.hub import resolve_model
from common.metrics import mbu, mfu
from common.model_costs import decode_bytes, linear_flops_per_token, lm_head_flops_per_row
from common.peaks import measured_bandwidth, measured_flops
from common.results import Result, Row, make_result, row
from common.timing import interleaved_calls, synchronizer
from common.workload import Workload, fixed
from m1_basic.benchmarks.baseline import TransformersGenerate
from m4_flash.backends.select import BACKENDS
from m4_flash.benchmarks.engines import announce
from m5_chunked.benchmarks.variants import backend, settings
from m5_chunked.engine import LLMEngine

OURS, THEIRS = "m5_chunked", "transformers"
Ids = list[list[int]]
Timed = tuple[float, Ids]
"""Seconds and the generated ids."""


def sizes(args: Namespace) -> tuple[Workload, tuple[int, int]]:
    """The requests, and the two batch sizes: one, and all of them."""
    if args.smoke:
        return fixed(4, 6, 4), (1, 4)
    return fixed(16, 64, 64), (1, 16)


def run(args: Namespace, notes: list[str]) -> tuple[Result, str]:
    """Serve one request and a batch with both engines, in turn.

    Args:
        args: The benchmark's command line.
        notes: Sentences for the result file.

    Returns:
        The result and the summary line.
    """
    announce("transformers", args, 60, 120)
    workload, batches = sizes(args)
    engine = make_engine(args, workload)
    theirs = TransformersGenerate(resolve_model(args.model), engine.model.dtype, args.device)
    makers: dict[str, Callable[[Workload], Ids]] = {
        OURS: partial(ours, engine),
        THEIRS: lambda part: theirs.generate(part.prompts, new_tokens(part)),
    }
    sync = synchronizer(args.device)
    calls = {
        (name, batch): partial(timed, make, workload.subset(batch), sync)
        for batch in batches
        for name, make in makers.items()
    }
    named = {f"{name} {batch}": call for (name, batch), call in calls.items()}
    runs = dict(zip(calls, interleaved_calls(named, args.repeat, 1).values(), strict=True))
    rows = rows_of(runs, new_tokens(workload), batches)
    config = {**settings(args, engine), "threads": torch.get_num_threads()}
    result = make_result(
        "m5_chunked", "transformers", rows, device=args.device, workload=workload, config=config,
        notes=notes,
    )  # fmt: skip
    return result, _summary(engine, result, workload, args.device)


def make_engine(args: Namespace, workload: Workload) -> LLMEngine:
    """Ours, with a seat for every request and blocks for all their tokens."""
    longest = max(len(prompt) for prompt in workload.prompts) + new_tokens(workload)
    seats, name = len(workload.requests), backend(args)
    blocks = -(-longest // BACKENDS[name].default_block_size)
    return LLMEngine(
        args.model, dtype=args.dtype, device=args.device, attention_backend=name,
        max_num_seqs=seats, max_model_len=longest, num_blocks=seats * blocks,
    )  # fmt: skip


def new_tokens(workload: Workload) -> int:
    """Output tokens of each request: the same for all."""
    (count,) = {params.max_tokens for params in workload.sampling_params}
    return count


def ours(engine: LLMEngine, workload: Workload) -> Ids:
    """The ids that our engine generates."""
    outputs = engine.generate(workload.prompts, workload.sampling_params)
    return [list(output.outputs[0].token_ids) for output in outputs]


def timed(make: Callable[[Workload], Ids], workload: Workload, sync: Callable[[], None]) -> Timed:
    """Generate once, by the wall clock."""
    sync()
    begin = time.perf_counter()
    ids = make(workload)
    sync()
    return time.perf_counter() - begin, ids


def rows_of(
    runs: dict[tuple[str, int], list[Timed]], tokens: int, batches: tuple[int, int]
) -> list[Row]:
    """Tokens per second, and their ratios round by round.

    ``same_tokens`` is the share of ids in which the engines agree. It is below one where two
    tokens are almost equally likely and the sums were added in another order: from there on the
    texts differ, and the amount of work does not.
    """
    speed = {
        key: [key[1] * tokens / seconds for seconds, _ in values] for key, values in runs.items()
    }
    rows = [
        row("output_throughput", "tok/s", values, engine=name, batch=batch)
        for (name, batch), values in speed.items()
    ]
    for batch in batches:
        pairs = zip(speed[OURS, batch], speed[THEIRS, batch], strict=True)
        ratios = [mine / other for mine, other in pairs]
        rows.append(row("speedup_over_transformers", "ratio", ratios, engine=OURS, batch=batch))
        same = _same(runs[OURS, batch][0][1], runs[THEIRS, batch][0][1])
        rows.append(row("same_tokens", "share", same, engine=OURS, batch=batch))
    one, many = batches
    for name in (OURS, THEIRS):
        gains = [b / a for a, b in zip(speed[name, one], speed[name, many], strict=True)]
        rows.append(row("speedup_over_batch_1", "ratio", gains, engine=name, batch=many))
    return rows


def _same(left: Ids, right: Ids) -> float:
    pairs = [
        (a, b)
        for one, other in zip(left, right, strict=True)
        for a, b in zip(one, other, strict=True)
    ]
    return sum(a == b for a, b in pairs) / len(pairs)


def _summary(engine: LLMEngine, result: Result, workload: Workload, device: str) -> str:
    """Our batch beside the device's measured ceilings."""
    batch = len(workload.requests)
    (speed,) = result.select(metric="output_throughput", engine=OURS, batch=batch)
    (ratio,) = result.select(metric="speedup_over_transformers", batch=1)
    (gain,) = result.select(metric="speedup_over_batch_1", engine=OURS)
    config, dtype = engine.model.config, str(engine.model.dtype).removeprefix("torch.")
    context = len(workload.prompts[0]) + new_tokens(workload) // 2
    seconds = batch / speed["median"]
    flops = batch * (linear_flops_per_token(config) + lm_head_flops_per_row(config))
    return summary_line(
        f"m5_chunked, {ratio['median']:.2f} of transformers alone, "
        f"batch of {batch}: {gain['median']:.2f} of one",
        speed["median"],
        mbu(decode_bytes(config, batch, context, dtype), seconds, measured_bandwidth(device)),
        mfu(flops, seconds, measured_flops(device, dtype)),
    )
