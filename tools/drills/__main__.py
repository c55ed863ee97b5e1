"""``python -m tools.drills exercise|grade|hint STAGE``: what the make targets call."""

from __future__ import annotations

from pathlib import Path

from common.cli_errors import OneLineParser, run
from common.errors import ConfigError
from tools.drills import hints
from tools.drills.exercise import write_exercise
from tools.drills.grade import grade, report
from tools.drills.spec import choose, find_package, read_drills

ROOT = Path(__file__).resolve().parents[2]
_FOLDER = "exercises"


def main(argv: list[str]) -> int:
    """Write, grade, or tell a hint.

    Args:
        argv: Arguments without the program's name.

    Raises:
        FoloError: Bad input; :func:`common.cli_errors.run` prints it in one line.
    """
    parser = OneLineParser(prog="python -m tools.drills")
    parser.add_argument("action", choices=("exercise", "grade", "hint"))
    parser.add_argument("stage", help="m0 to m7")
    parser.add_argument("--drill", default="", help="one drill; all by default")
    parser.add_argument("--exercises", default=_FOLDER, help="folder of the working copies")
    parser.add_argument("--level", default="", help="which hint; the next one by default")
    parser.add_argument("--force", default="", help="1 writes over a copy that is there")
    args = parser.parse_args(argv)
    drills = read_drills(ROOT, find_package(ROOT, args.stage))
    only = choose(drills, args.drill) if args.drill else None
    copy = Path(args.exercises) / drills[0].package
    if args.action == "exercise":
        force = _force(args.force)
        write_exercise(ROOT, drills, copy.parent, only=only, force=force)
        blanked = [only] if only else list(drills)
        print(f"{copy}, functions to write: {len(blanked)}")
        for drill in blanked:
            print(f"  {drill.id} · {drill.minutes} min · {copy / drill.path}, {drill.symbol}")
        where = "" if args.exercises == _FOLDER else f" EXERCISES={args.exercises}"
        print(f"grade it with: make {drills[0].stage}-grade{where}")
    elif args.action == "grade":
        chosen = [only] if only else list(drills)
        print("\n".join(report(chosen, grade(ROOT, chosen, copy), copy)))
    else:
        if only is None:
            known = ", ".join(drill.id for drill in drills)
            raise ConfigError(f"name a drill with DRILL=…: {known}")
        print("\n".join(hints.tell(only, copy, _level(args.level))))
    return 0


def _force(text: str) -> bool:
    if text not in ("", "0", "1"):
        raise ConfigError(f"FORCE is 1 or nothing, got {text!r}")
    return text == "1"


def _level(text: str) -> int | None:
    if text and not text.isdigit():
        raise ConfigError(f"LEVEL is a number, got {text!r}")
    return int(text) if text else None


if __name__ == "__main__":
    run(main)
