"""The eight stages as a staircase: each one rests on those below."""

from __future__ import annotations

from common.plot_style import hue
from tools.docs_build.stages import STAGES
from tools.figures.registry import FigureInput, figure

_WIDTH, _ROW, _STEP, _GAP = 640, 34, 34, 4


@figure("staircase")
def staircase(given: FigureInput) -> str:
    """Draw ``common`` and the eight stages, the finished ones filled."""
    rows = [("common", "configs, requests, model, trace", True)]
    rows += [(f"M{s.number}", s.title, s.finished(given.root)) for s in STAGES]
    height = len(rows) * _ROW
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" viewBox="0 0 {_WIDTH} {height}">'
    ]
    for index, (name, title, done) in enumerate(rows):
        x, y = index * _STEP, height - (index + 1) * _ROW
        parts.append(_bar(x, y, hue(index - 1), done))
        middle = y + (_ROW - _GAP) / 2 + 4.5
        parts.append(
            f'<text x="{x + 14}" y="{middle}" fill="currentColor" style="font-size: 13px">'
            f'<tspan style="font-weight: bold">{name}</tspan><tspan dx="8">{title}</tspan></text>'
        )
    return "\n".join([*parts, "</svg>"])


def _bar(x: int, y: int, hue: str, done: bool) -> str:
    width, height = _WIDTH - x, _ROW - _GAP
    look = (
        f'fill="{hue}" fill-opacity="0.28"'
        if done
        else 'fill="none" stroke="currentColor" stroke-opacity="0.5" stroke-dasharray="5 4"'
    )
    inset = 0 if done else 0.5
    bar = (
        f'<rect x="{x + inset}" y="{y + inset}" width="{width - 2 * inset}" '
        f'height="{height - 2 * inset}" rx="2" {look}/>'
    )
    edge = f'<rect x="{x}" y="{y}" width="5" height="{height}" fill="{hue}"/>' if done else ""
    return bar + edge
