"""Figures of note 04: tiles instead of a matrix, the online softmax, a past dealt to programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from common.charts import line_with_floor
from common.model_costs import naive_score_bytes
from common.plot_style import INK, axes, hue, label
from common.qwen3 import QWEN3_0_6B
from tools.figures.registry import FigureInput, figure

_MIB = 2**20
_SCORES = (1.0, 2.0, 0.0, 1.0, 4.0, 3.0, 2.0, 4.0)
_VALUES = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
_TILE = 2
_DONE = 0.3
"""Opacity of what a program has behind it."""


@dataclass(frozen=True)
class SoftmaxStep:
    """The running softmax after one tile.

    Attributes:
        m: Largest score so far.
        rescale: What the sums so far were multiplied with, ``exp(m_before − m)``.
        total: Running sum l.
        acc: Running weighted values O, not yet divided by l.
    """

    m: float
    rescale: float
    total: float
    acc: float


def online_softmax(
    scores: Sequence[float], values: Sequence[float], tile: int
) -> list[SoftmaxStep]:
    """One query's softmax over ``scores``, a tile at a time, with one number per value."""
    m, total, acc = -math.inf, 0.0, 0.0
    steps = []
    for begin in range(0, len(scores), tile):
        new_m = max(m, *scores[begin : begin + tile])
        rescale = math.exp(m - new_m)
        weights = [math.exp(score - new_m) for score in scores[begin : begin + tile]]
        total = total * rescale + sum(weights)
        pairs = zip(weights, values[begin : begin + tile], strict=True)
        acc = acc * rescale + sum(weight * value for weight, value in pairs)
        m = new_m
        steps.append(SoftmaxStep(m, rescale, total, acc))
    return steps


