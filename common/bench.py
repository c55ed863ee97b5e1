"""The parts that every stage's benchmark shares, and a command to look at results.

    python -m common.bench show FILE            # one result as a table
    python -m common.bench compare A B          # ratios; refuses two machines, commits, workloads
    python -m common.bench peaks --device cuda  # copy bandwidth and matrix-product rate
    python -m common.bench commit               # FOLOVLLM_COMMIT for a tree without git

A stage's benchmark is a script: :func:`add_bench_arguments` gives it the common flags,
:mod:`common.timing` and :mod:`common.serve` measure, :func:`finish` prints the table, writes the
file and ends with :func:`summary_line`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from common.cli_errors import OneLineParser, run
from common.environment import commit
from common.metrics import ServingMetrics, Utilization
from common.result_compare import format_comparison, format_result
from common.results import Result, Row, read_result, row, write_result
from common.tables import format_number


def add_bench_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a stage's benchmark the flags that all of them have."""
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_true", help="the whole benchmark, not the short one")
    size.add_argument("--smoke", action="store_true", help="the smallest sizes that still run")
    parser.add_argument("--repeat", type=_positive, default=3, help="recorded rounds")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="results folder (default: docs/benchmarks/results of this checkout)",
    )


def serving_rows(
    metrics: Sequence[ServingMetrics], **labels: str | int | float | bool
) -> list[Row]:
    """The usual rows of a served workload: throughput, TTFT, TPOT, ITL, largest gap.

    Args:
        metrics: One summary per repetition of the workload.
        **labels: Labels of every row, such as ``engine``.
    """
    rows = [
        row("output_throughput", "tok/s", [item.output_throughput for item in metrics], **labels),
        row("total_throughput", "tok/s", [item.total_throughput for item in metrics], **labels),
        row("duration", "s", [item.duration for item in metrics], **labels),
    ]
    for name in ("ttft", "tpot", "itl"):
        for point in ("p50", "p99"):
            found = [getattr(item, name) for item in metrics]
            values = [getattr(item, point) for item in found if item is not None]
            if values:
                rows.append(row(f"{name}_{point}", "s", values, **labels))
    gaps = [item.largest_gap for item in metrics if item.largest_gap is not None]
    if gaps:
        rows.append(row("largest_gap", "s", gaps, **labels))
    return rows


def summary_line(
    name: str, tokens_per_second: float, mbu: Utilization | None, mfu: Utilization | None
) -> str:
    """The last line of every benchmark: tok/s, MBU and MFU, each ceiling with its source."""
    return (
        f"{name}: {format_number(float(tokens_per_second))} tok/s · "
        f"{_share('MBU', mbu, 1e9, 'GB/s')} · {_share('MFU', mfu, 1e12, 'TFLOP/s')}"
    )


def _share(name: str, used: Utilization | None, scale: float, unit: str) -> str:
    if used is None:
        return f"{name} –"
    ceiling = format_number(used.peak.value / scale)
    return f"{name} {used.share:.1%} of {ceiling} {unit} ({used.peak.source})"


def finish(result: Result, summary: str, out: str | Path | None = None) -> Path:
    """Print a result, write it, and print ``summary`` as the last line.

    Args:
        result: From :func:`common.results.make_result`.
        summary: From :func:`summary_line`.
        out: Results folder, the value of ``--out``.
    """
    print(format_result(result))
    path = write_result(result, out)
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    print(f"\nwritten: {shown}")
    print(summary)
    return path


def main(argv: list[str]) -> int:
    """The command ``python -m common.bench``. Returns the exit code.

    Raises:
        FoloError: A bad flag, an unreadable file, results that must not be compared.
    """
    parser = OneLineParser(
        prog="python -m common.bench", description=(__doc__ or "").split("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True, parser_class=OneLineParser)
    show = commands.add_parser("show", help="print one result")
    show.add_argument("file", type=Path)
    compare = commands.add_parser("compare", help="print the ratios of two results")
    compare.add_argument("a", type=Path)
    compare.add_argument("b", type=Path)
    peaks = commands.add_parser("peaks", help="measure copy bandwidth and matrix-product rate")
    peaks.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    peaks.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    commands.add_parser("commit", help="print the state of the source tree")
    args = parser.parse_args(argv)
    if args.command == "show":
        print(format_result(read_result(args.file)))
    elif args.command == "compare":
        print(format_comparison(read_result(args.a), read_result(args.b)))
    elif args.command == "peaks":
        _print_peaks(args.device, args.dtype)
    else:
        print(commit())
    return 0


def _print_peaks(device: str, dtype: str) -> None:
    from common.peaks import measured_bandwidth, measured_flops  # they import torch

    copy, product = measured_bandwidth(device), measured_flops(device, dtype)
    print(
        f"{copy.device}: copy {copy.value / 1e9:,.1f} GB/s read and written, "
        f"{dtype} matrix product {product.value / 1e12:,.3f} TFLOP/s"
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


if __name__ == "__main__":
    run(main)
