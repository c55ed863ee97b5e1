"""Charts of measurements, shared by notebooks and site.

Every function draws on ``ax`` or on a new figure, and returns the axes. A value is a number, a
:class:`~common.timing.Measurement`, or a row of a result file; the latter two bring the extremes
of their runs, which are drawn as error bars. Figures of traces are in :mod:`common.plots`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import ConfigError
from common.plot_style import INK, Axes, Value, axes, hue, label, legend, point, text_on
from common.results import Row
from common.tables import format_number


def grouped(
    rows: Sequence[Row], category: str, series: str = "engine"
) -> dict[str, dict[Any, Row]]:
    """Arrange a result's rows for the charts below: series name, then category, then row.

    Args:
        rows: Rows of one metric.
        category: Label on the x axis, such as ``prompt_tokens``.
        series: Label that tells the series apart.

    Raises:
        ConfigError: Two rows fall on the same place: the rows hold more than one metric.
    """
    table: dict[str, dict[Any, Row]] = {}
    for row in rows:
        line = table.setdefault(str(row[series]), {})
        if row[category] in line:
            raise ConfigError(f"two rows for {series} {row[series]} at {category} {row[category]}")
        line[row[category]] = row
    return table


def comparison_bars(
    series: Mapping[str, Mapping[Any, Value]],
    *,
    unit: str,
    xlabel: str | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Grouped bars from zero, each with its value and the range of its runs.

    Args:
        series: Values by series name and category. A value is a number, a measurement, or a
            result's row; the latter two bring their extremes.
        unit: Label of the y axis.
        xlabel: Label of the categories.
        title: Shown above.
        ax: Axes to draw on.

    Raises:
        ConfigError: There is nothing to draw.
    """
    categories = list({key: 0 for line in series.values() for key in line})
    if not categories:
        raise ConfigError("bars need at least one value")
    ax = axes(ax, max(5.0, 1.2 + 0.6 * len(categories) * len(series)), 3.4)
    width = 0.8 / len(series)
    for number, (name, line) in enumerate(series.items()):
        xs, points = [], []
        for at, category in enumerate(categories):
            if category in line:
                xs.append(at - 0.4 + (number + 0.5) * width)
                points.append(point(line[category]))
        ax.bar(xs, [p[0] for p in points], 0.92 * width, color=hue(number), label=name)
        for x, (middle, low, high) in zip(xs, points, strict=True):
            if low < high:
                ends = [[middle - low], [high - middle]]
                ax.errorbar([x], [middle], ends, fmt="none", ecolor=INK, capsize=3)
            ax.annotate(
                format_number(middle, 3), (x, high), (0, 3), textcoords="offset points",
                ha="center", va="bottom", color=INK, fontsize=8,
            )  # fmt: skip
    highest = max(point(value)[2] for line in series.values() for value in line.values())
    ax.set_ylim(0, 1.12 * highest if highest > 0 else 1.0)
    ax.set_xticks(range(len(categories)), [str(category) for category in categories])
    label(ax, title, xlabel, unit)
    if len(series) > 1:
        legend(ax)
    return ax


