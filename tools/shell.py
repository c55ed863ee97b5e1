"""Runs the shell commands that pages show: bounded in time, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_OF_MAKE = {"MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "ARGS", "COVERAGE", "A", "B"}


@dataclass(frozen=True)
class Finished:
    """A command that ended or was ended.

    Attributes:
        returncode: Exit status; None when it took too long.
        output: What it printed, errors included.
    """

    returncode: int | None
    output: str

    @property
    def ok(self) -> bool:
        """Whether it ended by itself with status 0."""
        return self.returncode == 0


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment for commands of pages.

    Its own interpreter comes first on PATH, there are no colours, and nothing of a ``make`` that
    this process may run under reaches a ``make`` below it.
    """
    kept = {key: value for key, value in os.environ.items() if key not in _OF_MAKE}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    plain = {"PATH": path, "NO_COLOR": "1", "COLUMNS": "100", "TERM": "dumb"}
    return {**kept, **plain, **more}


def run(command: list[str], cwd: Path, timeout: float, env: dict[str, str]) -> Finished:
    """Run a command without input; after ``timeout`` seconds it and its children are killed."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
        code: int | None = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        code = None
    return Finished(code, output.decode("utf-8", errors="replace"))


def run_script(script: str, cwd: Path, timeout: float, env: dict[str, str]) -> Finished:
    """Run shell lines with ``bash -euo pipefail``."""
    return run(["bash", "-euo", "pipefail", "-c", script], cwd, timeout, env)
