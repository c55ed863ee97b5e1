"""Makes an SVG fit for a page: inherits font and ink, has ids of its own, is deterministic.

The grey ink of :mod:`common.plot_style` becomes the CSS variable ``--folo-ink``, which the page
sets for its colour scheme. Other colours stay: black or white text on a bar is chosen for the bar.
"""

from __future__ import annotations

import io
import re
from typing import Any

from common.plot_style import INK

_FAMILY = re.compile(r"font-family: ?[^;\"]*;? ?")
_SHORTHAND = re.compile(r"font: (?P<style>[^;\"]*?)(?P<size>[\d.]+px) [^;\"]*")
_STYLE = re.compile(r"<style[^>]*>.*?</style>", re.DOTALL)
_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_ID = re.compile(r"(?P<before>\bid=\"|href=\"#|url\(#)(?P<id>[\w.:-]+)")


def from_matplotlib(drawn: Any) -> str:
    """Return a matplotlib figure, or the figure of axes, as SVG text, the same at every run."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    figure = drawn if hasattr(drawn, "savefig") else drawn.figure
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "folovllm"}):
        figure.savefig(
            buffer, format="svg", transparent=True, bbox_inches="tight", metadata=nothing
        )
    plt.close(figure)
    return buffer.getvalue()


def adapt(svg: str, prefix: str) -> str:
    """Return the ``<svg>`` element alone, its ink, fonts, ids and size made fit for a page.

    Args:
        svg: A whole SVG document or an ``<svg>`` element.
        prefix: Put before every id.
    """
    body = svg[svg.index("<svg") :]
    body = _COMMENT.sub("", _METADATA.sub("", body))
    body = _STYLE.sub("", body)  # it would apply to the whole page
    body = body.replace(INK, f"var(--folo-ink, {INK})")
    body = _SHORTHAND.sub(_longhand, _FAMILY.sub("", body))
    body = _ID.sub(lambda match: f"{match['before']}{prefix}-{match['id']}", body)
    body = _with_natural_width(body)
    return "\n".join(line for line in body.splitlines() if line.strip())


def _longhand(match: re.Match[str]) -> str:
    """Keep size and weight of a ``font:`` shorthand, drop the family: the page's is used."""
    weight = "; font-weight: bold" if re.search(r"bold|[6-9]00", match["style"]) else ""
    return f"font-size: {match['size']}{weight}"


def _with_natural_width(svg: str) -> str:
    """Replace width and height by a maximal width: the drawing shrinks with the page, not grows."""
    head, rest = svg.split(">", 1)
    width = re.search(r"\swidth=\"([\d.]+)(pt|px|)\"", head)
    if width is None:
        return svg
    pixels = float(width[1]) * (96 / 72 if width[2] == "pt" else 1)
    head = re.sub(r"\s(?:width|height)=\"[^\"]*\"", "", head)
    return f'{head} style="max-width: {pixels:.0f}px">{rest}'
