"""The visual grammar of every figure, and how a figure becomes an SVG for the site.

====================  =============================================================
request               hue (Okabe and Ito's palette, told apart with any colour vision)
prefill               solid
decode                light, outlined in the same hue
block free            outline
block shared          double border
block cached          hatched
====================  =============================================================

Nothing is told by colour alone. Lines and text are a grey that can be read on white and on the
site's dark scheme; in a saved SVG that grey is the CSS variable ``--folo-ink``, so that a page
that holds the SVG inline may set its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from common.errors import ConfigError
from common.timing import Measurement

INK = "#808182"
HUES = (
    "#0072b2",  # blue
    "#e69f00",  # orange
    "#009e73",  # bluish green
    "#d55e00",  # vermillion
    "#cc79a7",  # reddish purple
    "#56b4e9",  # sky blue
    "#f0e442",  # yellow
    "#999999",  # grey: the palette's black would vanish on a dark page
)
DECODE_ALPHA = 0.35
CACHED_HATCH = "////"
FONT_STACK = "system-ui, 'DejaVu Sans', sans-serif"

Axes = Any
Figure = Any
Value = float | Measurement | Mapping[str, Any]


def hue(index: int) -> str:
    """Colour of the ``index``-th request or series; hues repeat after eight, labels do not."""
    return HUES[index % len(HUES)]


def text_on(colour: str) -> str:
    """Black or white, whichever stands out more on a solid ``#rrggbb``."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if luminance > 0.18 else "#ffffff"


def axes(ax: Axes | None, width: float, height: float) -> Axes:
    """``ax``, or a new one of that size in inches, dressed for both colour schemes."""
    if ax is None:
        import matplotlib.pyplot as plt  # only who draws needs matplotlib

        _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    ax.figure.patch.set_alpha(0.0)
    ax.set_facecolor("none")
    ax.tick_params(colors=INK, which="both", labelsize=9)
    for name, spine in ax.spines.items():
        spine.set_color(INK)
        spine.set_visible(name in ("left", "bottom"))
    return ax


def inches_per_unit(ax: Axes) -> float:
    """Width of one unit of the x axis on paper, before the layout makes room for labels."""
    low, high = ax.get_xlim()
    return float(ax.get_position().width * ax.figure.get_figwidth() / abs(high - low))


def label(ax: Axes, title: str | None, xlabel: str | None, ylabel: str | None) -> None:
    """Set title and axis labels in ink."""
    if title:
        ax.set_title(title, color=INK, fontsize=11, loc="left")
    ax.set_xlabel(xlabel or "", color=INK, fontsize=10)
    ax.set_ylabel(ylabel or "", color=INK, fontsize=10)


def legend(ax: Axes, handles: list[Any] | None = None, inches: float = 0.5) -> None:
    """A legend in rows of five under the axes, where it can cover no data.

    Args:
        ax: The axes.
        handles: Entries; by default those of the labelled artists.
        inches: Room for the axis labels in between.
    """
    found = ax.get_legend_handles_labels()[0] if handles is None else handles
    if not found:
        return
    from matplotlib.transforms import ScaledTranslation

    # A fixed distance, not a share of the axes: labels are as high under every figure.
    below = ScaledTranslation(0, -inches, ax.figure.dpi_scale_trans)
    ax.legend(
        handles=found,
        loc="upper left",
        bbox_to_anchor=(0.0, 0.0),
        bbox_transform=ax.transAxes + below,
        borderaxespad=0.0,
        ncols=min(len(found), 5),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )


def point(value: Value) -> tuple[float, float, float]:
    """(middle, low, high) of a number, a measurement, or a result's row."""
    if isinstance(value, Measurement):
        return value.median, value.min, value.max
    if isinstance(value, Mapping):
        return float(value["median"]), float(value["min"]), float(value["max"])
    return float(value), float(value), float(value)


def save_svg(fig: Figure, path: str | Path, *, title: str, desc: str) -> Path:
    """Write a figure as an SVG for the site: transparent, deterministic, accessible.

    The same figure gives the same bytes (no date, no version, stable ids), so a regenerated site
    has no spurious changes. Text stays text. Ids carry the file's name, so that several figures
    can stand inline in one page. The size is a maximum; the figure shrinks with its column.

    Args:
        fig: A matplotlib figure, or axes of one.
        path: Target file; its folder is made.
        title: Short name, read out by screen readers.
        desc: What the figure shows, in a sentence: the conclusion rather than the topic.

    Raises:
        ConfigError: ``title`` or ``desc`` is empty.
    """
    if not title.strip() or not desc.strip():
        raise ConfigError("a figure needs a title and a desc for readers who cannot see it")
    import matplotlib as mpl

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = fig if hasattr(fig, "savefig") else fig.figure
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "folovllm"}):
        figure.savefig(path, format="svg", transparent=True, bbox_inches="tight", metadata=nothing)
    svg = path.read_text(encoding="utf-8")
    path.write_text(_for_the_site(svg, path.stem, title, desc), encoding="utf-8")
    return path


def _for_the_site(svg: str, stem: str, title: str, desc: str) -> str:
    """Turn matplotlib's file into one that a page can hold inline in either colour scheme."""
    svg = svg[svg.index("<svg") :]  # no XML prolog: it may stand in the middle of a page
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    prefix = re.sub(r"[^A-Za-z0-9_-]+", "-", stem)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    svg = svg.replace(INK, f"var(--folo-ink, {INK})")
    svg = re.sub(r"'DejaVu Sans'[^;\"]*sans-serif", FONT_STACK, svg)
    names = f'<title id="{prefix}-title">{escape(title)}</title>\n <desc id="{prefix}-desc">'
    # Matplotlib's style sheet names every element, of an inline page's other drawings too.
    svg = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    head = (
        f'<svg role="img" aria-labelledby="{prefix}-title {prefix}-desc" style="max-width: 100%; '
        'height: auto; stroke-linejoin: round; stroke-linecap: butt" '
    )
    svg = re.sub(
        r"<svg ([^>]*)>",
        lambda found: f"{head}{found[1]}>\n {names}{escape(desc)}</desc>",
        svg,
        count=1,
    )
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"
