"""Examples, page commands, recorded outputs and notebook sources, run for real."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tools import notebooks, outputs, page_commands, shell

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted(ROOT.glob("m[0-9]_*/examples/*.py"))
COMMANDS = [command for command in page_commands.commands(ROOT) if not command.reason]
NOTEBOOK_SOURCES = notebooks.sources(ROOT)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_example_runs_at_smoke_size(example: Path) -> None:
    command = [sys.executable, str(example), "--smoke"]
    done = shell.run(command, ROOT, 300, shell.environment())
    assert done.ok, done.output
    assert done.output.strip(), "an example prints what it shows"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.title)
def test_page_command_runs(command: page_commands.PageCommand) -> None:
    done = page_commands.run(command, ROOT)
    assert done.ok, f"{command.script}\nexit status {done.returncode}\n{done.output}"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", outputs.names(ROOT))
def test_recorded_output_is_what_the_command_prints(name: str) -> None:
    output = outputs.load(ROOT, name)
    difference = outputs.difference(output, outputs.run(output, ROOT))
    assert not difference, "\n".join(difference)


def test_notebooks_agree_with_their_sources() -> None:
    assert notebooks.problems(ROOT) == []


def test_pages_hold_no_malformed_commands() -> None:
    assert list(page_commands.problems(ROOT)) == []
