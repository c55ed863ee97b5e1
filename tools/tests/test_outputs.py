from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tools import output_copies, outputs, shell
from tools.docs_build.errors import DocsError

Write = Callable[[str, str], Path]


def record(write: Write, command: str, body: str, *settings: str) -> None:
    head = "".join(f"#: {setting}\n" for setting in settings)
    write("docs/outputs/x.txt", f"$ {command}\n{head}{body}")


def test_load_reads_settings(tmp_path: Path, write: Write) -> None:
    record(write, "echo a", "a\n# b\n", "show make a", "mask ^x", "mask y$", "timeout 7")
    output = outputs.load(tmp_path, "x")
    assert (output.command, output.shown, output.timeout) == ("echo a", "make a", 7.0)
    assert output.masks == ("^x", "y$")
    assert output.body == "a\n# b\n"
    assert outputs.names(tmp_path) == ["x"]


def test_load_refuses_what_it_does_not_know(tmp_path: Path, write: Write) -> None:
    record(write, "echo a", "a\n", "shows make a")
    with pytest.raises(DocsError, match="unknown setting 'shows'"):
        outputs.load(tmp_path, "x")
    write("docs/outputs/x.txt", "echo a\n")
    with pytest.raises(DocsError, match="must start with"):
        outputs.load(tmp_path, "x")


@pytest.mark.parametrize(
    "recorded, printed",
    [
        ("TTFT 120 ms, 13.5 tok/s", "TTFT   1.2 s, 9 tok/s"),
        ("peak 1,024 MiB\n----------", "peak 1.5 GiB\n-----"),
        ("host: laptop", "host: server"),
        ("a\n\n", "a"),
    ],
)
def test_numbers_units_and_masked_text_may_differ(
    tmp_path: Path, write: Write, recorded: str, printed: str
) -> None:
    record(write, "true", recorded + "\n", "mask ^host: .*")
    assert outputs.difference(outputs.load(tmp_path, "x"), printed) == []


@pytest.mark.parametrize("printed", ["The capital is Rome.", "The capital is Paris.\nmore", ""])
def test_words_and_lines_may_not(tmp_path: Path, write: Write, printed: str) -> None:
    record(write, "true", "The capital is Paris.\n")
    assert outputs.difference(outputs.load(tmp_path, "x"), printed)


def test_run_and_update(tmp_path: Path, write: Write) -> None:
    record(write, r"printf '\033[1mb\033[0m\n12%%\r34%%\n'; echo err >&2", "", "show s")
    outputs.update(outputs.load(tmp_path, "x"), tmp_path)
    updated = outputs.load(tmp_path, "x")
    assert updated.body == "b\n34%\nerr\n"
    assert updated.shown == "s"


def test_a_failing_command_is_an_error(tmp_path: Path, write: Write) -> None:
    record(write, "echo why; exit 3", "")
    with pytest.raises(DocsError, match="exited with 3: why"):
        outputs.run(outputs.load(tmp_path, "x"), tmp_path)


def test_a_slow_command_is_an_error(tmp_path: Path, write: Write) -> None:
    record(write, "sleep 30; echo late", "", "timeout 0.2")
    with pytest.raises(DocsError, match=r"longer than 0\.2 s"):
        outputs.run(outputs.load(tmp_path, "x"), tmp_path)


def test_commands_do_not_inherit_a_surrounding_make(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAKEFLAGS", "n")
    monkeypatch.setenv("ARGS", "-k x")
    environment = shell.environment()
    assert not {"MAKEFLAGS", "ARGS"} & set(environment)
    assert environment["NO_COLOR"] == "1"


PAGE = """\
<!-- output: x -->
```console
$ true
old
```
<!-- /output -->
<!-- output: x -->
"""


def test_copies_are_found_checked_and_renewed(tmp_path: Path, write: Write) -> None:
    record(write, "true", "new\n")
    (copy,) = output_copies.find(PAGE)
    assert (copy.name, copy.start, copy.end) == ("x", 1, 6)
    assert not output_copies.is_current(PAGE, copy, tmp_path)
    renewed = output_copies.renewed(PAGE, tmp_path)
    assert "old" not in renewed
    (copy,) = output_copies.find(renewed)
    assert output_copies.is_current(renewed, copy, tmp_path)
    assert output_copies.renewed(renewed, tmp_path) == renewed
    assert renewed.endswith("<!-- output: x -->\n")
