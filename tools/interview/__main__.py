"""``python -m tools.interview``: asks interview questions at the terminal (``make interview``)."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from common.cli_errors import OneLineParser, run
from common.errors import ConfigError
from tools.interview.numbers import MODELS
from tools.interview.schema import STAGES, THEMES, Question, load_questions
from tools.interview.session import Session, summary

ROOT = Path(__file__).resolve().parents[2]


def arguments(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = OneLineParser(
        prog="python -m tools.interview", description="Ask interview questions.", allow_abbrev=False
    )
    parser.add_argument("--stage", choices=STAGES, help="questions of one stage (default: all)")
    parser.add_argument("--theme", choices=THEMES, help="questions of one theme (default: all)")
    parser.add_argument("--count", type=_at_least_one, help="how many (default: all that match)")
    parser.add_argument("--seed", type=int, help="shuffle and draw models in a repeatable way")
    parser.add_argument(
        "--in-order", action="store_true", help="as they stand in the files, not shuffled"
    )
    parser.add_argument(
        "--model", choices=tuple(MODELS), help="model of numeric questions (default: drawn)"
    )
    return parser.parse_args(argv)


def _at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def chosen(
    questions: Sequence[Question], args: argparse.Namespace, rng: random.Random
) -> list[Question]:
    """The questions of a session, in the order they are asked.

    Raises:
        ConfigError: None matches.
    """
    wanted = {key: getattr(args, key) for key in ("stage", "theme") if getattr(args, key)}
    matching = [q for q in questions if all(getattr(q, k) == v for k, v in wanted.items())]
    if not matching:
        asked_for = " and ".join(f"{key} {value}" for key, value in wanted.items())
        raise ConfigError(f"no question of {asked_for or 'any stage'}")
    if not args.in_order:
        rng.shuffle(matching)
    return matching[: args.count]


def main(argv: list[str]) -> int:
    """Ask, and sum up."""
    args = arguments(argv)
    rng = random.Random(args.seed)
    questions = chosen(load_questions(ROOT), args, rng)
    session = Session(ROOT, args.model, rng, read=_read, write=_write)
    score = session.run(questions)
    for line in ("", *summary(score)):
        _write(line)
    return 0


def _read(sign: str) -> str:
    """A line of the input. At a terminal ``input`` gives it editing; a pipe shows what it said."""
    line = input(sign)
    if not sys.stdin.isatty():
        print(line)
    return line


def _write(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    run(main)
