"""``python -m tools.scenarios record|check [ID …]``: record the scenarios, or compare with files.

``record`` writes ``docs/traces/ID.json`` (``ID-a.json`` and ``ID-b.json`` for two engines);
``check`` records again and says where the files differ. Both take all scenarios where none is
named, and say of each question what its answer is.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from common.errors import FoloError
from common.trace import Trace
from tools.docs_build.errors import DocsError
from tools.scenarios.catalogue import SIDES, TRACES_DIR, Scenario, load_catalogue, scenario
from tools.scenarios.questions import question
from tools.scenarios.record import make_model, record


def main() -> int:
    """Run one command; returns 1 where something differs or cannot be recorded."""
    parser = argparse.ArgumentParser(prog="python -m tools.scenarios", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("command", choices=["record", "check"])
    parser.add_argument("ids", nargs="*", help="scenarios (default: all)")
    args = parser.parse_args()
    root, failed = Path.cwd(), 0
    with tempfile.TemporaryDirectory() as scratch:
        try:
            model = make_model(Path(scratch))
            known = load_catalogue(root)
            for name in args.ids or known:
                item = scenario(root, name)
                failed += _run(root, item, model, write=args.command == "record")
        except (DocsError, FoloError) as error:
            print(error, file=sys.stderr)
            return 1
    return 1 if failed else 0


def _run(root: Path, item: Scenario, model: Path, *, write: bool) -> int:
    """Record one scenario; returns how many files differ from what was recorded."""
    traces, different = record(item, model), 0
    for run, name, trace in zip(item.run, item.files(), traces, strict=True):
        path = root / TRACES_DIR / name
        if write:
            trace.write(path)
            state = "recorded"
        else:
            same = path.is_file() and Trace.read(path) == trace
            different += not same
            state = "ok" if same else "differs"
        print(f"{state:9} {name:26} {run.stage:12} {len(trace):3} steps")
    for mark in item.mark:
        asked = question(traces[SIDES.index(mark.side)], mark)
        print(f"{'':9} {mark.side} step {mark.step:3}: {asked.ask} {asked.answer}")
    return different


if __name__ == "__main__":
    sys.exit(main())
