"""Reference pages from the source: API sections for mkdocstrings, tables of dataclass fields."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tools.docs_build.errors import DocsError
from tools.docs_build.values import NBSP, format_value

if TYPE_CHECKING:
    from common.qwen3 import Constant

_SKIPPED_FOLDERS = {"tests", "benchmarks", "examples", "__pycache__"}
_ENTRY = re.compile(r"^(?P<name>\w+)(?: \([^)]*\))?: (?P<text>.*)$")


def modules(root: Path, package: str) -> list[str]:
    """Return the dotted names of a package's public modules, its folders walked, sorted.

    Tests, benchmarks, examples, ``__init__`` and ``__main__`` are left out.
    """
    found = []
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if path.stem.startswith("_") or _SKIPPED_FOLDERS.intersection(parts):
            continue
        found.append(".".join(parts))
    return found


def api_pages(root: Path, package: str) -> list[str]:
    """Return one section for mkdocstrings per module of a package.

    Raises:
        DocsError: The package has no module.
    """
    names = modules(root, package)
    if not names:
        raise DocsError(f"no modules in package {package!r}")
    lines: list[str] = []
    for name in names:
        lines += [f"## `{name}` {{#{name.replace('.', '-')}}}", "", f"::: {name}", ""]
    return lines


def engine_table(stage: str) -> list[str]:
    """Return a table of the engine options that a stage has, from the option table of ``common``.

    Raises:
        DocsError: There is no such stage.
    """
    from common.config import STAGES, options_of

    if stage not in STAGES:
        raise DocsError(f"no stage {stage!r} in common/config.py")
    lines = ["| option | values | default | meaning |", "| --- | --- | --- | --- |"]
    for row in options_of(stage):
        values = (
            [*row.choices] if row.value_type is str and row.choices else [row.value_type.__name__]
        )
        values += [*row.choices] if row.value_type is not str else []
        values += ["None"] if row.optional else []
        cells = [_option(row.name), ", ".join(f"`{value}`" for value in values)]
        lines.append(_row([*cells, f"`{row.default!r}`"], row.help))
    return lines


def constants_table(constants: Mapping[str, Constant], prefix: str) -> list[str]:
    """Return a table of the constants sheet: name, value, meaning.

    Args:
        constants: ``common.qwen3.CONSTANTS``.
        prefix: Only names that start with it.

    Raises:
        DocsError: No constant starts with the prefix.
    """
    chosen = {name: c for name, c in constants.items() if name.startswith(prefix)}
    if not chosen:
        raise DocsError(f"no constant starts with {prefix!r}")
    lines = ["| name | value | meaning |", "| --- | ---: | --- |"]
    for name, constant in chosen.items():
        value = _with_unit(constant.value, constant.unit)
        lines.append(f"| `{name}` | {value} | {constant.meaning} |")
    return lines


def _with_unit(value: float, unit: str) -> str:
    match unit:
        case "bytes":
            text = format_value(value, "bytes")
            return text if value < 1024 else f"{text} ({value:,.0f}{NBSP}B)"
        case "seconds":
            return format_value(value, "ms")
        case "fraction":
            return format_value(value, "pct")
        case "ratio":
            return format_value(value, "x")
        case "FLOP" if value >= 1e6:
            return f"{value / 1e6:,.1f}{NBSP}MFLOP"
    return f"{format_value(value)}{NBSP}{unit}"


def option_table(root: Path, target: str, options: dict[str, str]) -> list[str]:
    """Return a table of a dataclass's fields: flag, type, default, meaning.

    Args:
        root: The checkout.
        target: ``path/to/file.py:Class``.
        options: ``only`` or ``omit``: comma-separated field names.

    Raises:
        DocsError: The class is missing, or a field has no entry under "Attributes:".
    """
    path, _, name = target.partition(":")
    if not (root / path).is_file():
        raise DocsError(f"no file {path!r}")
    tree = ast.parse((root / path).read_text(encoding="utf-8"))
    node = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), None)
    if node is None:
        raise DocsError(f"no class {name!r} in {path}")
    meanings = _attributes(ast.get_docstring(node) or "")
    fields = [
        n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
    ]
    chosen = _chosen([n.target.id for n in fields if isinstance(n.target, ast.Name)], options)
    lines = ["| option | type | default | meaning |", "| --- | --- | --- | --- |"]
    for field in fields:
        assert isinstance(field.target, ast.Name)
        key = field.target.id
        if key not in chosen:
            continue
        if key not in meanings:
            raise DocsError(f"field {key!r} of {name} is not described under 'Attributes:'")
        cells = [_option(key), f"`{ast.unparse(field.annotation)}`"]
        cells += [f"`{_default(field)}`" if field.value else "required"]
        lines.append(_row(cells, meanings[key]))
    return lines


def _option(name: str) -> str:
    """The name in Python, and below it the flag."""
    return f"`{name}`<br>`--{name.replace('_', '-')}`"


def _row(cells: list[str], meaning: str) -> str:
    """A table's line. A bar between backticks needs no escape, and would show its backslash."""
    return "| " + " | ".join([*cells, meaning.replace("|", "\\|")]) + " |"


def _default(field: ast.AnnAssign) -> str:
    """The default as written, or what a ``field(default=…)`` call stands for."""
    value = field.value
    assert value is not None
    if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("field"):
        for keyword in value.keywords:
            if keyword.arg == "default":
                return ast.unparse(keyword.value)
            if keyword.arg == "default_factory":
                return f"{ast.unparse(keyword.value)}()"
    return ast.unparse(value)


def _chosen(names: list[str], options: dict[str, str]) -> set[str]:
    given = {key: [name.strip() for name in text.split(",")] for key, text in options.items()}
    for wanted in given.values():
        unknown = sorted(set(wanted) - set(names))
        if unknown:
            raise DocsError(f"no field {', '.join(unknown)}")
    return set(given.get("only", names)) - set(given.get("omit", []))


def _attributes(docstring: str) -> dict[str, str]:
    """Read the "Attributes:" section of a Google-style docstring."""
    meanings: dict[str, str] = {}
    inside, current = False, ""
    for line in docstring.splitlines():
        if line.strip() == "Attributes:":
            inside = True
        elif inside and line and not line.startswith(" "):
            inside = False
        elif inside and (entry := _ENTRY.match(line.removeprefix("    "))):
            current = entry["name"]
            meanings[current] = entry["text"].strip()
        elif inside and current and line.strip():
            meanings[current] += " " + line.strip()
    return {name: text.replace("``", "`") for name, text in meanings.items()}