def deal(tiles: Sequence[int], splits: int) -> list[list[int]]:
    """Tiles of each program, by sequence, as ``m4_flash/kernels/decode.py`` deals them out."""
    places = len(tiles) * splits
    share = max(-(-sum(tiles) // (places - len(tiles))), 1)
    parts = [-(-count // share) for count in tiles]
    return [
        [(i + 1) * count // n - i * count // n for i in range(n)]
        for count, n in zip(tiles, parts, strict=True)
    ]


@figure("m4-tiles")
def tiles(_: FigureInput) -> Any:
    """Draw the score matrix in memory beside the tiles of the flash kernel, which never is."""
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch, Rectangle

    count, current = 6, (4, 2)
    drawn, panels = plt.subplots(1, 2, figsize=(7.6, 4.0), layout="constrained")
    names = ("M3: S and P are written to memory", "M4: a program holds one tile")
    for number, (panel, name) in enumerate(zip(panels, names, strict=True)):
        ax = axes(panel, 0, 0)
        ax.set(xlim=(0, count), ylim=(count, 0), aspect="equal", xticks=[], yticks=[])
        for row in range(count):
            for column in range(count):
                look: dict[str, Any] = {"facecolor": hue(0), "alpha": 0.75, "edgecolor": "none"}
                if number and column > row:
                    look = {"facecolor": "none", "edgecolor": INK, "ls": ":", "lw": 0.8}
                elif number and (row, column) != current:
                    alpha = _DONE if row == current[0] and column < current[1] else 0.0
                    look = {"facecolor": (hue(1), alpha), "edgecolor": INK, "lw": 0.8}
                elif number:
                    look = {"facecolor": hue(1), "edgecolor": INK, "lw": 0.8}
                elif column > row:
                    look = {"facecolor": hue(0), "alpha": 0.3, "edgecolor": INK, "hatch": "//"}
                ax.add_patch(Rectangle((column + 0.04, row + 0.04), 0.92, 0.92, **look))
                if number and column == row:
                    ax.text(column + 0.5, row + 0.62, "mask", ha="center", color=INK, fontsize=8)
        label(ax, name, "keys", "queries")
    panels[1].annotate(
        "m, l, O of these rows\nstay on the chip",
        (count - 0.05, current[0] + 0.5), (count + 0.35, current[0] + 0.75),
        color=INK, fontsize=9, va="center", annotation_clip=False,
        arrowprops={"arrowstyle": "-", "color": INK},
    )  # fmt: skip
    entries = [
        Patch(facecolor=(hue(0), 0.75), label="written, read, written, read"),
        Patch(facecolor=(hue(0), 0.3), edgecolor=INK, hatch="//", label="the same, then masked"),
        Patch(facecolor=hue(1), edgecolor=INK, label="the tile at hand"),
        Patch(facecolor=(hue(1), _DONE), edgecolor=INK, label="already summed"),
        Patch(facecolor="none", edgecolor=INK, ls=":", label="never loaded"),
    ]
    drawn.legend(
        handles=entries, loc="outside lower center", ncols=3, frameon=False, labelcolor=INK,
        fontsize=9,
    )  # fmt: skip
    return drawn


@figure("m4-online-softmax")
def online_softmax_table(_: FigureInput) -> Any:
    """Draw eight scores in tiles of two, and what the running softmax holds after each tile."""
    ax = axes(None, 6.6, 3.4)
    places = range(len(_SCORES))
    ax.bar(places, _SCORES, 0.7, color=[hue(place // _TILE) for place in places])
    for place, (score, value) in enumerate(zip(_SCORES, _VALUES, strict=True)):
        ax.text(place, score + 0.08, f"{score:g}", ha="center", color=INK, fontsize=9)
        ax.text(place, -0.35, f"v = {value:g}", ha="center", color=INK, fontsize=8)
    steps = online_softmax(_SCORES, _VALUES, _TILE)
    rows = [
        ("m", [f"{step.m:g}" for step in steps]),
        ("rescale", [f"{step.rescale:.3f}" for step in steps]),
        ("l", [f"{step.total:.3f}" for step in steps]),
        ("O", [f"{step.acc:.3f}" for step in steps]),
    ]
    for line, (name, texts) in enumerate(rows):
        height = -1.0 - 0.62 * line
        ax.text(-0.9, height, name, ha="right", color=INK, fontsize=10, fontweight="bold")
        for tile, text in enumerate(texts):
            ax.text(_TILE * tile + 0.5, height, text, ha="center", color=INK, fontsize=10)
    for border in range(_TILE, len(_SCORES), _TILE):
        ax.axvline(border - 0.5, color=INK, lw=0.6, ls=":")
    last = steps[-1]
    text = f"after the last tile: O / l = {last.acc / last.total:.3f}"
    ax.text(len(_SCORES) - 0.6, -3.5, text, ha="right", color=INK, fontsize=10)
    ax.set(xlim=(-0.8, len(_SCORES) - 0.5), ylim=(-3.7, 4.6), xticks=[], yticks=[])
    ax.spines["left"].set_visible(False)
    ax.spines["bottom"].set_position(("data", 0))
    return ax


@figure("m4-score-bytes")
def score_bytes(_: FigureInput) -> Any:
    """Draw what one layer of a prefill holds beside q, k, v and o, naive and in tiles."""
    lengths = [2**power for power in range(9, 16)]
    naive = {float(n): 2 * naive_score_bytes(QWEN3_0_6B, n) / _MIB for n in lengths}
    # What a kernel could keep of a row after it is done: its maximum and its sum, in float32.
    tiled = {float(n): 2 * 4 * QWEN3_0_6B.num_heads * n / _MIB for n in lengths}
    return line_with_floor(
        {"S and P, written out": naive, "m and l of every row": tiled},
        xlabel="tokens in the prompt",
        ylabel="MiB in one layer",
        log_x=True,
        log_y=True,
    )


@figure("m4-split-decode")
def split_decode(_: FigureInput) -> Any:
    """Draw four decoding sequences on one program each, and dealt out to sixteen places."""
    from matplotlib import pyplot as plt

    contexts = (40, 3, 2, 3)
    drawn, panels = plt.subplots(1, 2, figsize=(7.6, 3.4), sharex=True, layout="constrained")
    layouts = ([[count] for count in contexts], deal(contexts, 4))
    names = ("one program per sequence", "16 places, dealt out on the device")
    for panel, name, layout in zip(panels, names, layouts, strict=True):
        ax = axes(panel, 0, 0)
        row = 0
        for seq, parts in enumerate(layout):
            for count in parts:
                ax.barh(row, count, 0.74, color=hue(seq))
                ax.text(count + 0.6, row, str(count), va="center", color=INK, fontsize=8)
                row += 1
        longest = max(max(parts) for parts in layout)
        ax.set(ylim=(15.6, -0.6), yticks=range(0, 16, 4))
        label(ax, name, f"tiles of keys, one after another; longest: {longest}", "program")
    panels[1].set_ylabel("")
    return drawn
