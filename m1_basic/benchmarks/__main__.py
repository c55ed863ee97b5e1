"""``python -m m1_basic.benchmarks``: latency beside transformers, and what the cache is worth."""

from __future__ import annotations

import argparse

from common.bench import add_bench_arguments, finish
from common.cli_errors import OneLineParser, run
from common.random_model import NOTE, RANDOM_MODEL

BENCHMARKS = ("latency", "cache_curve")


def main(argv: list[str]) -> int:
    """Run the benchmarks asked for and write one result file each.

    Raises:
        FoloError: Bad input.
    """
    parser = OneLineParser(prog="python -m m1_basic.benchmarks", description=__doc__)
    add_bench_arguments(parser)
    parser.add_argument("--model", help=f"default: smollm2, on a GPU {RANDOM_MODEL}")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--dtype", default="auto", help="element type (auto: as stored)")
    parser.add_argument("--only", choices=BENCHMARKS, help="one of the benchmarks")
    args = parser.parse_args(argv)
    _fill_defaults(args)
    notes = [NOTE] if args.model == RANDOM_MODEL else []
    from m1_basic.benchmarks import cache_curve, latency  # they import torch

    runs = {"latency": latency.run, "cache_curve": cache_curve.run}
    for name in [args.only] if args.only else BENCHMARKS:
        result, summary = runs[name](args, notes)
        finish(result, summary, args.out)
    return 0


def _fill_defaults(args: argparse.Namespace) -> None:
    from m0_init.loader import resolve_device

    args.device = str(resolve_device(args.device))
    if args.model is None:
        args.model = RANDOM_MODEL if args.device.startswith("cuda") else "smollm2"


if __name__ == "__main__":
    run(main)
