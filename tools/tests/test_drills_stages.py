"""What the stages list as drills: all of it by reading, two stages by running their tests.

``tools/docs_tests/test_drills.py`` runs the other stages, which takes minutes.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tools.docs_build.source import extract
from tools.drills.check import check_stage
from tools.drills.rewrite import blank, wrong_text
from tools.drills.spec import DRILLS, Drill, read_drills

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = sorted(path.parent.name for path in ROOT.glob(f"m[0-9]_*/{DRILLS}"))
QUICK = ("m5_chunked", "m6_prefix")
ALL = [drill for package in PACKAGES for drill in read_drills(ROOT, package)]


def name_of(drill: Drill) -> str:
    return f"{drill.stage}-{drill.id}"


def test_every_stage_has_five_drills_at_least() -> None:
    assert len(PACKAGES) == 8
    assert len(ALL) >= 40
    for package in PACKAGES:
        drills = [drill for drill in ALL if drill.package == package]
        assert len(drills) >= 5
        assert sum(len(drill.wrong) for drill in drills) >= 1.5 * len(drills)


@pytest.mark.parametrize("drill", ALL, ids=name_of)
def test_an_entry_is_complete(drill: Drill) -> None:
    assert 2 <= len(drill.hints) <= 4
    assert 5 <= drill.minutes <= 45
    assert drill.wrong
    assert drill.title
    assert drill.teaches
    assert drill.task.endswith(".")
    assert all(hint.endswith(".") for hint in drill.hints)


@pytest.mark.parametrize("drill", ALL, ids=name_of)
def test_its_blank_and_its_wrong_answers_are_python(drill: Drill) -> None:
    source = (ROOT / drill.source).read_text(encoding="utf-8")
    others = [
        source,
        blank(source, [drill]),
        *(wrong_text(ROOT, drill, each) for each in drill.wrong),
    ]
    for text in others:
        ast.parse(text)
    assert len(set(others)) == len(others)


@pytest.mark.parametrize("drill", ALL, ids=name_of)
def test_its_tests_are_there_and_catch_what_they_are_named_for(drill: Drill) -> None:
    for node in (*drill.tests, *(answer.caught_by for answer in drill.wrong)):
        path, _, symbol = node.split("[")[0].partition("::")
        assert (ROOT / path).is_file(), node
        if symbol:
            extract(ROOT / path, symbol.replace("::", "."))
    for answer in drill.wrong:
        inside = [t for t in drill.tests if answer.caught_by.startswith((t, f"{t}::", f"{t}["))]
        assert inside, f"{answer.caught_by} does not grade {drill.id}"


@pytest.mark.parametrize("package", QUICK)
def test_blanks_fail_and_every_wrong_answer_is_caught(package: str, tmp_path: Path) -> None:
    assert check_stage(ROOT, package, tmp_path) == []
