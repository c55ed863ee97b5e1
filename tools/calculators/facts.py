"""What the calculators know: models, devices, and measured points for their curves."""

from __future__ import annotations

from typing import Any

from common.devices import DEVICES, DeviceSpec
from common.model_config import ModelConfig
from common.qwen3 import QWEN3_SHAPES
from tools.docs_build.context import PageContext
from tools.docs_build.results import Result, select

DEFAULT_DEVICE = "h100"
_RANDOM = "qwen3-0.6b-random"
"""Random weights of Qwen3-0.6B's shape: measured like the model, since time depends on shape."""


def model_facts(name: str, config: ModelConfig) -> dict[str, Any]:
    """A model as ``formulas.js`` takes it."""
    return {
        "name": name,
        "layers": config.num_layers,
        "hidden": config.hidden_size,
        "inner": config.intermediate_size,
        "heads": config.num_heads,
        "kvHeads": config.num_kv_heads,
        "headDim": config.head_dim,
        "vocab": config.vocab_size,
        "tied": config.tie_word_embeddings,
        "qkNorm": config.qk_norm,
    }


def device_facts(device: DeviceSpec) -> dict[str, Any]:
    """A device as the calculators take it: the data sheet's figures."""
    return {
        "name": device.name,
        "memory": device.memory_bytes,
        "bandwidth": device.spec_bandwidth,
        "flops": device.spec_flops,
    }


def facts(name: str, context: PageContext) -> dict[str, Any]:
    """Everything that the element of calculator ``name`` is given."""
    return {
        "models": {key: model_facts(key, config) for key, config in QWEN3_SHAPES.items()},
        "devices": {key: device_facts(device) for key, device in DEVICES.items()},
        "device": list(DEVICES).index(DEFAULT_DEVICE),
        "measured": measured(name, context),
    }


def measured(name: str, context: PageContext) -> list[dict[str, Any]]:
    """Points of the result files that lie in the chart of calculator ``name``.

    Only results of Qwen3-0.6B's shape on a device that the calculators list; a file that is
    measured later adds its points by itself.
    """
    points: list[dict[str, Any]] = []
    for file in context.results.names():
        folder, _, stem = file.partition("/")
        device = next((key for key in DEVICES if key in folder.replace("-", "")), None)
        collect = _COLLECT.get((name, stem))
        if device is None or collect is None:
            continue
        result = context.results.get(file)
        if result.data["config"].get("model") != _RANDOM:
            continue
        page = context.link_to("benchmarks/index.md").removesuffix("index.md")
        for x, y, label in collect(result):
            points.append(
                {
                    "x": x,
                    "y": y,
                    "label": label,
                    "model": "Qwen3-0.6B",
                    # Bytes are the same on every device; times are not.
                    "device": None if name == "kv-memory" else device,
                    "source": _SOURCES[name, stem],
                    "href": page,
                }
            )
    return points


def _reserved(result: Result) -> list[tuple[float, float, str]]:
    (row,) = select(result.rows, "metric=kv_bytes")
    tokens = result.data["config"]["num_blocks"] * 16
    return [(tokens, row["median"] / 2**30, f"m3_paged reserved {tokens:,} places")]


def _step_times(result: Result) -> list[tuple[float, float, str]]:
    rows = select(result.rows, "metric=tpot_p50,engine=m2_batching")
    return [
        (row["batch"], row["median"] * 1e3, f"m2_batching, batch {row['batch']}") for row in rows
    ]


def _chunks(result: Result) -> list[tuple[float, float, str]]:
    points = []
    for metric, what in (("largest_gap", "longest gap"), ("long_ttft", "time to first token")):
        for row in select(result.rows, f"metric={metric},engine=m5_chunked"):
            label = f"m5_chunked, budget {row['budget']}, {what}"
            points.append((row["budget"], row["median"] * 1e3, label))
    return points


_COLLECT = {
    ("kv-memory", "m3_paged-throughput"): _reserved,
    ("roofline", "m2_batching-throughput"): _step_times,
    ("chunk-size", "m5_chunked-chunk_size"): _chunks,
}
_SOURCES = {
    ("kv-memory", "m3_paged-throughput"): "KV that M3 reserved",
    ("roofline", "m2_batching-throughput"): "time per token of M2, context 128 to 192",
    ("chunk-size", "m5_chunked-chunk_size"): "M5",
}
