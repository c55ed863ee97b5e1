"""Pulls a function, class or method out of a source file, so that pages never hold a stale copy."""

from __future__ import annotations

import ast
import textwrap
from dataclasses import dataclass
from pathlib import Path

from tools.docs_build.errors import DocsError

_Symbol = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign
_DOCUMENTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class Snippet:
    """A piece of source.

    Attributes:
        code: The text, dedented.
        first_line: 1-based line of the file where it starts.
        last_line: Line where it ends, inclusive.
    """

    code: str
    first_line: int
    last_line: int


def extract(
    path: Path,
    symbol: str | None = None,
    *,
    docstring: bool = True,
    start: str | None = None,
    stop: str | None = None,
) -> Snippet:
    """Return the source of a symbol, decorators included.

    Args:
        path: A Python file.
        symbol: ``function``, ``Class``, ``Class.method`` or a module-level name; None for the file.
        docstring: False leaves out the docstrings of the symbol and of what it contains.
        start: Begin at the first line that contains this text.
        stop: End at the first line, at or after ``start``, that contains this text (inclusive).

    Raises:
        DocsError: The file, the symbol or a text is not there.
    """
    if not path.is_file():
        raise DocsError(f"no file {path.name!r} at the path given")
    text = path.read_text(encoding="utf-8")
    source = text.splitlines()
    tree = ast.parse(text)
    first, last = 1, len(source)
    root: ast.AST = tree
    if symbol is not None:
        node = _find(tree, symbol, path)
        root = node
        first, last = _first_line(node), node.end_lineno or node.lineno
    dropped = set() if docstring else _docstring_lines(root, source)
    first, last = _slice(source, first, last, start, stop, path)
    kept = [source[n - 1] for n in range(first, last + 1) if n not in dropped]
    return Snippet(textwrap.dedent("\n".join(kept)).strip("\n") + "\n", first, last)


def _find(tree: ast.Module, symbol: str, path: Path) -> _Symbol:
    scope: ast.Module | _Symbol = tree
    for name in symbol.split("."):
        body = getattr(scope, "body", [])
        found = next((n for n in body if isinstance(n, _Symbol) and name in _names(n)), None)
        if found is None:
            raise DocsError(f"no {symbol!r} in {path.name}")
        scope = found
    assert isinstance(scope, _Symbol)
    return scope


def _names(node: _Symbol) -> set[str]:
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    if isinstance(node, ast.AnnAssign):
        return {node.target.id} if isinstance(node.target, ast.Name) else set()
    return {node.name}


def _first_line(node: _Symbol) -> int:
    decorators = node.decorator_list if isinstance(node, _DOCUMENTED) else []
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _docstring_lines(root: ast.AST, source: list[str]) -> set[int]:
    dropped: set[int] = set()
    for node in ast.walk(root):
        if not isinstance(node, (*_DOCUMENTED, ast.Module)) or ast.get_docstring(node) is None:
            continue
        doc = node.body[0]
        if len(node.body) == 1 or doc.lineno == getattr(node, "lineno", 0):
            continue
        end = doc.end_lineno or doc.lineno
        dropped.update(range(doc.lineno, end + 1))
        if end < len(source) and not source[end].strip():
            dropped.add(end + 1)
    return dropped


def _slice(
    source: list[str], first: int, last: int, start: str | None, stop: str | None, path: Path
) -> tuple[int, int]:
    if start is not None:
        first = _line_with(source, first, last, start, path)
    if stop is not None:
        last = _line_with(source, first, last, stop, path)
    return first, last


def _line_with(source: list[str], first: int, last: int, text: str, path: Path) -> int:
    for number in range(first, last + 1):
        if text in source[number - 1]:
            return number
    raise DocsError(f"no line containing {text!r} in {path.name}, lines {first} to {last}")
