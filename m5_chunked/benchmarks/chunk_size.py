"""The chunk size's two prices: the streams' largest gap against the new prompts' first tokens.

One long prompt lands on settled streams, a short one right behind it (see ``landing``). Each
budget is a point of the curve; M4 is the point without chunks. A threshold of half a budget
leaves room beside the long prompt, so that the short one need not wait for its end.
"""

from __future__ import annotations

from argparse import Namespace
from functools import partial

from common.bench import summary_line
from common.results import Result, Row, make_result, row
from common.timing import interleaved_calls
from m4_flash.benchmarks.engines import announce
from m5_chunked.benchmarks.landing import Case, Landed, land
from m5_chunked.benchmarks.variants import BUDGET_NOTE, UNCHUNKED, Variant, engines, settings


def sizes(args: Namespace) -> tuple[Case, tuple[int, ...], int]:
    """Who decodes and who arrives; the budgets, ascending; recorded rounds."""
    if args.smoke:
        return Case(2, 4, 64), (16, UNCHUNKED), args.repeat
    if args.device.startswith("cuda"):
        budgets = (128, 256, 512, 1024, 2048, 4096, UNCHUNKED)
        return Case(32, 128, 8192), budgets, max(args.repeat, 5)
    long = 1024 if args.full else 512
    return Case(4, 32, long), (32, 64, 128, 256, UNCHUNKED), args.repeat if args.full else 1


def run(args: Namespace, notes: list[str]) -> tuple[Result, str]:
    """Land the prompts on every variant, in turn.

    Args:
        args: The benchmark's command line.
        notes: Sentences for the result file.

    Returns:
        The result and the summary line.
    """
    announce("chunk_size", args, 60, 40)
    case, budgets, rounds = sizes(args)
    low = budgets[0]
    m4, m5 = engines(
        args, max_model_len=max(case.long + 1, case.longest(low)), max_num_seqs=case.streams + 2,
        pool_tokens=case.pool_tokens(low),
    )  # fmt: skip
    variants = [Variant(m4), *(Variant(m5, budget) for budget in budgets)]
    if args.smoke or args.full or args.device.startswith("cuda"):
        variants += [Variant(m5, budget, budget // 2) for budget in budgets[:-1]]
    calls = {variant.name: partial(_land, variant, case, low) for variant in variants}
    gpu = args.device.startswith("cuda")
    for variant in variants if gpu else variants[:2]:  # a GPU compiles for the real sizes
        _land(variant, case if gpu else Case(case.streams, case.prompt, case.prompt), low)
    landed = interleaved_calls(calls, rounds, 0)
    rows = [
        item for variant in variants for item in landed_rows(landed[variant.name], variant, case)
    ]
    result = make_result(
        "m5_chunked", "chunk_size", rows, device=args.device,
        config={
            **settings(args, m5), "streams": case.streams, "stream_prompt": case.prompt,
            "long_prompt": case.long,
        },
        notes=[*notes, BUDGET_NOTE],
    )  # fmt: skip
    return result, _summary(result, case)


def landed_rows(found: list[Landed], variant: Variant, case: Case) -> list[Row]:
    """One point of the curve, one value per round."""
    labels = {**variant.labels, "prompt_tokens": case.long}
    values = {
        "long_ttft": [item.long_ttft for item in found],
        "short_ttft": [item.short_ttft for item in found],
        "gap_p50": [item.gaps.p50 for item in found],
        "gap_p95": [item.gaps.p95 for item in found],
        "largest_gap": [item.gaps.max for item in found],
        "step_time": [item.step for item in found],
    }
    return [row(name, "s", runs, **labels) for name, runs in values.items()]


def _land(variant: Variant, case: Case, low: int) -> Landed:
    """Streams last as long as the smallest budget needs them, whatever the variant's own is."""
    return land(variant.ready(), case, low)


def _summary(result: Result, case: Case) -> str:
    """The ends of the curve: the smallest gap, and what the prompt pays for it."""
    points = result.select(metric="largest_gap", engine="m5_chunked", threshold=0)
    best = min(points, key=lambda item: float(item["median"]))
    at = {"engine": "m5_chunked", "threshold": 0, "budget": best["budget"]}
    (ttft,) = result.select(metric="long_ttft", **at)
    name = (
        f"m5_chunked, {case.long} tokens at budget {best['budget']}, largest gap "
        f"{best['median'] * 1e3:.1f} ms, TTFT {ttft['median'] * 1e3:.0f} ms"
    )
    return summary_line(name, case.long / ttft["median"], None, None)
