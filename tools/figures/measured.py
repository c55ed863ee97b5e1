"""Charts of result files: bars by category, curves by a numeric label."""

from __future__ import annotations

from typing import Any

from common.charts import comparison_bars, grouped, line_with_floor
from common.errors import ConfigError
from tools.docs_build.errors import DocsError
from tools.docs_build.results import select
from tools.docs_build.values import scale
from tools.figures.registry import FigureInput, figure

_OPTIONS = ("result", "metric", "by", "series", "where", "title")


@figure("bars", (*_OPTIONS, "xlabel"))
def bars(given: FigureInput) -> Any:
    """Grouped bars of one metric: a group per value of ``by``, a bar per value of ``series``."""
    series, unit = _series(given)
    return comparison_bars(
        series,
        unit=unit,
        xlabel=given.options.get("xlabel", given.option("by").replace("_", " ")),
        title=given.options.get("title"),
    )


@figure("curves", (*_OPTIONS, "xlabel", "ylabel", "floor", "floor_label", "log_x", "log_y"))
def curves(given: FigureInput) -> Any:
    """Curves of one metric over ``by``; ``floor`` names a metric of the same file as the limit."""
    series, unit = _series(given)
    floor = None
    if "floor" in given.options:
        limits, _ = _series(given, metric=given.options["floor"])
        floor = {x: row["median"] for line in limits.values() for x, row in line.items()}
    metric = given.option("metric").replace("_", " ")
    return line_with_floor(
        series,
        floor,
        xlabel=given.options.get("xlabel", given.option("by").replace("_", " ")),
        ylabel=given.options.get("ylabel", f"{metric} ({unit})"),
        floor_label=given.options.get("floor_label", "floor"),
        log_x=given.options.get("log_x") == "yes",
        log_y=given.options.get("log_y") == "yes",
        title=given.options.get("title"),
    )


def _series(
    given: FigureInput, metric: str | None = None
) -> tuple[dict[str, dict[Any, dict[str, Any]]], str]:
    """Return the rows of a metric by series and category, scaled, and the unit they are in.

    The unit is that of the figure's own metric, so that a floor is drawn on the same scale.
    """
    result = given.results.get(given.option("result"))
    rows = select(result.rows, given.options.get("where", ""))
    main = [row for row in rows if row["metric"] == given.option("metric")]
    chosen = main if metric is None else [row for row in rows if row["metric"] == metric]
    if not main or not chosen:
        raise DocsError(f"no row of {result.name} for {metric or given.option('metric')!r}")
    factor, unit = scale(max(abs(row["median"]) for row in main), main[0]["unit"])
    by, series = given.option("by"), given.options.get("series", "engine")
    lacking = next((key for key in (by, series) if any(key not in row for row in chosen)), None)
    if lacking == series and "series" not in given.options:
        chosen = [{series: result.data["stage"], **row} for row in chosen]
    elif lacking:
        raise DocsError(f"not every row of {result.name} has the label {lacking!r}")
    scaled = [
        {**row, **{key: row[key] * factor for key in ("median", "min", "max")}} for row in chosen
    ]
    try:
        return grouped(scaled, by, series), unit
    except ConfigError as error:
        raise DocsError(f"{result.name}: {error}") from error
