from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tools import coverage_gate

Write = Callable[[str, str], Path]

TESTS = """\
import pytest

@pytest.mark.gpu
def test_marked(): ...

def test_plain(): ...

class TestBoth:
    @pytest.mark.gpu
    def test_inner(self): ...
"""


def entry(covered: int, lines: int, branches: tuple[int, int] = (0, 0)) -> dict[str, object]:
    summary = {"covered_lines": covered, "num_statements": lines}
    summary |= {"covered_branches": branches[0], "num_branches": branches[1]}
    return {"summary": summary}


def test_packages_are_summed_with_branches() -> None:
    report = {
        "files": {
            "common/a.py": entry(8, 10),
            "common/b/c.py": entry(5, 5, (1, 5)),
            "m1_basic/a.py": entry(0, 4),
            "tools/x.py": entry(0, 100),
        }
    }
    sums = coverage_gate.by_package(report, ["common", "m1_basic"])
    assert (sums["common"].covered, sums["common"].total) == (14, 20)
    assert sums["common"].percent == 70.0
    assert sums["m1_basic"].percent == 0.0


@pytest.mark.parametrize(
    "comment, message",
    [
        ("# gpu-only: m1_basic/tests/test_gpu.py::test_marked", ""),
        ("# gpu-only: m1_basic/tests/test_gpu.py::TestBoth::test_inner", ""),
        ("# gpu-only: m1_basic/tests/test_gpu.py::test_plain", "does not carry"),
        ("# gpu-only: m1_basic/tests/test_gpu.py::test_gone", "no test"),
        ("# gpu-only: m1_basic/tests/gone.py::test_x", "no test file"),
        ("# gpu-only: needs a GPU", "needs a test id"),
        ("# pragma: no cover", "only '# gpu-only"),
    ],
)
def test_exclusions_name_a_gpu_test(
    tmp_path: Path, write: Write, comment: str, message: str
) -> None:
    write("m1_basic/tests/test_gpu.py", TESTS)
    write("m1_basic/a.py", f'TEXT = "# pragma: no cover"\nx = 1  {comment}\n')
    found = list(coverage_gate.check_exclusions(tmp_path, ["m1_basic"]))
    if not message:
        assert found == []
    else:
        (problem,) = found
        assert problem.line == 2
        assert message in problem.message


def test_a_marked_module_marks_its_tests(tmp_path: Path, write: Write) -> None:
    text = "import pytest\npytestmark = [pytest.mark.gpu]\ndef test_x(): ...\n"
    write("common/tests/test_gpu.py", text)
    write("common/a.py", "x = 1  # gpu-only: common/tests/test_gpu.py::test_x\n")
    assert list(coverage_gate.check_exclusions(tmp_path, ["common"])) == []


def gate(monkeypatch: pytest.MonkeyPatch, root: Path, files: Mapping[str, object]) -> int:
    report = root / "coverage.json"
    report.write_text(json.dumps({"files": files}))
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", ["coverage_gate", str(report)])
    return coverage_gate.main()


def test_the_gate_is_per_package(
    tmp_path: Path,
    write: Write,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write("m1_basic/__init__.py", "")
    write("common/__init__.py", "")
    good = {"common/a.py": entry(90, 100), "m1_basic/a.py": entry(86, 100)}
    assert gate(monkeypatch, tmp_path, good) == 0
    assert gate(monkeypatch, tmp_path, good | {"m1_basic/a.py": entry(84, 100)}) == 1
    assert "m1_basic: 84.0 % is below 85 %" in capsys.readouterr().err


def test_a_package_that_was_not_measured_fails(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("m1_basic/__init__.py", "")
    assert gate(monkeypatch, tmp_path, {"common/a.py": entry(90, 100)}) == 1
