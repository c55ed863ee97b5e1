"""Which chunk size suits this device: the streams' largest gap against the long prompt's TTFT.

    python m5_chunked/examples/tune_chunk_size.py
    python m5_chunked/examples/tune_chunk_size.py --budgets 64 128 256 --target-ms 200
    python m5_chunked/examples/tune_chunk_size.py --plot curve.svg

For each budget some streams decode, a long prompt lands on them, and a short one right behind it.
Prints a table, bars and a recommendation: the largest budget whose gap (95th percentile over the
streams) stays within the target. The target is three steps of decodes unless ``--target-ms`` says
otherwise. ``--plot`` draws the curve with matplotlib, to an SVG or a PNG.
"""

from __future__ import annotations

import importlib.util
from argparse import Namespace
from pathlib import Path
from statistics import median
from typing import Any

from common.cli_errors import OneLineParser, run
from common.tables import format_table
from m0_init.loader import resolve_device
from m5_chunked.benchmarks.landing import Case, Landed, land, recommend
from m5_chunked.benchmarks.variants import Variant
from m5_chunked.engine import LLMEngine

STEPS = 3
"""Steps of decodes that a stream may stand still, where no target is given."""
WIDTH = 30
BLOCK_SIZE = 16


def main(argv: list[str]) -> int:
    """Measure every budget and recommend one. Returns the exit code."""
    args = arguments(argv)
    case, budgets, low = Case(args.streams, 32, args.long), args.budgets, min(args.budgets)
    engine = LLMEngine(
        args.model,
        device=args.device,
        max_model_len=max(case.long + 1, case.longest(low)),
        max_num_seqs=case.streams + 2,
        max_num_batched_tokens=max(budgets),
        block_size=BLOCK_SIZE,
        num_blocks=-(-case.pool_tokens(low) // BLOCK_SIZE),
    )
    found: dict[int, list[Landed]] = {budget: [] for budget in budgets}
    for number in range(args.repeat + 1):  # in turn, and the first round warms up
        for budget in budgets:
            landed = land(Variant(engine, budget).ready(), case, low)
            found[budget] += [landed] if number else []
    rows = [table_row(budget, runs) for budget, runs in found.items()]
    print(f"{args.streams} streams, a prompt of {args.long} tokens, {engine.device}, medians in ms")
    print(format_table(rows))
    print()
    print(bars(rows))
    print()
    print(advice(rows, args.target_ms))
    if args.plot:
        print(plot(rows, args.plot))
    return 0


def arguments(argv: list[str]) -> Namespace:
    """The command line, with defaults for the device."""
    parser = OneLineParser(description="TTFT against the largest gap, by chunk size.")
    parser.add_argument("--model", default="smollm2", help="local folder, hub id, or smollm2")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--streams", type=int, help="streams that decode (4, on a GPU 32)")
    parser.add_argument("--long", type=int, help="tokens of the long prompt (512, on a GPU 4096)")
    parser.add_argument("--budgets", type=int, nargs="+", help="tokens per step to try")
    parser.add_argument("--target-ms", type=float, help="largest gap that is allowed")
    parser.add_argument("--repeat", type=int, default=2, help="recorded rounds")
    parser.add_argument("--plot", type=Path, help="draw the curve to this .svg or .png")
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes that still run")
    args = parser.parse_args(argv)
    args.device = str(resolve_device(args.device))
    gpu = args.device.startswith("cuda")
    if args.smoke:
        streams, long, budgets, args.repeat = 2, 48, [16, 64], 1
    elif gpu:
        streams, long, budgets = 32, 4096, [128, 256, 512, 1024, 2048, 8192]
    else:
        streams, long, budgets = 4, 512, [32, 64, 128, 256, 1024]
    args.streams, args.long = args.streams or streams, args.long or long
    args.budgets = sorted(set(args.budgets or budgets))
    if args.streams < 1 or args.long < 1 or args.repeat < 1:
        parser.error("--streams, --long and --repeat must be at least 1")
    if args.budgets[0] < args.streams + 2:
        parser.error(f"--budgets must be at least {args.streams + 2}: each seat needs a token")
    if args.plot and args.plot.suffix not in (".svg", ".png"):
        parser.error(f"--plot must end with .svg or .png, got {args.plot.name}")
    return args


def table_row(budget: int, runs: list[Landed]) -> dict[str, Any]:
    """One budget in milliseconds, the median over its rounds."""
    return {
        "budget": budget,
        "gap p95": 1e3 * median(item.gaps.p95 for item in runs),
        "long TTFT": 1e3 * median(item.long_ttft for item in runs),
        "short TTFT": 1e3 * median(item.short_ttft for item in runs),
        "decode step": 1e3 * median(item.step for item in runs),
    }


def bars(rows: list[dict[str, Any]]) -> str:
    """Both prices of each budget as bars, each on its own scale."""
    lines = []
    for key in ("gap p95", "long TTFT"):
        highest = max(row[key] for row in rows)
        for row in rows:
            length = max(round(WIDTH * row[key] / highest), 1)
            lines.append(f"{key:<9} {row['budget']:>6}  {'█' * length} {row[key]:.1f} ms")
    return "\n".join(lines)


def advice(rows: list[dict[str, Any]], target_ms: float | None) -> str:
    """The recommended budget and why, or why there is none."""
    step = median(row["decode step"] for row in rows)
    target = STEPS * step if target_ms is None else target_ms
    source = f"{STEPS} steps of decodes" if target_ms is None else "as asked"
    gaps = {row["budget"]: row["gap p95"] for row in rows}
    best = recommend(gaps, target)
    if best is None:
        least = min(gaps, key=lambda budget: gaps[budget])
        return (
            f"No budget keeps the gap within {target:.1f} ms ({source}). The smallest gap, "
            f"{gaps[least]:.1f} ms, is at max_num_batched_tokens={least}; a step of decodes alone "
            f"takes {step:.1f} ms."
        )
    (row,) = (row for row in rows if row["budget"] == best)
    return (
        f"Recommended here: max_num_batched_tokens={best}. Its gap of {row['gap p95']:.1f} ms is "
        f"within {target:.1f} ms ({source}).\n"
        f"It is the largest budget that is: a smaller one would read the weights more often for "
        f"the same prompt, whose first token takes {row['long TTFT']:.1f} ms here."
    )


def plot(rows: list[dict[str, Any]], path: Path) -> str:
    """Draw TTFT over the gap, a point a budget; returns what was done."""
    if importlib.util.find_spec("matplotlib") is None:
        return f"{path} is not written: matplotlib is not installed"
    from common.charts import line_with_floor
    from common.plot_style import INK, save_svg

    points = {row["gap p95"]: row["long TTFT"] for row in rows}
    ax = line_with_floor(
        {"budget": points}, xlabel="largest gap of the streams, p95 (ms)",
        ylabel="TTFT of the long prompt (ms)",
    )  # fmt: skip
    for row in rows:
        at = (row["gap p95"], row["long TTFT"])
        ax.annotate(str(row["budget"]), at, (5, 5), textcoords="offset points", color=INK)
    if path.suffix == ".svg":
        save_svg(
            ax, path, title="TTFT against the largest gap",
            desc="TTFT of the long prompt over the largest gap of the streams, a point a budget.",
        )  # fmt: skip
    else:
        ax.figure.savefig(path)
    return f"written: {path}"


if __name__ == "__main__":
    run(main)
