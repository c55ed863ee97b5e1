from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tools import page_commands

Write = Callable[[str, str], Path]


def block(info: str, body: str = "echo hi") -> str:
    return f"```{info}\n{body}\n```\n"


def test_blocks_of_every_page_are_collected_once(tmp_path: Path, write: Write) -> None:
    write("README.md", block("bash"))
    write("m1_basic/README.md", block("bash", "echo hi") + block("text", "echo no"))
    write("docs/a.md", "text\n" + block('bash no-run reason="needs-gpu" timeout="9"', "nvcc"))
    found = page_commands.commands(tmp_path)
    assert [(c.page, c.line, c.reason, c.timeout) for c in found] == [
        ("README.md", 1, "", 300.0),
        ("docs/a.md", 2, "needs-gpu", 9.0),
    ]
    assert found[0].title == "README.md:1 echo hi"


@pytest.mark.parametrize(
    "text, message",
    [
        (block("bash", " "), "empty"),
        (block("bash no-run"), "go together"),
        (block('bash reason="needs-gpu"'), "go together"),
        (block('bash no-run reason="lazy"'), "'lazy' is none of"),
        (block('bash timeout="soon"'), "whole seconds"),
        (block("bash skip"), "cannot read"),
        (block("sh"), "call 'sh' blocks bash"),
        (block("shell"), "call 'shell' blocks bash"),
        (block('bash no-run reason="long"', "make everything"), ".ci/run does not call it"),
        (block('bash no-run reason="long"', "python x.py"), ".ci/run does not call it"),
        (block('bash no-run reason="long"', "make test other"), ".ci/run does not call it"),
    ],
)
def test_what_is_refused(tmp_path: Path, write: Write, text: str, message: str) -> None:
    write(".ci/run", "make test\n")
    write("README.md", text)
    (problem,) = page_commands.problems(tmp_path)
    assert message in problem.message


def test_a_long_block_of_ci_targets_passes(tmp_path: Path, write: Write) -> None:
    write(".ci/run", "step make test COVERAGE=1\nx=$(make demo)\nmake docs check-docs\n")
    assert page_commands.ci_targets(tmp_path) == {"test", "demo", "docs", "check-docs"}
    body = "make demo  # first\n# a comment\nmake test ARGS='-k x'\nmake docs"
    write("README.md", block('bash no-run reason="long"', body))
    assert list(page_commands.problems(tmp_path)) == []


def test_what_needs_further_packages_is_not_run(tmp_path: Path, write: Write) -> None:
    write(".ci/run", "make test\n")
    write("README.md", block('bash no-run reason="needs-index"', "make gptq-oracle"))
    (command,) = page_commands.commands(tmp_path)
    assert command.reason == "needs-index"
    assert list(page_commands.problems(tmp_path)) == []


def test_blocks_run_in_the_checkout_with_smoke_sizes(tmp_path: Path) -> None:
    script = 'pwd; echo "smoke=$SMOKE"; python -c "import sys; print(sys.prefix)"'
    command = page_commands.PageCommand("p.md", 1, "bash", script, "", 60)
    done = page_commands.run(command, tmp_path)
    assert done.output.splitlines() == [str(tmp_path), "smoke=1", sys.prefix]


def test_python_of_readmes_runs_and_of_pages_does_not(tmp_path: Path, write: Write) -> None:
    write("README.md", block("python", "import sys; print(sys.prefix)"))
    write("docs/a.md", block("python", "fragment(") + block('python title="x"', "y"))
    (command,) = page_commands.commands(tmp_path)
    assert page_commands.run(command, tmp_path).output.strip() == sys.prefix
    assert list(page_commands.problems(tmp_path)) == []


def test_a_failing_line_fails_the_block(tmp_path: Path) -> None:
    command = page_commands.PageCommand("p.md", 1, "bash", "false\necho after", "", 60)
    done = page_commands.run(command, tmp_path)
    assert not done.ok
    assert "after" not in done.output
