"""Figures of note 07: two weights that share an error, the loop over columns, bytes, the gain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from common.devices import DEVICES, DeviceSpec
from common.model_config import ModelConfig
from common.model_costs import (
    gptq_bits_per_weight,
    gptq_linear_bytes,
    gptq_model_bytes,
    linear_flops_per_token,
    lm_head_flops_per_row,
    parameter_counts,
    weight_bytes,
)
from common.plot_style import INK, axes, hue, label
from common.qwen3 import QWEN3_0_6B
from tools.figures.registry import FigureInput, figure

_MB = 1e6
WEIGHTS = (2.4, 3.4)
"""Two weights of one row, in units of the grid."""

CORRELATION = 0.9
"""Of their two inputs, both of mean square 1."""


@dataclass(frozen=True)
class Rounded:
    """Two weights on the grid.

    Attributes:
        first: The first weight, rounded.
        target: What the second weight was when it was rounded.
        second: The second weight, rounded.
    """

    first: float
    target: float
    second: float

    @property
    def error(self) -> float:
        """``(w − ŵ) · H · (w − ŵ)ᵀ``."""
        a, b = WEIGHTS[0] - self.first, WEIGHTS[1] - self.second
        return a * a + b * b + 2 * CORRELATION * a * b


def nearest() -> Rounded:
    """Each weight to its nearest integer."""
    return Rounded(round(WEIGHTS[0]), WEIGHTS[1], round(WEIGHTS[1]))


def compensated() -> Rounded:
    """The first to its nearest integer; the second after it has made up for the first.

    The best second weight for a given error of the first moves by ``error · H₁₂ / H₂₂``.
    """
    first = round(WEIGHTS[0])
    target = WEIGHTS[1] + (WEIGHTS[0] - first) * CORRELATION
    return Rounded(first, target, round(target))


def linear_seconds(
    config: ModelConfig, device: DeviceSpec, tokens: float, linear_bytes: int
) -> float:
    """Floor of all projections in one step: the larger of their bytes and their FLOPs."""
    flops = tokens * linear_flops_per_token(config)
    return max(linear_bytes / device.spec_bandwidth, flops / device.spec_flops)


def step_seconds(
    config: ModelConfig, device: DeviceSpec, tokens: float, linear_bytes: int
) -> float:
    """The same with ``lm_head``, whose matrix stays as it is; K and V are left out."""
    head_bytes = 2 * config.vocab_size * config.hidden_size
    flops = tokens * lm_head_flops_per_row(config)
    head = max(head_bytes / device.spec_bandwidth, flops / device.spec_flops)
    return head + linear_seconds(config, device, tokens, linear_bytes)


def components(config: ModelConfig, group_size: int) -> list[tuple[str, float, float]]:
    """Name, bytes in bfloat16 and bytes in 4 bits of each part of a model."""
    counts, bits = parameter_counts(config), gptq_bits_per_weight(group_size)
    return [
        ("MLP", 2.0 * counts.mlp, counts.mlp / 2),
        ("attention's projections", 2.0 * counts.attention, counts.attention / 2),
        ("scales and zero points", 0.0, counts.linear * (bits - 4) / 8),
        ("embedding = lm_head", 2.0 * counts.embedding, 2.0 * counts.embedding),
        ("norms", 2.0 * counts.norms, 2.0 * counts.norms),
    ]


@figure("m7-two-weights")
def two_weights(_: FigureInput) -> Any:
    """Draw the error of two weights as ellipses, and where two methods end."""
    import numpy as np

    ax = axes(None, 5.6, 4.2)
    plain, better = nearest(), compensated()
    x, y = np.meshgrid(np.linspace(1.3, 3.7, 200), np.linspace(2.4, 4.6, 200))
    a, b = WEIGHTS[0] - x, WEIGHTS[1] - y
    ax.contour(
        x, y, a * a + b * b + 2 * CORRELATION * a * b,
        levels=(better.error, 0.3, plain.error, 1.2), colors=INK, linewidths=0.8, alpha=0.45,
    )  # fmt: skip
    for column in (2, 3):
        ax.plot([column] * 2, [3, 4], "o", color=INK, ms=6, mfc="none")
    ax.plot(*WEIGHTS, "x", color=INK, ms=9, mew=2)
    ax.text(WEIGHTS[0] + 0.06, WEIGHTS[1] + 0.05, "w", color=INK, fontsize=11)
    arrow = {"arrowstyle": "-|>", "lw": 1.6, "shrinkA": 5, "shrinkB": 5}
    bend = (better.first, better.target)
    for start, end, number, style in (
        (WEIGHTS, (plain.first, plain.second), 1, ":"),
        (WEIGHTS, bend, 0, "-"),
        (bend, (better.first, better.second), 0, "-"),
    ):
        ax.annotate("", end, start, arrowprops={**arrow, "color": hue(number), "ls": style})
    for made, name, number, mark, lift in (
        (plain, "nearest", 1, "s", -0.16),
        (better, "with GPTQ's move", 0, "D", 0.1),
    ):
        ax.plot(made.first, made.second, mark, color=hue(number), ms=8)
        text = f"{name}: error {made.error:.2f}"
        ax.text(made.first, made.second + lift, text, ha="center", color=hue(number), fontsize=9)
    ax.set(xticks=(2, 3), yticks=(3, 4), xlim=(1.3, 3.7), ylim=(2.4, 4.6))
    label(ax, None, "first weight, in steps of the grid", "second weight")
    return ax


@figure("m7-loop")
def loop(_: FigureInput) -> Any:
    """Draw the columns of W in the middle of the loop: done, now, free in the block, the rest."""
    from matplotlib.patches import Patch, Rectangle

    columns, rows, block, group, now = 24, 5, 8, 4, 10
    stop = (now // block + 1) * block
    ax = axes(None, 7.4, 2.7)
    looks: dict[str, dict[str, Any]] = {
        "done: on the grid": {"facecolor": hue(0), "alpha": 0.75},
        "now: rounded, error e": {"facecolor": hue(1)},
        "free, moved at once": {"facecolor": hue(2), "alpha": 0.45, "hatch": "//"},
        "free, moved when the block is done": {"facecolor": "none"},
    }
    for column in range(columns):
        kind = (column >= now) + (column > now) + (column >= stop)
        for row in range(rows):
            ax.add_patch(
                Rectangle(
                    (column + 0.05, row + 0.08), 0.9, 0.84, edgecolor=INK, lw=0.7,
                    **list(looks.values())[kind],
                )
            )  # fmt: skip
    for border in range(0, columns + 1, block):
        ax.plot([border] * 2, [-0.5, rows + 0.1], color=INK, lw=1.6)
        if border < columns:
            name = f"block {border // block}"
            ax.text(border + block / 2, -0.35, name, ha="center", color=INK, fontsize=9)
    for border in range(0, columns, group):
        text = "scale, zero" if border <= now else "not chosen yet"
        ax.plot([border + 0.15, border + group - 0.15], [rows + 0.25] * 2, color=INK, lw=1)
        ax.text(border + group / 2, rows + 0.95, text, ha="center", color=INK, fontsize=8)
    ax.set(xlim=(-0.2, columns + 0.2), ylim=(rows + 1.2, -1.1), xticks=[], yticks=[])
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    entries = [Patch(edgecolor=INK, label=name, **look) for name, look in looks.items()]
    ax.figure.legend(
        handles=entries, loc="outside lower center", ncols=2, frameon=False, labelcolor=INK,
        fontsize=9,
    )  # fmt: skip
    return ax


@figure("m7-bytes")
def bytes_by_component(_: FigureInput) -> Any:
    """Draw the parts of Qwen3-0.6B in bfloat16 and with projections of 4 bits."""
    parts = components(QWEN3_0_6B, 128)
    columns = ([dense for _, dense, _ in parts], [packed for _, _, packed in parts])
    wholes = (weight_bytes(QWEN3_0_6B), gptq_model_bytes(QWEN3_0_6B))
    names = ("bfloat16", "4 bits, groups of 128")
    ax = axes(None, 7.4, 2.4)
    for row, whole in enumerate(wholes):
        start = 0.0
        for number, (name, *_rest) in enumerate(parts):
            size = columns[row][number] / _MB
            look: dict[str, Any] = {"hatch": "//", "edgecolor": INK} if number == 3 else {}
            title = name if row == 0 or number == 2 else None
            ax.barh(row, size, 0.6, left=start, color=hue(number), lw=0, label=title, **look)
            if size > 40:
                ax.text(
                    start + size / 2, row - 0.38, f"{size:,.0f}", ha="center", color=INK,
                    fontsize=8,
                )  # fmt: skip
            start += size
        ax.text(start + 10, row, f"{whole / _MB:,.0f} MB", va="center", color=INK, fontsize=9)
    ax.set_yticks((0, 1), names)
    ax.set(ylim=(1.5, -0.6), xlim=(0, wholes[0] / _MB * 1.13))
    label(ax, None, "MB", None)
    handles, titles = ax.get_legend_handles_labels()
    found = dict(zip(titles, handles, strict=True))
    order = [name for name, _, _ in parts if name in found]
    ax.figure.legend(
        [found[name] for name in order], order, loc="outside lower center", ncols=3,
        frameon=False, labelcolor=INK, fontsize=9,
    )  # fmt: skip
    return ax


@figure("m7-gain")
def gain(_: FigureInput) -> Any:
    """Draw how much faster 4-bit weights can be at most, against the tokens of a step."""
    model, packed = QWEN3_0_6B, gptq_linear_bytes(QWEN3_0_6B)
    dense = 2 * parameter_counts(model).linear
    counts = [2 ** (step / 8) for step in range(81)]
    ax = axes(None, 6.4, 3.4)
    for number, key in enumerate(("h100", "a100")):
        device = DEVICES[key]
        for name, seconds, style in (
            ("projections", linear_seconds, "-"),
            ("whole step", step_seconds, "-."),
        ):
            gains = [
                seconds(model, device, n, dense) / seconds(model, device, n, packed) for n in counts
            ]
            ax.plot(
                counts, gains, style, color=hue(number), lw=1.8, marker="os"[number], ms=5,
                markevery=8, label=f"{name}, {device.name}",
            )  # fmt: skip
    ax.axhline(1, color=INK, ls=":", lw=1.2)
    ax.set_xscale("log", base=2)
    ticks = [2**power for power in range(11)]
    ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    ax.minorticks_off()
    ax.set_ylim(bottom=0)
    label(ax, None, "tokens in the step", "bfloat16 time / 4-bit time, at most")
    ax.figure.legend(loc="outside lower center", ncols=2, frameon=False, labelcolor=INK, fontsize=9)
    return ax
