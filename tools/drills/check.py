"""Holds a stage's drills to their promise: blanked they fail, as written they pass, and every
listed wrong answer is caught by the test that is named for it.
"""  # noqa: D205 (one sentence)

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tools.drills.rewrite import blank, wrong_text
from tools.drills.run_tests import Job, Outcomes, run_jobs
from tools.drills.spec import Drill, read_drills
from tools.drills.tree import build_tree

Judge = Callable[[Outcomes], str | None]
"""Says what is wrong with the outcomes of one run, or None."""


def check_stage(root: Path, package: str, folder: Path) -> list[str]:
    """Run every variant of a stage's drills.

    Args:
        root: The repository.
        package: The stage.
        folder: An empty folder for the trees.

    Returns:
        Complaints; none if all is as promised.
    """
    drills = read_drills(root, package)
    jobs: list[Job] = []
    judges: list[Judge] = []

    def add(files: dict[str, str], tests: tuple[str, ...], judge: Judge, *, early: bool) -> None:
        tree = folder / str(len(jobs))
        tree.mkdir()
        build_tree(root, tree, files)
        jobs.append(Job(str(tree), tests, early))
        judges.append(judge)

    texts = {d.source: (root / d.source).read_text(encoding="utf-8") for d in drills}
    tests = _all_tests(drills)
    add(texts, tests, _all_pass(tests), early=False)
    for drill in drills:
        blanked = blank(texts[drill.source], [drill])
        add({drill.source: blanked}, drill.tests, _fails_as_blank(drill), early=True)
        for answer in drill.wrong:
            text = wrong_text(root, drill, answer)
            judge = _is_caught(drill, answer.misconception)
            add({drill.source: text}, (answer.caught_by,), judge, early=True)
    outcomes = run_jobs(root, jobs)
    found = [judge(each) for judge, each in zip(judges, outcomes, strict=True)]
    return [f"{package} {complaint}" for complaint in found if complaint is not None]


def _all_tests(drills: tuple[Drill, ...]) -> tuple[str, ...]:
    tests = [test for drill in drills for test in drill.tests]
    tests += [answer.caught_by for drill in drills for answer in drill.wrong]
    return tuple(dict.fromkeys(tests))


def _all_pass(tests: tuple[str, ...]) -> Judge:
    def judge(outcomes: Outcomes) -> str | None:
        if outcomes.failed:
            return f"as written: {outcomes.failed}"
        missing = [test for test in tests if not outcomes.of([test]).ok]
        return f"as written, did not run: {missing}" if missing else None

    return judge


def _fails_as_blank(drill: Drill) -> Judge:
    def judge(outcomes: Outcomes) -> str | None:
        reasons = " ".join(outcomes.failed.values())
        return None if f"drill {drill.id}:" in reasons else f"{drill.id}, blanked: {outcomes}"

    return judge


def _is_caught(drill: Drill, misconception: str) -> Judge:
    def judge(outcomes: Outcomes) -> str | None:
        # A mistake is a wrong result, not a text that cannot be run.
        broken = ("SyntaxError", "NameError", "IndentationError")
        reasons = " ".join(outcomes.failed.values())
        if outcomes.failed and not any(name in reasons for name in broken):
            return None
        return f"{drill.id}, {misconception!r}: {outcomes}"

    return judge
