"""Aligned text tables for terminals, and the same as Markdown for the site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def format_number(value: Any, digits: int = 4) -> str:
    """A cell: integers with separators, floats to ``digits`` significant digits, None as ``–``."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or (abs(value) >= 10 ** (digits - 1) and abs(value) < 1e15):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def format_table(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str] | None = None,
    *,
    markdown: bool = False,
    digits: int = 4,
) -> str:
    """Lay rows out in columns, numbers to the right.

    Args:
        rows: One mapping per line; a missing key is ``–``.
        columns: Keys to show, in order; by default every key in order of first appearance.
        markdown: A Markdown table instead of plain text.
        digits: Significant digits of floats.
    """
    names = list(columns) if columns is not None else list({key: 0 for row in rows for key in row})
    cells = [[format_number(row.get(name), digits) for name in names] for row in rows]
    numeric = [
        all(isinstance(row.get(name), (int, float, type(None))) for row in rows) for name in names
    ]
    if markdown:
        rule = ["---:" if right else "---" for right in numeric]
        lines = [names, rule, *([cell.replace("|", "\\|") for cell in line] for line in cells)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]

    def aligned(line: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        )
        return "  ".join(padded).rstrip()

    rule_line = "  ".join("-" * width for width in widths)
    return "\n".join([aligned(names), rule_line, *map(aligned, cells)])
