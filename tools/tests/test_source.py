from __future__ import annotations

from pathlib import Path

import pytest

from tools.docs_build.errors import DocsError
from tools.docs_build.source import extract

CODE = '''\
"""Module."""

LIMIT: int = 3
NAMES = ("a", "b")


def deco(f):
    return f


@deco
def add(a, b):
    """Add.

    More.
    """
    c = a + b

    return c


class Box:
    """A box."""

    size = 2

    @property
    def area(self) -> int:
        """Area."""
        return self.size ** 2

    def only_doc(self) -> None:
        """Nothing else."""
'''


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "module.py"
    path.write_text(CODE)
    return path


def test_function_starts_at_its_decorator(module: Path) -> None:
    snippet = extract(module, "add")
    assert snippet.code.startswith("@deco\ndef add(a, b):\n")
    assert (snippet.first_line, snippet.last_line) == (11, 19)
    assert snippet.code.endswith("    return c\n")


def test_method_is_dedented(module: Path) -> None:
    assert extract(module, "Box.area").code.splitlines()[:2] == [
        "@property",
        "def area(self) -> int:",
    ]


def test_docstring_can_be_left_out(module: Path) -> None:
    code = extract(module, "add", docstring=False).code
    assert code == "@deco\ndef add(a, b):\n    c = a + b\n\n    return c\n"


def test_leaving_docstrings_out_reaches_into_a_class_but_keeps_bodies(module: Path) -> None:
    code = extract(module, "Box", docstring=False).code
    assert "A box" not in code
    assert "Area" not in code
    assert "Nothing else" in code


@pytest.mark.parametrize(
    "name, text", [("LIMIT", "LIMIT: int = 3\n"), ("NAMES", 'NAMES = ("a", "b")\n')]
)
def test_module_level_names(module: Path, name: str, text: str) -> None:
    assert extract(module, name).code == text


def test_whole_file(module: Path) -> None:
    assert extract(module).code == CODE


def test_line_filter(module: Path) -> None:
    snippet = extract(module, "add", start="c = a", stop="return")
    assert snippet.code == "c = a + b\n\nreturn c\n"
    assert snippet.first_line == 17


@pytest.mark.parametrize("symbol", ["gone", "Box.gone", "add.gone"])
def test_missing_symbol_is_named(module: Path, symbol: str) -> None:
    with pytest.raises(DocsError, match=f"no '{symbol}' in module.py"):
        extract(module, symbol)


def test_missing_filter_text_is_named(module: Path) -> None:
    with pytest.raises(DocsError, match="no line containing 'zzz'"):
        extract(module, "add", start="zzz")
    with pytest.raises(DocsError, match="lines 17 to 19"):
        extract(module, "add", start="c = a", stop="def add")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DocsError, match=r"gone\.py"):
        extract(tmp_path / "gone.py", "x")
