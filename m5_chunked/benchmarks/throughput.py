"""Many requests of random length at once: M5 beside M4, where chunks can only cost.

With everybody waiting from the start no stream is disturbed by a late prompt, so this is the price
of the token budget: "about unchanged" means at least 0.95 of M4's throughput.
"""

from __future__ import annotations

from argparse import Namespace
from functools import partial

from common.bench import serving_rows, summary_line
from common.metrics import mbu, mfu, serving_metrics
from common.model_costs import decode_bytes, linear_flops_per_token, lm_head_flops_per_row
from common.outputs import RequestOutput
from common.peaks import measured_bandwidth, measured_flops
from common.results import Result, Row, make_result, row
from common.serve import run_batch
from common.timing import interleaved_calls
from common.workload import Workload, random_lengths
from m4_flash.benchmarks.engines import announce
from m5_chunked.benchmarks.variants import BUDGET_NOTE, UNCHUNKED, Variant, engines, settings
from m5_chunked.engine import LLMEngine as M5Engine

AT_LEAST = 5
"""Recorded rounds: "no slowdown" is a median of five runs in turn."""


def sizes(args: Namespace) -> tuple[Workload, tuple[int, ...], int, int]:
    """The requests, M5's budgets, the longest sequence, and the places of each pool."""
    if args.smoke:
        return random_lengths(4, (4, 8), (2, 6), temperature=0.0), (UNCHUNKED,), 32, 128
    if args.device.startswith("cuda"):
        # All 256 together hold at most 170,640 places in blocks of 16.
        more: tuple[int, ...] = (2048, 512) if args.full else ()
        return random_lengths(), (UNCHUNKED, *more), 2048, 215_040
    more = (64,) if args.full else ()
    return random_lengths(12, (8, 32), (8, 32), temperature=0.0), (UNCHUNKED, *more), 96, 96 * 12


def run(args: Namespace, notes: list[str]) -> tuple[Result, str]:
    """Serve one workload with M4 and with M5 at each budget, in turn.

    Args:
        args: The benchmark's command line.
        notes: Sentences for the result file.

    Returns:
        The result and the summary line.
    """
    announce("throughput", args, 120, 60)
    workload, budgets, max_model_len, pool_tokens = sizes(args)
    # Small budgets must give each running sequence a token.
    seats = min(len(workload.requests), *budgets)
    m4, m5 = engines(args, max_model_len=max_model_len, max_num_seqs=seats, pool_tokens=pool_tokens)
    variants = [Variant(m4), *(Variant(m5, budget) for budget in budgets)]
    for variant in variants:
        run_batch(variant.ready(), workload.subset(2))  # warm-up; a whole round takes long
    rounds = args.repeat if args.smoke else max(args.repeat, AT_LEAST)
    rows = served_rows(variants, workload, rounds)
    result = make_result(
        "m5_chunked", "throughput", rows, device=args.device, workload=workload,
        config=settings(args, m5), notes=[*notes, BUDGET_NOTE],
    )  # fmt: skip
    return result, _summary(m5, result, workload, args.device)


def served_rows(variants: list[Variant], workload: Workload, rounds: int) -> list[Row]:
    """Every variant in turn; each but the first beside the first, round by round."""
    steps = dict.fromkeys((variant.name for variant in variants), 0)
    lost = dict(steps)

    def serve(variant: Variant) -> list[RequestOutput]:
        engine = variant.ready()
        before = engine.stats().num_steps, engine.scheduler.num_preemptions
        outputs = run_batch(engine, workload)
        steps[variant.name] += engine.stats().num_steps - before[0]
        lost[variant.name] += engine.scheduler.num_preemptions - before[1]
        return outputs

    calls = {variant.name: partial(serve, variant) for variant in variants}
    served = interleaved_calls(calls, rounds, 0)
    rows: list[Row] = []
    below: list[float] = []
    decodes = (workload.max_output_tokens - len(workload.requests)) * rounds
    for variant in variants:
        labels, taken = variant.labels, steps[variant.name]
        metrics = [serving_metrics(outputs) for outputs in served[variant.name]]
        rows += serving_rows(metrics, **labels)
        rows.append(row("sequences_per_step", "count", decodes / taken, **labels))
        rows.append(row("preemptions", "count", lost[variant.name] / rounds, **labels))
        speeds = [item.output_throughput for item in metrics]
        below = below or speeds
        if variant.budget is not None:
            ratios = [own / m4 for own, m4 in zip(speeds, below, strict=True)]
            rows.append(row("throughput_over_m4", "ratio", ratios, **labels))
    return rows


def _summary(engine: M5Engine, result: Result, workload: Workload, device: str) -> str:
    """The default budget beside the device's measured ceilings."""
    own = {"engine": "m5_chunked", "budget": UNCHUNKED}
    (speed,) = result.select(metric="output_throughput", **own)
    (batch,) = result.select(metric="sequences_per_step", **own)
    (ratio,) = result.select(metric="throughput_over_m4", **own)
    config, dtype = engine.model.config, str(engine.model.dtype).removeprefix("torch.")
    context = (workload.prompt_tokens + workload.max_output_tokens // 2) // len(workload.requests)
    seconds = batch["median"] / speed["median"]
    moved = decode_bytes(config, max(round(batch["median"]), 1), context, dtype)
    flops = batch["median"] * (linear_flops_per_token(config) + lm_head_flops_per_row(config))
    return summary_line(
        f"m5_chunked, random lengths, {ratio['median']:.3f} of m4_flash",
        speed["median"],
        mbu(moved, seconds, measured_bandwidth(device)),
        mfu(flops, seconds, measured_flops(device, dtype)),
    )
