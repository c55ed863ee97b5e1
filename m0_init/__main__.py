"""``python -m m0_init``: what a checkpoint holds and what it costs, before any inference."""

from __future__ import annotations

import argparse
import json
from typing import get_args

from common.cli_errors import OneLineParser, run
from common.config import DType


def main(argv: list[str]) -> int:
    """Print the report on one model. Returns the exit code.

    Raises:
        FoloError: Bad input; :func:`common.cli_errors.run` prints it in one line.
    """
    args = _parser().parse_args(argv)
    from m0_init.report import as_dict, make_report
    from m0_init.report_text import as_text

    report = make_report(
        args.model,
        dtype=args.dtype,
        device=args.device,
        prompt=args.prompt,
        memory_gib=args.memory_gib,
    )
    if args.json:
        print(json.dumps(as_dict(report), ensure_ascii=False, indent=2))
    else:
        print(as_text(report))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m m0_init",
        description="Show a checkpoint's architecture, parameters, bytes and KV cost, how many "
        "tokens of KV fit in memory, and the likeliest next tokens of a prompt.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model", default="smollm2", help="local folder, hub id, or smollm2 (default: smollm2)"
    )
    parser.add_argument(
        "--dtype",
        default="auto",
        metavar="NAME",
        help=f"element type: {', '.join(get_args(DType))} (default: auto, as stored)",
    )
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="cpu, cuda or cuda:N (default: auto, cuda where there is one)",
    )
    parser.add_argument(
        "--prompt", metavar="TEXT", help='text to continue (default: "The capital of France is")'
    )
    parser.add_argument(
        "--memory-gib",
        type=float,
        metavar="N",
        help="plan for a device with N GiB instead of this one",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


if __name__ == "__main__":
    run(main)
