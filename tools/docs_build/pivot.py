"""Flat rows of a result as a Markdown table: labels down, metrics and variants across."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from common.results import MEASURED
from tools.docs_build.errors import DocsError
from tools.docs_build.results import Result, select
from tools.docs_build.values import scale, significant

_SPELT = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "kv": "KV", "mbu": "MBU", "mfu": "MFU"}
_MOST_VARIANTS = 4
Row = dict[str, Any]
Key = tuple[Any, ...]


@dataclass(frozen=True)
class TableOptions:
    """How rows become a table: one line per set of labels, one column per metric.

    Attributes:
        where: Selector of rows, ``engine=m1_basic,batch=1``.
        metrics: Metrics to show, in order; all when empty.
        across: A label whose values become columns of their own (``engine``), or "".
        spread: Whether the extremes stand beside the median.
        long: Metrics go down too, and only the values of ``across`` go across.
    """

    where: str = ""
    metrics: tuple[str, ...] = ()
    across: str = ""
    spread: bool = False
    long: bool = False


@dataclass(frozen=True)
class _Grid:
    """Rows in their places.

    Attributes:
        lines: Labels that tell the table's lines apart.
        across: The label that goes across, or "".
        variants: Its values; ``[None]`` without one.
        metrics: Metrics in order.
        cells: Row by values of ``lines``, then by metric and variant.
        scales: Factor and unit that each metric is printed with.
    """

    lines: list[str]
    across: str
    variants: list[Any]
    metrics: tuple[str, ...]
    cells: dict[Key, dict[tuple[str, Any], Row]]
    scales: dict[str, tuple[float, str]]

    def variant(self, value: object) -> str:
        """A value of the label that goes across, as a heading: ``transformers``, ``cache on``."""
        bare = isinstance(value, bool) or value in ("on", "off")
        return f"{spelled(self.across)} {_label(value)}" if bare else _label(value)

    def columns(self) -> list[tuple[str, Any]]:
        """Metric and variant of each column that holds anything."""
        every = itertools.product(self.metrics, self.variants)
        return [column for column in every if any(column in line for line in self.cells.values())]


def pivot(result: Result, options: TableOptions) -> list[str]:
    """Return a Markdown table of a result's rows.

    Labels that have one value throughout are left out. A metric's unit is chosen for its largest
    value and stands beside its name.

    Raises:
        DocsError: No row is left, or a metric or label is unknown.
    """
    grid = _grid(result, options)
    head, body = (_long if options.long else _wide)(grid, options.spread)
    rule = [" ---: " if right else " --- " for _, right in head]
    lines = [[title for title, _ in head], *body]
    texts = [f"| {' | '.join(line)} |" for line in lines]
    return [texts[0], f"|{'|'.join(rule)}|", *texts[1:]]


def _grid(result: Result, options: TableOptions) -> _Grid:
    rows = select(result.rows, options.where)
    if not rows:
        raise DocsError(f"no row of {result.name} matches {options.where!r}")
    metrics = options.metrics or tuple(dict.fromkeys(row["metric"] for row in rows))
    missing = [m for m in metrics if all(row["metric"] != m for row in rows)]
    if missing:
        raise DocsError(f"no metric {', '.join(missing)} in {result.name}")
    rows = [row for row in rows if row["metric"] in metrics]
    labels = labels_of(rows)
    if options.across and options.across not in labels:
        raise DocsError(f"no label {options.across!r} in {result.name} (has {', '.join(labels)})")
    lines = [name for name in labels if name != options.across and len(values_of(rows, name)) > 1]
    cells: dict[Key, dict[tuple[str, Any], Row]] = {}
    for row in rows:
        key = tuple(row.get(name) for name in lines)
        place = (row["metric"], row.get(options.across) if options.across else None)
        if place in cells.setdefault(key, {}):
            raise DocsError(f"two rows of {result.name} have the same place; set where or across")
        cells[key][place] = row
    variants = values_of(rows, options.across) if options.across else [None]
    scales = {m: _scale([row for row in rows if row["metric"] == m]) for m in metrics}
    return _Grid(lines, options.across, variants, metrics, cells, scales)


def _wide(grid: _Grid, spread: bool) -> tuple[list[tuple[str, bool]], list[list[str]]]:
    columns = grid.columns()
    head = _line_heads(grid)
    for metric, variant in columns:
        before = "" if variant is None else f"{grid.variant(variant)}: "
        head.append((before + _title(metric, grid.scales[metric][1]), True))
    body = [
        [*map(_label, key), *(_cell(line.get(c), grid.scales[c[0]][0], spread) for c in columns)]
        for key, line in grid.cells.items()
    ]
    return head, body


def _long(grid: _Grid, spread: bool) -> tuple[list[tuple[str, bool]], list[list[str]]]:
    shown = [grid.variant(v) if v is not None else "value" for v in grid.variants]
    head = [("metric", False), *_line_heads(grid), *((title, True) for title in shown)]
    body = []
    for metric in grid.metrics:
        factor, unit = grid.scales[metric]
        for key, line in grid.cells.items():
            found = [line.get((metric, variant)) for variant in grid.variants]
            if any(found):
                texts = (_cell(row, factor, spread) for row in found)
                body.append([_title(metric, unit), *map(_label, key), *texts])
    return head, body


def _line_heads(grid: _Grid) -> list[tuple[str, bool]]:
    return [
        (spelled(name), all(isinstance(key[i], int | float) for key in grid.cells))
        for i, name in enumerate(grid.lines)
    ]


def labels_of(rows: Sequence[Row]) -> list[str]:
    """Return the labels of rows, in order of first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row if key not in MEASURED))


def values_of(rows: Sequence[Row], label: str) -> list[Any]:
    """Return the different values of a label, None where a row lacks it."""
    return list(dict.fromkeys(row.get(label) for row in rows))


def default_across(rows: Sequence[Row]) -> str:
    """Return the label that should go across, or "".

    It is the one that names the baseline (``transformers``) among a few variants, else the first
    with a few different words.
    """
    found = []
    for label in labels_of(rows):
        values = [value for value in values_of(rows, label) if value is not None]
        if all(isinstance(v, str | bool) for v in values) and 1 < len(values) <= _MOST_VARIANTS:
            if "transformers" in values:
                return label
            found.append(label)
    return found[0] if found else ""


def _scale(rows: Sequence[Row]) -> tuple[float, str]:
    units = {row["unit"] for row in rows}
    if len(units) > 1:
        raise DocsError(
            f"metric {rows[0]['metric']!r} has several units: {', '.join(sorted(units))}"
        )
    return scale(max(abs(row["median"]) for row in rows), rows[0]["unit"])


def _title(metric: str, unit: str) -> str:
    return spelled(metric) + (f" ({unit})" if unit else "")


def spelled(key: str) -> str:
    """Return a metric or label as a reader writes it: ``prompt_tokens``, ``ttft_p50``."""
    return " ".join(_SPELT.get(word, word) for word in key.split("_"))


def _label(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,}"
    return str(value).replace("|", "\\|")


def _cell(row: Row | None, factor: float, spread: bool) -> str:
    if row is None:
        return "–"
    text = significant(row["median"] * factor)
    if spread and row["n"] > 1:
        low, high = (significant(row[end] * factor) for end in ("min", "max"))
        text += f" <small>{low}–{high}</small>"
    return text