def line_with_floor(
    series: Mapping[str, Mapping[float, Value]],
    floor: Mapping[float, float] | float | None = None,
    *,
    xlabel: str,
    ylabel: str,
    floor_label: str = "floor",
    log_x: bool = False,
    log_y: bool = False,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Measured curves above (or below) the dashed line that physics allows.

    Args:
        series: y values by series name and x.
        floor: The limit: y by x, or one level for all x. None draws none.
        xlabel: Label with unit.
        ylabel: Label with unit.
        floor_label: What the limit is and which bandwidth it used, for the legend.
        log_x: Logarithmic x axis, with the measured x values as ticks.
        log_y: Logarithmic y axis; otherwise it starts at zero.
        title: Shown above.
        ax: Axes to draw on.

    Raises:
        ConfigError: There is nothing to draw.
    """
    if not any(series.values()):
        raise ConfigError("a curve needs at least one point")
    ax = axes(ax, 6.4, 3.6)
    for number, (name, line) in enumerate(series.items()):
        xs = sorted(line)
        points = [point(line[x]) for x in xs]
        mids = [mid for mid, _, _ in points]
        marker = "osD^vPX*"[number % 8]
        ax.plot(xs, mids, color=hue(number), marker=marker, markersize=5, lw=1.8, label=name)
        ax.fill_between(
            xs, [p[1] for p in points], [p[2] for p in points], color=hue(number), alpha=0.2, lw=0
        )
    if isinstance(floor, Mapping):
        at = sorted(floor)
        ax.plot(at, [floor[x] for x in at], color=INK, ls="--", lw=1.5, label=floor_label)
    elif floor is not None:
        ax.axhline(floor, color=INK, ls="--", lw=1.5, label=floor_label)
    if log_x:
        ticks = sorted({x for line in series.values() for x in line})
        ax.set_xscale("log", base=2)
        ax.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
        ax.minorticks_off()
    if log_y:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:,g}")
    else:
        ax.set_ylim(bottom=0)
    label(ax, title, xlabel, ylabel)
    legend(ax)
    return ax


def heatmap(
    matrix: Sequence[Sequence[float]],
    *,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    value_label: str,
    log: bool = False,
    xlabel: str | None = None,
    ylabel: str | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A grid of values by colour, with the numbers written in where there are at most 120.

    Args:
        matrix: Rows of values, all of one length; a numpy array is fine.
        row_labels: One per row.
        column_labels: One per column.
        value_label: What the colours mean, with unit.
        log: Logarithmic colours. Zeros, which it has no colour for, stay empty.
        xlabel: Label of the columns.
        ylabel: Label of the rows.
        title: Shown above.
        ax: Axes to draw on.

    Raises:
        ConfigError: Labels and matrix do not fit, a value is not finite, or a logarithm is asked
            of a negative value.
    """
    rows = [[float(value) for value in line] for line in matrix]
    shape = (len(rows), len(column_labels))
    if not rows or len(row_labels) != len(rows) or any(len(line) != shape[1] for line in rows):
        raise ConfigError(f"{len(row_labels)} x {shape[1]} labels do not fit the matrix")
    flat = [value for line in rows for value in line]
    if not all(math.isfinite(value) and (value >= 0 or not log) for value in flat):
        raise ConfigError("a heatmap takes finite values, and none below zero on a log scale")
    from matplotlib.colors import LogNorm, Normalize

    ax = axes(ax, 1.8 + 0.42 * shape[1], 1.1 + 0.3 * shape[0])
    positive = [value for value in flat if value > 0]
    scale: Any = LogNorm if log and positive else Normalize
    bounds = positive if log and positive else flat
    norm = scale(vmin=min(bounds), vmax=max(bounds))
    shown = [[math.nan if log and not value else value for value in line] for line in rows]
    # A mesh is drawn as shapes; an image would be a bitmap inside the SVG.
    image = ax.pcolormesh(shown, cmap="cividis", norm=norm, edgecolors="face", linewidth=0.2)
    ax.set_ylim(shape[0], 0)
    ax.set_yticks([y + 0.5 for y in range(shape[0])], row_labels)
    ax.set_xticks([x + 0.5 for x in range(shape[1])], column_labels)
    if len(flat) <= 120:
        for y, line in enumerate(rows):
            for x, value in enumerate(line):
                ink = INK if math.isnan(shown[y][x]) else _ink_on(image, value)
                ax.text(
                    x + 0.5, y + 0.5, f"{value:.2g}", ha="center", va="center", color=ink,
                    fontsize=7,
                )  # fmt: skip
    bar = ax.figure.colorbar(image, ax=ax)
    bar.solids.set(rasterized=False, edgecolor="face")
    bar.set_label(value_label, color=INK, fontsize=10)
    bar.ax.tick_params(colors=INK, which="both", labelsize=8)
    bar.outline.set_edgecolor(INK)
    label(ax, title, xlabel, ylabel)
    return ax


def _ink_on(image: Any, value: float) -> str:
    """Black or white, whichever can be read on the colour of ``value``."""
    from matplotlib.colors import to_hex

    return text_on(to_hex(image.cmap(image.norm(value))))
