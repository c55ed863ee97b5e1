"""The parts of a package as its source declares them: classes, functions, what they come from.

Everything is read with ``ast``, so that a page about a stage needs neither torch nor a GPU.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tools.docs_build.reference import modules
from tools.griffe_roles import plain

_SILENT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
_Function = (ast.FunctionDef, ast.AsyncFunctionDef)
_Documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

HEAD = ""
"""The member that stands for a class's first line and its fields."""


@dataclass(frozen=True)
class Part:
    """A class or function at the top of a module.

    Attributes:
        module: Dotted name of its module.
        name: Its own name.
        kind: ``class`` or ``function``.
        lines: Lines of code, without docstrings, comments and blank lines.
        bases: Dotted names of its bases, as far as they are known.
        members: Source by name without docstrings: the methods of a class, and under :data:`HEAD`
            what stands between them; of a function only itself.
    """

    module: str
    name: str
    kind: str
    lines: int
    bases: tuple[str, ...]
    members: Mapping[str, str]

    @property
    def symbol(self) -> str:
        """``module.name``."""
        return f"{self.module}.{self.name}"

    @property
    def path(self) -> str:
        """Its file in the repository."""
        return self.module.replace(".", "/") + ".py"

    @property
    def package(self) -> str:
        """The stage, or ``common``."""
        return self.module.partition(".")[0]


@dataclass(frozen=True)
class Module:
    """A module of a package.

    Attributes:
        name: Dotted.
        summary: First sentence of its docstring.
        lines: Lines of code.
        parts: Its public classes and functions by name, in order.
        uses: Dotted names imported from other packages of the project, by their local name.
    """

    name: str
    summary: str
    lines: int
    parts: Mapping[str, Part]
    uses: Mapping[str, str]


@dataclass
class Parts:
    """The packages of a checkout, each read when it is first asked for.

    Attributes:
        root: The checkout.
    """

    root: Path
    _read: dict[str, tuple[Module, ...]] = field(default_factory=dict)

    @cached_property
    def packages(self) -> tuple[str, ...]:
        """``common`` and the stages, lowest first."""
        stages = sorted(path.parent.name for path in self.root.glob("m[0-9]_*/__init__.py"))
        return ("common", *stages)

    def modules(self, package: str) -> tuple[Module, ...]:
        """The public modules of a package; tests, benchmarks and examples are no part of it."""
        if package not in self._read:
            names = modules(self.root, package)
            self._read[package] = tuple(_module(self.root, n, self.packages) for n in names)
        return self._read[package]

    def of(self, package: str) -> Iterator[Part]:
        """Every public part of a package."""
        for module in self.modules(package):
            yield from module.parts.values()

    def find(self, symbol: str) -> Part | None:
        """Return the part ``module.name``, or None."""
        name, _, last = symbol.rpartition(".")
        package = name.partition(".")[0]
        if package not in self.packages:
            return None
        found = (m.parts.get(last) for m in self.modules(package) if m.name == name)
        return next(found, None)


def _module(root: Path, name: str, packages: tuple[str, ...]) -> Module:
    text = (root / (name.replace(".", "/") + ".py")).read_text(encoding="utf-8")
    tree = ast.parse(text)
    counted, source = _code_lines(tree, text), text.splitlines()
    package = name.partition(".")[0]
    imported = _imports(tree, packages)
    uses = {k: v for k, v in imported.items() if v.partition(".")[0] != package}
    own = {node.name: f"{name}.{node.name}" for node in tree.body if isinstance(node, ast.ClassDef)}
    names = {**imported, **own}
    parts = {
        node.name: _part(node, name, names, counted, source)
        for node in tree.body
        if isinstance(node, (ast.ClassDef, *_Function)) and not node.name.startswith("_")
    }
    return Module(name, _first_sentence(ast.get_docstring(tree) or ""), len(counted), parts, uses)


def _imports(tree: ast.Module, packages: tuple[str, ...]) -> dict[str, str]:
    """Names imported from a module of the project, by their local name."""
    return {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        if node.module.partition(".")[0] in packages
        for alias in node.names
    }


def _part(
    node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
    module: str,
    names: Mapping[str, str],
    counted: set[int],
    source: list[str],
) -> Part:
    start, end = _span(node)
    lines = len(counted.intersection(range(start, end + 1)))
    dropped = _docstring_lines(node)
    if not isinstance(node, ast.ClassDef):
        members = {node.name: _text(range(start, end + 1), dropped, source)}
        return Part(module, node.name, "function", lines, (), members)
    bases = tuple(names.get(_base(b), _base(b)) for b in node.bases)
    return Part(module, node.name, "class", lines, bases, _members(node, dropped, source))


def _base(node: ast.expr) -> str:
    return ast.unparse(node.value if isinstance(node, ast.Subscript) else node)


def _members(node: ast.ClassDef, dropped: set[int], source: list[str]) -> dict[str, str]:
    start, end = _span(node)
    methods = [n for n in node.body if isinstance(n, _Function)]
    rest = set(range(start, end + 1)).difference(*(range(a, b + 1) for a, b in map(_span, methods)))
    members = {HEAD: _text(sorted(rest), dropped, source)}
    for method in methods:  # a property and its setter share a name
        first, last = _span(method)
        text = _text(range(first, last + 1), dropped, source)
        members[method.name] = members.get(method.name, "") + text
    return members


def _text(numbers: range | list[int], dropped: set[int], source: list[str]) -> str:
    kept = [source[n - 1] for n in numbers if n not in dropped]
    return "".join(f"{line}\n" for line in kept if line.strip())


def _span(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[int, int]:
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    return first, node.end_lineno or node.lineno


def _docstring_lines(tree: ast.AST) -> set[int]:
    """Lines of docstrings, those below a field included."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        for item in node.body if isinstance(node, _Documented) else ():
            match item:
                case ast.Expr(value=ast.Constant(value=str())):
                    lines.update(range(item.lineno, (item.end_lineno or item.lineno) + 1))
    return lines


def _code_lines(tree: ast.Module, text: str) -> set[int]:
    """Numbers of the lines that hold code: no docstring, no comment, not blank."""
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _SILENT:
            found.update(range(token.start[0], token.end[0] + 1))
    return found - _docstring_lines(tree)


def _first_sentence(docstring: str) -> str:
    paragraph = " ".join(docstring.partition("\n\n")[0].split())
    return plain(re.split(r"(?<=\.) (?=[A-Z])", paragraph, maxsplit=1)[0])
