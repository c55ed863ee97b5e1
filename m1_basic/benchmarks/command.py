"""The command line of the benchmarks of M1 and every later stage."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from typing import NoReturn

from common.bench import add_bench_arguments, finish
from common.cli_errors import OneLineParser, run
from common.random_model import NOTE, RANDOM_MODEL


def main_for(stage: str, names: Sequence[str]) -> NoReturn:
    """Run benchmarks of ``stage`` and exit.

    Args:
        stage: Folder name of the stage.
        names: Modules of ``<stage>.benchmarks`` with ``run(args, notes) -> (Result, summary)``.
    """
    run(lambda argv: bench(stage, names, argv))


def bench(stage: str, names: Sequence[str], argv: list[str]) -> int:
    """Run the benchmarks asked for and write one result file each. Returns the exit code.

    Raises:
        FoloError: Bad input.
    """
    parser = OneLineParser(
        prog=f"python -m {stage}.benchmarks", description=f"Benchmarks of {stage}."
    )
    add_bench_arguments(parser)
    parser.add_argument("--model", help=f"default: smollm2, on a GPU {RANDOM_MODEL}")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--dtype", default="auto", help="element type (auto: as stored)")
    parser.add_argument("--only", choices=names, help="one of the benchmarks")
    args = parser.parse_args(argv)
    _fill_defaults(args)
    notes = [NOTE] if args.model == RANDOM_MODEL else []
    for name in [args.only] if args.only else names:
        module = importlib.import_module(f"{stage}.benchmarks.{name}")
        result, summary = module.run(args, notes)
        finish(result, summary, args.out)
    return 0


def _fill_defaults(args: argparse.Namespace) -> None:
    """A GPU where there is one, and a model that suits it."""
    from m0_init.loader import resolve_device  # it imports torch

    args.device = str(resolve_device(args.device))
    if args.model is None:
        args.model = RANDOM_MODEL if args.device.startswith("cuda") else "smollm2"
