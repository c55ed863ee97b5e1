"""The ``calculator`` directive: the element, and inside it a table for readers without scripts.

The tables are computed by ``common`` at the calculators' default settings; the scripts compute the
same by formulas of their own, which the tests hold to these.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable

from common.devices import (
    DEVICES,
    GIB,
    chunked_prefill,
    gptq_linear_speedup,
    kv_pool_tokens,
)
from common.errors import OutOfMemoryError
from common.model_config import ModelConfig
from common.model_costs import (
    gptq_bits_per_weight,
    gptq_model_bytes,
    kv_bytes,
    step_bytes,
    step_flops,
    weight_bytes,
)
from common.qwen3 import QWEN3_0_6B, QWEN3_SHAPES
from tools.calculators.facts import DEFAULT_DEVICE, facts
from tools.docs_build.context import PageContext
from tools.docs_build.errors import DocsError

Table = tuple[str, list[str], list[list[str]]]
"""A caption, the head, the lines."""

_DEVICE = DEVICES[DEFAULT_DEVICE]


def render_calculator(name: str, context: PageContext) -> list[str]:
    """Render the ``calculator`` directive.

    Raises:
        DocsError: There is no such calculator.
    """
    if name not in _TABLES:
        raise DocsError(f"no calculator {name!r} (known: {', '.join(_TABLES)})")
    data = html.escape(json.dumps(facts(name, context), separators=(",", ":")), quote=True)
    return [
        '<div class="folo-calculator-place" data-search-exclude>',
        f'<folo-calculator name="{name}" data-facts="{data}">',
        *_html_table(_TABLES[name]()),
        "</folo-calculator>",
        "</div>",
    ]


def _html_table(table: Table) -> list[str]:
    caption, head, rows = table
    cells = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    lines = ['<div class="calc-table" tabindex="0">', "<table>"]
    lines += [f"<caption>{html.escape(caption)}</caption>", f"<thead><tr>{cells}</tr></thead>"]
    lines.append("<tbody>")
    for row in rows:
        first, *others = (html.escape(cell) for cell in row)
        rest = "".join(f"<td>{cell}</td>" for cell in others)
        lines.append(f'<tr><th scope="row">{first}</th>{rest}</tr>')
    return [*lines, "</tbody>", "</table>", "</div>"]


def _kv_memory() -> Table:
    rows = []
    for name, model in QWEN3_SHAPES.items():
        tokens = [_pool_tokens(model, device.memory_bytes) for device in DEVICES.values()]
        rows.append(
            [
                name,
                f"{kv_bytes(model) // 1024} KiB",
                f"{weight_bytes(model) / GIB:.2f} GiB",
                *(f"{count:,}" for count in tokens),
            ]
        )
    head = ["Model", "KV per token", "Weights", *(device.name for device in DEVICES.values())]
    caption = "Tokens of KV in 0.9 of the memory, less weights and 1 GiB of activations, bfloat16"
    return caption, head, rows


def _pool_tokens(model: ModelConfig, memory: int) -> int:
    try:
        return kv_pool_tokens(model, memory, block_size=16)
    except OutOfMemoryError:
        return 0


def _roofline() -> Table:
    rows = []
    for batch in (1, 8, 32, 64, 256, 1024):
        slices = [(1024, 1025)] * batch
        read = step_bytes(QWEN3_0_6B, slices)
        memory = read / _DEVICE.spec_bandwidth
        arithmetic = step_flops(QWEN3_0_6B, slices) / _DEVICE.spec_flops
        step = max(memory, arithmetic)
        rows.append(
            [
                f"{batch:,}",
                f"{read / 1e9:.2f} GB",
                f"{memory * 1e3:.2f} ms",
                f"{arithmetic * 1e3:.2f} ms",
                "bandwidth" if memory >= arithmetic else "arithmetic",
                f"{batch / step:,.0f}",
            ]
        )
    head = ["Batch", "Bytes read", "Reading", "Computing", "Bound by", "Tokens/s at most"]
    return f"A decode step of Qwen3-0.6B at context 1,024, {_DEVICE.name}, data sheet", head, rows


def _chunk_size() -> Table:
    rows = []
    for budget in (64, 128, 256, 512, 1024, 2048, 8192 + 32):
        found = chunked_prefill(
            QWEN3_0_6B, _DEVICE.spec_bandwidth, _DEVICE.spec_flops,
            prompt=8192, budget=budget, streams=32, context=1024, overhead=2e-3,
        )  # fmt: skip
        rows.append(
            [
                f"{budget:,}" if budget <= 8192 else f"{budget:,} (whole)",
                f"{found.num_steps:,}",
                f"{found.gap * 1e3:.1f} ms",
                f"{found.ttft * 1e3:.1f} ms",
            ]
        )
    head = ["Budget", "Steps", "Longest gap of the streams", "Time to first token"]
    caption = (
        f"8,192 tokens land on 32 streams of 1,024 tokens, Qwen3-0.6B, {_DEVICE.name}, data sheet "
        "and 2 ms a step"
    )
    return caption, head, rows


def _gptq_bytes() -> Table:
    rows = []
    for name, model in QWEN3_SHAPES.items():
        full, packed = weight_bytes(model), gptq_model_bytes(model)
        rows.append(
            [
                name,
                f"{full / 1e9:.2f} GB",
                f"{packed / 1e9:.2f} GB",
                f"{1 - packed / full:.1%}",
                f"{full / packed:.2f} ×",
            ]
        )
    head = ["Model", "bfloat16", "4 bits, groups of 128", "Saved", "Step of one sequence, at most"]
    caption = (
        f"{gptq_bits_per_weight(128):.3f} bits per projection weight; embedding, head and norms "
        f"stay bfloat16. One projection gains at most {gptq_linear_speedup():.2f} ×"
    )
    return caption, head, rows


_TABLES: dict[str, Callable[[], Table]] = {
    "kv-memory": _kv_memory,
    "roofline": _roofline,
    "chunk-size": _chunk_size,
    "gptq-bytes": _gptq_bytes,
}
