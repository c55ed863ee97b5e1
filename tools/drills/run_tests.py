"""Runs chosen tests in temporary trees, in a process apart, and brings back what became of each.

Several runs share one process: it loads torch and pytest once, and each run is a fork of it that
has imported nothing of the repository yet.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PRELOADED = ("torch", "sympy", "hypothesis", "pytest_timeout", "triton", "tokenizers", "jinja2")
SECONDS_PER_TEST = 30


@dataclass(frozen=True)
class Job:
    """One run of pytest.

    Attributes:
        tree: Where it runs.
        tests: Node ids.
        stop_early: End at the first test that fails.
    """

    tree: str
    tests: tuple[str, ...]
    stop_early: bool = False


@dataclass
class Outcomes:
    """What became of a run.

    Attributes:
        passed: Node ids of tests that passed.
        failed: Reason in one line, by node id of a test, or of a file that cannot be imported.
    """

    passed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def of(self, tests: Sequence[str]) -> Outcomes:
        """The part that belongs to some node ids: parametrised cases, classes, whole files."""

        def belongs(node: str) -> bool:
            inside = any(node == t or node.startswith((f"{t}[", f"{t}::")) for t in tests)
            # A file that cannot be imported fails every test in it.
            return inside or any(t.startswith(f"{node}::") for t in tests)

        return Outcomes(
            [node for node in self.passed if belongs(node)],
            {node: reason for node, reason in self.failed.items() if belongs(node)},
        )

    @property
    def ok(self) -> bool:
        """Something passed and nothing failed."""
        return bool(self.passed) and not self.failed


def run_jobs(root: Path, jobs: Sequence[Job]) -> list[Outcomes]:
    """Run every job; all in one process of their own.

    Args:
        root: The repository, whose ``tools`` the process uses.
        jobs: In any order; results come in the same.

    Raises:
        ConfigError: The process broke down; the last line that it said is in the message.
    """
    from common.errors import ConfigError  # not at the top: see _run

    env = {k: v for k, v in os.environ.items() if not k.startswith(("COV", "PYTEST"))}
    # Always on the CPU: a drill is graded the same on every machine.
    env |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # the plugins of notebooks alone take a second
    done = subprocess.run(
        [sys.executable, "-m", "tools.drills.run_tests"],
        cwd=root,
        env=env,
        input=json.dumps([asdict(job) for job in jobs]),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout or "nothing").strip().splitlines()[-1]
        raise ConfigError(f"the tests ended with exit code {done.returncode}, saying: {said}")
    return [Outcomes(**each) for each in json.loads(done.stdout)]


class _Recorder:
    """A pytest plugin that keeps outcomes."""

    def __init__(self) -> None:
        self.outcomes = Outcomes()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A phase of a test has ended."""
        if report.failed:
            self.outcomes.failed[report.nodeid] = _reason(report)
        elif report.passed and report.when == "call":
            self.outcomes.passed.append(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        """A file was collected, or could not be."""
        if report.failed:
            self.outcomes.failed[report.nodeid] = _reason(report)


def _reason(report: Any) -> str:
    """The error in one line: its message where pytest has one, else the last line of the text."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(crash.message) if crash is not None else str(report.longrepr)
    rows = [row.strip() for row in text.splitlines() if row.strip()]
    if not rows:
        return "no message"
    return rows[0] if crash is not None else rows[-1].removeprefix("E").strip()


def _run(job: Job) -> Outcomes:
    """Run pytest in this process, which must not have imported the repository's packages."""
    import pytest

    assert "common" not in sys.modules, "the tree's own packages would not be used"
    os.chdir(job.tree)
    sys.path[:] = [job.tree, *(p for p in sys.path if p and Path(p) != Path.cwd())]
    recorder = _Recorder()
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:unraisableexception"]
    options += ["-p", "pytest_timeout", f"--timeout={SECONDS_PER_TEST}"]
    options += ["--exitfirst"] * job.stop_early
    with _silence(Path(job.tree) / "pytest.log"):
        code = pytest.main(
            [*options, f"--rootdir={job.tree}", "-c", f"{job.tree}/pyproject.toml", *job.tests],
            plugins=[recorder],
        )
    outcomes = recorder.outcomes
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and not outcomes.failed:
        log = (Path(job.tree) / "pytest.log").read_text(encoding="utf-8", errors="replace")
        outcomes.failed[job.tests[0]] = (
            f"pytest ended with {code!r}: {' '.join(log.split())[-300:]}"
        )
    return outcomes


@contextlib.contextmanager
def _silence(log: Path) -> Iterator[None]:
    """Send what this process prints into a file, so that only the result reaches its reader."""
    sys.stdout.flush()
    kept = os.dup(1), os.dup(2)
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            os.dup2(kept[0], 1)
            os.dup2(kept[1], 2)


def _run_in_fork(job: Job) -> Outcomes:
    """Run one job in a fork; a fork that dies has failed its first test."""
    result = Path(job.tree) / "outcomes.json"
    child = os.fork()
    if child == 0:
        try:
            result.write_text(json.dumps(asdict(_run(job))), encoding="utf-8")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    if not result.is_file():
        return Outcomes(failed={job.tests[0]: "the test process died"})
    return Outcomes(**json.loads(result.read_text(encoding="utf-8")))


def main() -> None:
    """Read jobs from stdin, run them, and write their outcomes to stdout."""
    jobs = [Job(**each | {"tests": tuple(each["tests"])}) for each in json.load(sys.stdin)]
    if len(jobs) == 1:
        results = [_run(job) for job in jobs]
    else:
        for name in PRELOADED:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        gc.freeze()  # pytest collects garbage, and torch's objects would be looked at every time
        results = [_run_in_fork(job) for job in jobs]
    json.dump([asdict(each) for each in results], sys.stdout)


if __name__ == "__main__":
    main()
