"""The constants sheet: every number the notes quote about Qwen3-0.6B, computed, never typed.

:data:`QWEN3_0_6B` is the architecture; the functions of :mod:`common.model_costs` and
:mod:`common.devices` turn it into numbers; :data:`CONSTANTS` gives the quoted ones a name, a unit
and a sentence. Tests hold the sheet to the shapes and bytes of the real model.

Times are floors: bytes over the data sheet's bandwidth, or FLOPs over its throughput. What was
measured carries ``measured`` in its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from common.devices import (
    DEVICES,
    GIB,
    decode_ceiling_tokens_per_second,
    decode_floor_seconds,
    decode_saturation_tokens_per_second,
    gptq_full_gain_tokens,
    gptq_linear_speedup,
    kv_equals_weights_batch,
    kv_pool_tokens,
    prefill_floor_seconds,
)
from common.model_config import ModelConfig
from common.model_costs import (
    attention_flops_per_token,
    block_utilization,
    chunk_kv_reread_bytes,
    chunk_weight_bytes,
    gptq_bits_per_weight,
    gptq_linear_bytes,
    gptq_model_bytes,
    kv_bytes,
    kv_bytes_with_heads,
    kv_crossover_tokens,
    linear_flops_per_token,
    lm_head_flops_per_row,
    naive_score_bytes,
    parameter_counts,
    prefill_attention_share,
    prefill_half_length,
    static_batch_utilization,
    token_forwards,
    weight_bytes,
)

QWEN3_0_6B_HF_CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
"""``config.json`` of ``Qwen/Qwen3-0.6B``, in the old spelling that it is published with."""

QWEN3_0_6B = ModelConfig.from_dict(QWEN3_0_6B_HF_CONFIG, {"eos_token_id": [151645, 151643]})
"""Its architecture; ``generation_config.json`` adds ``<|endoftext|>`` as a second EOS."""


def _sibling(layers: int, hidden: int, inner: int, heads: int, *, tied: bool) -> ModelConfig:
    """Another dense Qwen3: what its ``config.json`` says otherwise than that of the 0.6B."""
    differs: dict[str, Any] = {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "tie_word_embeddings": tied,
    }
    generation = {"eos_token_id": [151645, 151643]}
    return ModelConfig.from_dict(QWEN3_0_6B_HF_CONFIG | differs, generation)


QWEN3_SHAPES: dict[str, ModelConfig] = {
    "Qwen3-0.6B": QWEN3_0_6B,
    "Qwen3-1.7B": _sibling(28, 2048, 6144, 16, tied=True),
    "Qwen3-4B": _sibling(36, 2560, 9728, 32, tied=True),
    "Qwen3-8B": _sibling(36, 4096, 12288, 32, tied=False),
}
"""Dense Qwen3 models by name; the larger ones are for "and what if it were the 8B?"."""

BLOCK_SIZE = 16
"""Tokens per KV block in the numbers below."""

PCIE_BANDWIDTH = 25e9
"""Bytes per second assumed between a GPU and the host's memory (PCIe 4.0 x16, after overhead)."""


@dataclass(frozen=True)
class Constant:
    """One quoted number.

    Attributes:
        value: The number.
        unit: What it counts, such as ``bytes``, ``seconds`` or ``fraction``.
        meaning: One line.
    """

    value: int | float
    unit: str
    meaning: str


Row = tuple[str, int | float, str, str]


