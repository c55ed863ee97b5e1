"""What a checkpoint becomes: its matrices in the model, its angles, its share of a device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from common.devices import GIB
from common.errors import ConfigError
from common.plot_style import INK, axes, hue, label, legend, text_on
from common.qwen3 import QWEN3_0_6B
from m0_init.memory_plan import parts_of_weights, plan_memory
from tools.figures.registry import FigureInput, figure

_SCALE = 0.03  # pixels per row or column of a matrix
_WIDTH, _GAP, _STORED_X, _LOADED_X = 660, 12, 176, 394


@dataclass(frozen=True)
class _Matrix:
    """One stored matrix ``[rows, columns]`` and the module whose rows it fills."""

    name: str
    rows: int
    columns: int
    module: str


def _matrices_of_a_layer() -> list[_Matrix]:
    """The seven projections of a decoder layer of Qwen3-0.6B, in the order of the forward pass."""
    model = QWEN3_0_6B
    hidden, inner, q, kv = model.hidden_size, model.intermediate_size, model.q_size, model.kv_size
    return [
        _Matrix("q_proj", q, hidden, "attn.qkv"),
        _Matrix("k_proj", kv, hidden, "attn.qkv"),
        _Matrix("v_proj", kv, hidden, "attn.qkv"),
        _Matrix("o_proj", hidden, q, "attn.o"),
        _Matrix("gate_proj", inner, hidden, "mlp.gate_up"),
        _Matrix("up_proj", inner, hidden, "mlp.gate_up"),
        _Matrix("down_proj", hidden, inner, "mlp.down"),
    ]


@figure("merged-projections")
def merged_projections(_: FigureInput) -> str:
    """Draw the stored matrices of a layer to scale, and the rows that each one fills."""
    matrices = _matrices_of_a_layer()
    modules = list(dict.fromkeys(matrix.module for matrix in matrices))
    height = sum(matrix.rows for matrix in matrices) * _SCALE + _GAP * (len(matrices) - 1)
    loaded = sum(matrix.rows for matrix in matrices) * _SCALE
    spread = (height - loaded) / (len(modules) - 1)
    parts = [_head(_STORED_X, "stored", "end"), _head(_LOADED_X, "in the model", "start")]
    stored_y = loaded_y = 28.0
    for number, module in enumerate(modules):
        mine = [matrix for matrix in matrices if matrix.module == module]
        top = loaded_y
        for matrix in mine:
            tall, wide = matrix.rows * _SCALE, matrix.columns * _SCALE
            right, colour = _STORED_X + 8 + wide, hue(number)
            parts += [
                _box(_STORED_X + 8, stored_y, wide, tall, colour),
                _text(_STORED_X, stored_y + tall / 2, *_named(matrix), "end"),
                _band(right, stored_y, loaded_y, tall, colour),
                _box(_LOADED_X, loaded_y, wide, tall, colour),
            ]
            stored_y += tall + _GAP
            loaded_y += tall
        whole = _Matrix(module, sum(m.rows for m in mine), mine[0].columns, module)
        middle = (top + loaded_y) / 2
        parts.append(
            _text(_LOADED_X + whole.columns * _SCALE + 10, middle, *_named(whole), "start")
        )
        loaded_y += spread
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" '
        f'viewBox="0 0 {_WIDTH} {height + 32:.0f}">'
    )
    return "\n".join([opening, *parts, "</svg>"])


def _named(matrix: _Matrix) -> tuple[str, str]:
    return matrix.name, f"{matrix.rows:,} × {matrix.columns:,}"


def _head(x: float, text: str, anchor: str) -> str:
    return (
        f'<text x="{x:g}" y="12" text-anchor="{anchor}" fill="{INK}" '
        f'style="font-size: 12px">{text}</text>'
    )


def _box(x: float, y: float, width: float, height: float, colour: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
        f'fill="{colour}" fill-opacity="0.3" stroke="{colour}"/>'
    )


def _band(right: float, stored_y: float, loaded_y: float, height: float, colour: str) -> str:
    return (
        f'<path d="M{right:.1f} {stored_y:.1f}L{_LOADED_X:.1f} {loaded_y:.1f}v{height:.1f}'
        f'L{right:.1f} {stored_y + height:.1f}z" fill="{colour}" fill-opacity="0.14"/>'
    )


def _text(x: float, y: float, name: str, shape: str, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y + 4.5:.1f}" text-anchor="{anchor}" fill="currentColor" '
        f'style="font-size: 13px"><tspan style="font-weight: bold">{name}</tspan>'
        f'<tspan dx="7">{shape}</tspan></text>'
    )


@figure("rope-wavelengths")
def rope_wavelengths(_: FigureInput) -> Any:
    """Draw after how many tokens each pair of a head has turned once, for two bases."""
    half = QWEN3_0_6B.head_dim // 2
    ax = axes(None, 6.4, 3.4)
    bases = ((QWEN3_0_6B.rope.theta, "-"), (10_000.0, "--"))
    for number, (theta, style) in enumerate(bases):
        turns = [2 * math.pi * theta ** (pair / half) for pair in range(half)]
        ax.plot(range(half), turns, style, color=hue(number), lw=2, label=f"theta {theta:,.0f}")
    longest = QWEN3_0_6B.max_position_embeddings
    ax.axhline(longest, color=INK, ls=":", lw=1.5, label=f"context of {longest:,}")
    ax.set_yscale("log")
    ax.set_ylim(3, 1e7)
    ax.yaxis.set_major_formatter("{x:,.0f}")
    label(ax, None, f"pair of a head (0 to {half - 1})", "tokens for one full turn")
    legend(ax)
    return ax


@figure("memory-plan", ("memory_gib", "num_batched_tokens"))
def memory_plan(given: FigureInput) -> Any:
    """Draw where the memory of a device goes, as a waterfall from the weights to the KV pool."""
    try:
        size = float(given.option("memory_gib"))
        tokens = int(given.options.get("num_batched_tokens", "2048"))
    except ValueError as error:
        raise ConfigError(f"memory_gib and num_batched_tokens are numbers: {error}") from error
    plan = plan_memory(QWEN3_0_6B, int(size * GIB), num_batched_tokens=tokens)
    bars = {f"weights: {name}": part for name, part in parts_of_weights(QWEN3_0_6B).items()}
    bars |= {name: part for name, part in plan.parts().items() if name != "weights"}
    ax = axes(None, 6.8, 3.4)
    start, total = 0.0, plan.memory_bytes / GIB
    for row, (name, part) in enumerate(bars.items()):
        wide, used = part / GIB, name != "not used"
        colour = hue(0 if name.startswith("weights") else row - 3)
        look = {"color": colour} if used else {"facecolor": "none", "edgecolor": INK, "ls": "--"}
        # A sliver of a device is still a part of the plan: never thinner than a line.
        ax.barh(row, max(wide, total / 400), left=start, height=0.66, **look)
        text = f"{wide:.2f} GiB" if wide >= 0.1 else f"{wide * 1024:,.1f} MiB"
        if name == "KV pool":
            text += f" = {plan.num_tokens:,} tokens"
            ink = text_on(colour)
            ax.text(start + wide / 2, row, text, va="center", ha="center", color=ink, fontsize=9)
        elif start + wide > 0.75 * total:
            ax.text(start - 0.01 * total, row, text, va="center", ha="right", color=INK, fontsize=9)
        else:
            at = start + wide + 0.012 * total
            ax.text(at, row, text, va="center", color=INK, fontsize=9)
        start += wide
    ax.set_yticks(range(len(bars)), list(bars))
    ax.invert_yaxis()
    ax.set_xlim(0, 1.003 * total)
    label(ax, None, f"GiB of a device with {size:g} GiB", None)
    return ax
