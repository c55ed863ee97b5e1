"""The ladder as a chart: what each rung is over M1, by each of the three measures."""

from __future__ import annotations

from typing import Any

from common.plot_style import INK, axes, hue, label, legend
from common.tables import format_number
from tools.docs_build.errors import DocsError
from tools.figures.registry import FigureInput, figure

_LINES = {
    "throughput_gain": ("throughput", "o", 1.3),
    "ttft_gain": ("first token", "s", 1.3),
    "time_per_token_gain": ("one stream", "D", 1.3),
    "geometric_mean": ("geometric mean", "^", 2.6),
}
"""Metric: name, mark, width of the line."""


@figure("m7_gptq-ladder", ("result",))
def ladder(given: FigureInput) -> Any:
    """Draw the gains over M1, which is 1, on a logarithmic scale."""
    result = given.results.get(given.option("result"))
    rungs = [
        (row["engine"], row["weights"]) for row in result.rows if row["metric"] == "geometric_mean"
    ]
    if not rungs:
        raise DocsError(f"no row of {result.name} for 'geometric_mean'")
    gains = {
        (row["metric"], row["engine"], row["weights"]): row["median"] for row in result.rows
    }  # fmt: skip
    ax = axes(None, 7.4, 3.6)
    for number, (metric, (name, mark, width)) in enumerate(_LINES.items()):
        values = [1.0, *(gains[metric, *rung] for rung in rungs)]
        ax.plot(
            range(len(values)), values, color=hue(number), marker=mark, ms=5, lw=width, label=name
        )
    for at, rung in enumerate(rungs, 1):
        mean = gains["geometric_mean", *rung]
        others = [gains[metric, *rung] / mean for metric in _LINES if metric != "geometric_mean"]
        # A mean lies between the others: its number goes where the next line is farther away.
        above = min((r for r in others if r > 1), default=1.0)
        up = above > 1 / max((r for r in others if r <= 1), default=1.0)
        ax.annotate(
            format_number(mean, 2), (at, mean), (0, 7 if up else -11), textcoords="offset points",
            ha="center", va="bottom" if up else "top", color=INK, fontsize=8,
        )  # fmt: skip
    ax.axhline(1.0, color=INK, ls=":", lw=1)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:,g}×")
    ax.set_xticks(range(len(rungs) + 1), ["M1", *(_short(*rung) for rung in rungs)])
    label(ax, None, None, "over M1")
    legend(ax, inches=0.7)
    return ax


def _short(engine: str, weights: str) -> str:
    """``M4``; of M7 the form of its weights too, below."""
    stage = engine.partition("_")[0].upper()
    return "\n".join([stage, *weights.split(" + ")]) if stage == "M7" else stage