def _parameters() -> list[Row]:
    model, unit = QWEN3_0_6B, "parameters"
    n, layers = parameter_counts(model), model.num_layers
    return [
        ("params_layer_attention", n.attention // layers, unit, "q, k, v and o of one layer"),
        ("params_layer_mlp", n.mlp // layers, unit, "gate, up and down of one layer"),
        ("params_layer_norms", (n.norms - model.hidden_size) // layers, unit, "norms of one layer"),
        ("params_embedding", n.embedding, unit, "token embedding, shared with the output"),
        ("params_linear", n.linear, unit, "all projections inside the layers"),
        ("params_total", n.total, unit, "all parameters, the tied matrix once"),
        ("params_without_embedding", n.total - n.embedding, unit, "all but the embedding"),
        ("embedding_share", n.embedding / n.total, "fraction", "the embedding among parameters"),
        ("weight_bytes", weight_bytes(model), "bytes", "all weights, bfloat16"),
        ("weight_bytes_float32", weight_bytes(model, "float32"), "bytes", "all weights, float32"),
    ]


def _kv() -> list[Row]:
    model = QWEN3_0_6B
    token, block, layers = kv_bytes(model), kv_bytes(model, BLOCK_SIZE), model.num_layers
    mha, mqa = (kv_bytes_with_heads(model, heads) for heads in (model.num_heads, 1))
    scores, crossover = naive_score_bytes(model, 8192), kv_crossover_tokens(model)
    pool_text = "0.9 of it less weights and 1 GiB of activations"
    rows: list[Row] = [
        ("kv_bytes_per_token", token, "bytes", "K and V of one token, all layers, bfloat16"),
        ("kv_bytes_per_token_layer", token // layers, "bytes", "K and V of one token in a layer"),
        ("kv_bytes_per_token_mha", mha, "bytes", "the same with a K and V per query head"),
        ("kv_bytes_per_token_mqa", mqa, "bytes", "the same with one K and V for all query heads"),
        ("kv_block_bytes", block, "bytes", "a block of 16 tokens, all layers"),
        ("kv_block_bytes_layer", block // layers, "bytes", "a block of 16 tokens in one layer"),
        ("kv_block_waste_bytes", token * 15 // 2, "bytes", "7.5 empty slots, a last block's mean"),
        ("kv_crossover_tokens", crossover, "tokens", "tokens whose KV is as large as the weights"),
        (
            "naive_score_bytes_8192",
            scores,
            "bytes",
            "scores of one layer at 8,192 tokens, bfloat16",
        ),
    ]
    for length in (2048, 8192, 32_768, 40_960):
        size = kv_bytes(model, length)
        rows.append((f"kv_bytes_{length}", size, "bytes", f"KV of {length:,} tokens"))
    for length in (200, 2048):
        used, text = block_utilization(length), f"used KV slots at {length:,} tokens a sequence"
        rows.append((f"block_utilization_{length}", used, "fraction", text))
    for size in (8, 24, 80):
        tokens, text = kv_pool_tokens(model, size * GIB), f"KV tokens in {size} GiB: {pool_text}"
        rows.append((f"kv_pool_tokens_{size}gib", tokens, "tokens", text))
    blocks = kv_pool_tokens(model, 24 * GIB, block_size=BLOCK_SIZE) // BLOCK_SIZE
    rows.append(("kv_pool_blocks_24gib", blocks, "blocks", f"KV blocks in 24 GiB: {pool_text}"))
    return rows


def _compute() -> list[Row]:
    model = QWEN3_0_6B
    linear, head = linear_flops_per_token(model), lm_head_flops_per_row(model)
    attention, half = attention_flops_per_token(model), prefill_half_length(model)
    uncached, cached = (token_forwards(128, 256, use_cache=cache) for cache in (False, True))
    weights, reread = (f(model, 8192, 512) for f in (chunk_weight_bytes, chunk_kv_reread_bytes))
    static = static_batch_utilization((20, 200, 10))
    rows: list[Row] = [
        ("linear_flops_per_token", linear, "FLOP", "projections of all layers, one token"),
        ("lm_head_flops_per_row", head, "FLOP", "logits of one sampled row"),
        ("attention_flops_per_token", attention, "FLOP", "attention, per token and its context"),
        ("prefill_attention_flops", attention // 2, "FLOP", "causal attention, per length squared"),
        ("prefill_half_length", half, "tokens", "length at which attention is half of a prefill"),
        ("token_forwards_uncached", uncached, "tokens", "computed for 256 after 128, no KV cache"),
        ("token_forwards_cached", cached, "tokens", "computed for 256 after 128, with a KV cache"),
        ("static_batch_use", static, "fraction", "useful slots, static batch of 20, 200 and 10"),
        ("chunked_weight_bytes", weights, "bytes", "weights read by 8,192 tokens in chunks of 512"),
        ("chunked_kv_reread_bytes", reread, "bytes", "earlier KV read again by these chunks"),
    ]
    for length in (512, 2048, 8192, 32_768):
        share, text = prefill_attention_share(model, length), f"attention in {length:,} tokens"
        rows.append((f"prefill_attention_share_{length}", share, "fraction", text))
    return rows


def _floors() -> list[Row]:
    model, rows = QWEN3_0_6B, list[Row]()
    for key, device in DEVICES.items():
        speed, name = device.spec_bandwidth, device.name
        step, most = (
            floor(model, speed)
            for floor in (decode_floor_seconds, decode_ceiling_tokens_per_second)
        )
        prefill = prefill_floor_seconds(model, device.spec_flops, 2048)
        gain = gptq_full_gain_tokens(device.ridge)
        rows += [
            (f"ridge_{key}", device.ridge, "FLOP/byte", f"{name}, data sheet"),
            (f"decode_floor_{key}", step, "seconds", f"a step, one short sequence: {name}"),
            (f"decode_ceiling_{key}", most, "tokens/s", f"one short sequence: {name}"),
            (f"prefill_floor_2048_{key}", prefill, "seconds", f"2,048 tokens: {name}"),
            (f"gptq_full_gain_tokens_{key}", gain, "tokens", f"a step, full 4-bit gain: {name}"),
        ]
    h100, swap = DEVICES["h100"], kv_bytes(model, 2048) / PCIE_BANDWIDTH
    measured = decode_floor_seconds(model, h100.bandwidth(measured=True))
    limit = decode_saturation_tokens_per_second(model, h100.spec_bandwidth, 1024)
    even = kv_equals_weights_batch(model, 1024)
    rows += [
        ("decode_floor_h100_measured", measured, "seconds", "at the measured copy bandwidth"),
        ("decode_limit_h100_1024", limit, "tokens/s", "at context 1,024, any batch, data sheet"),
        ("kv_equals_weights_batch_1024", even, "sequences", "KV bytes as weight bytes in a step"),
        ("swap_seconds_2048", swap, "seconds", "KV of 2,048 tokens over PCIe at 25 GB/s"),
    ]
    return rows


def _gptq() -> list[Row]:
    model = QWEN3_0_6B
    full, linear = weight_bytes(model), 2 * parameter_counts(model).linear
    packed, whole = gptq_linear_bytes(model), gptq_model_bytes(model)
    speedup, saved = gptq_linear_speedup(), 1 - packed / linear
    return [
        ("gptq_bits_g128", gptq_bits_per_weight(128), "bits", "one weight, groups of 128"),
        ("gptq_bits_g32", gptq_bits_per_weight(32), "bits", "one weight, groups of 32"),
        ("linear_bytes", linear, "bytes", "all projections, bfloat16"),
        ("gptq_linear_bytes", packed, "bytes", "all projections, 4 bit in groups of 128"),
        ("gptq_linear_saving", saved, "fraction", "bytes saved in the projections"),
        ("gptq_model_bytes", whole, "bytes", "the whole model, projections in 4 bit"),
        ("gptq_model_saving", 1 - whole / full, "fraction", "bytes saved in the whole model"),
        ("gptq_linear_speedup", speedup, "ratio", "gain of a bandwidth-bound projection, at most"),
        ("gptq_step_speedup", full / whole, "ratio", "gain of a one-sequence step, at most"),
    ]


CONSTANTS: dict[str, Constant] = {
    name: Constant(value, unit, meaning)
    for rows in (_parameters(), _kv(), _compute(), _floors(), _gptq())
    for name, value, unit, meaning in rows
}
"""Every quoted number by name."""
