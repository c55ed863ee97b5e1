"""Grades a working copy with the repository's tests, and says what to do next."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common.errors import ConfigError
from tools.drills import hints
from tools.drills.run_tests import Job, Outcomes, run_jobs
from tools.drills.spec import Drill
from tools.drills.tree import build_tree, copied_files

_BLANK = re.compile(r"drill ([\w-]+): not written yet")


def grade(root: Path, drills: Sequence[Drill], copy: Path) -> dict[str, Outcomes]:
    """Run the drills' tests against a working copy, which is only read.

    Args:
        root: The repository.
        drills: Drills of one stage.
        copy: The working copy.

    Returns:
        Outcomes by drill.

    Raises:
        ConfigError: There is no copy.
    """
    package = drills[0].package
    if not copy.is_dir():
        raise ConfigError(f"no working copy at {copy}: make {drills[0].stage}-exercise writes one")
    tests = tuple(dict.fromkeys(test for drill in drills for test in drill.tests))
    with tempfile.TemporaryDirectory(prefix="drills-") as folder:
        build_tree(root, Path(folder), copied_files(copy, package))
        (outcomes,) = run_jobs(root, [Job(folder, tests)])
    return {drill.id: outcomes.of(drill.tests) for drill in drills}


def report(drills: Sequence[Drill], graded: dict[str, Outcomes], copy: Path) -> list[str]:
    """The grade as lines of text."""
    passed = [drill for drill in drills if graded[drill.id].ok]
    lines = [f"{drills[0].package}: {len(passed)} of {len(drills)} drills pass"]
    seen = hints.seen(copy)
    width = max(len(drill.id) for drill in drills)
    for drill in drills:
        mark = "pass" if drill in passed else "FAIL"
        lines.append(f"  {mark}  {drill.id:{width}}  {drill.minutes:3d} min  {drill.title}")
        if drill not in passed:
            lines += [f"        {row}" for row in _why(drill, graded[drill.id])]
            lines.append(f"        {_next_hint(drill, seen.get(drill.id, 0))}")
    return lines


def _why(drill: Drill, outcomes: Outcomes) -> list[str]:
    """The first failing test's reason, and what often lies behind it."""
    if not outcomes.failed:
        return ["none of its tests ran"]
    blank = {match[1] for reason in outcomes.failed.values() if (match := _BLANK.search(reason))}
    if drill.id in blank:
        return [f"not written yet: {drill.path}, {drill.symbol}"]
    node, reason = next(iter(outcomes.failed.items()))
    counts = f"{len(outcomes.failed)} of {len(outcomes.failed) + len(outcomes.passed)} tests fail"
    rows = [f"{counts}, first {node.split('/')[-1]}", _shortened(reason)]
    if blank:
        rows.append(f"it stands on {', '.join(sorted(blank))}, not written yet")
        return rows
    believed = [
        answer.misconception
        for answer in drill.wrong
        if any(f.startswith(answer.caught_by) for f in outcomes.failed)
    ]
    return [*rows, *(f"often behind it: {text}" for text in believed[:1])]


def _next_hint(drill: Drill, level: int) -> str:
    if level >= len(drill.hints):
        return f"all {level} hints are told; the answer is {drill.source}, {drill.symbol}"
    command = f"make {drill.stage}-hint DRILL={drill.id}"
    return f"hint {level + 1} of {len(drill.hints)}: {command}"


def _shortened(text: str, width: int = 110) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
