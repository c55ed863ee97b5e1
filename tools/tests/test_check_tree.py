from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.check_tree import check_text, check_tree

# In pieces, so that this file passes the check it tests.
BAD = [
    ("/wo" + "rk/main/x.py", "names a path of one machine"),
    ("see /ro" + "ot/.cache", "names a path of one machine"),
    ('"/tm' + 'p/out.json"', "names a path of one machine"),
    ("/ho" + "me/alice/x", "names a path of one machine"),
    (".." + "/shared/DESIGN.md", "outside the repository"),
    ("https://py" + "pi.org/simple", "package host"),
    ("# TO" + "DO: later", "leaves work undone"),
    ("FIX" + "ME", "leaves work undone"),
]


@pytest.mark.parametrize("line, message", BAD)
def test_what_is_refused(line: str, message: str) -> None:
    (problem,) = check_text("x.py", f"fine\n{line}\n")
    assert problem.line == 2
    assert message in problem.message


def test_tests_may_make_up_paths() -> None:
    assert list(check_text("common/tests/test_x.py", BAD[2][0] + BAD[3][0])) == []
    assert len(list(check_text("common/tests/test_x.py", BAD[0][0]))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "common/work/x",
        "build/root/a",
        "$HOME/tmp/x",
        "https://example.org/root/x",
        "a TODOs list",
        "/etc/x",
    ],
)
def test_what_passes(line: str) -> None:
    assert list(check_text("x.py", line)) == []


def test_tracked_and_new_files_are_read_and_ignored_ones_not(
    tmp_path: Path, write: Callable[[str, str], Path]
) -> None:
    subprocess.run(["git", "-C", str(tmp_path), "init", "-q"], check=True)
    write(".gitignore", "build/\n")
    for name in ("a.md", "build/a.md", "docs/assets/vendor/a.js"):
        write(name, BAD[0][0])
    (tmp_path / "b.bin").write_bytes(b"\xff\xfe\x00")
    assert [problem.page for problem in check_tree(tmp_path)] == ["a.md"]
