"""What Qwen3-0.6B costs in memory, drawn from the constants sheet."""

from __future__ import annotations

from typing import Any

from common.charts import line_with_floor
from common.model_costs import kv_bytes, parameter_counts, weight_bytes
from common.plot_style import INK, axes, hue, label
from common.qwen3 import QWEN3_0_6B
from tools.figures.registry import FigureInput, figure

_MIB = 2**20
_GIB = 2**30


@figure("weight-bytes")
def weights_by_component(_: FigureInput) -> Any:
    """Draw a waterfall of the weights in bfloat16, component by component."""
    counts = parameter_counts(QWEN3_0_6B)
    parts = [
        ("MLP: gate, up, down", counts.mlp),
        ("embedding, shared with the output", counts.embedding),
        ("attention: q, k, v", counts.qkv),
        ("attention: output", counts.attention_output),
        ("norms", counts.norms),
    ]
    ax = axes(None, 6.4, 2.6)
    start = 0.0
    for row, (_name, count) in enumerate(parts):
        size = count * 2 / _MIB
        ax.barh(row, size, left=start, height=0.62, color=hue(row))
        ax.text(start + size + 12, row, f"{size:,.0f} MiB", va="center", color=INK, fontsize=9)
        start += size
    ax.set_yticks(range(len(parts)), [name for name, _ in parts])
    ax.invert_yaxis()
    ax.set_xlim(0, start * 1.16)
    label(ax, None, f"MiB in bfloat16, {start:,.0f} MiB in all", None)
    return ax


@figure("kv-growth")
def kv_growth(_: FigureInput) -> Any:
    """Draw the KV cache of one sequence against its length, beside the weights."""
    lengths = [0, *range(2048, QWEN3_0_6B.max_position_embeddings + 1, 2048)]
    cache = {float(n): kv_bytes(QWEN3_0_6B, n) / _GIB for n in lengths}
    return line_with_floor(
        {"KV cache of one sequence": cache},
        weight_bytes(QWEN3_0_6B) / _GIB,
        xlabel="tokens in the sequence",
        ylabel="GiB in bfloat16",
        floor_label="all weights",
    )
