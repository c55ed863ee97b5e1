"""The constants sheet: the official config, and every number as the notes quote it."""

import pytest

from common.devices import GIB
from common.model_config import ModelConfig
from common.model_costs import kv_bytes, parameter_counts
from common.qwen3 import CONSTANTS, QWEN3_0_6B, QWEN3_0_6B_HF_CONFIG, QWEN3_SHAPES

KIB, MIB = 1024, 1024**2


def test_the_official_shape() -> None:
    c = QWEN3_0_6B
    assert (c.num_layers, c.hidden_size, c.intermediate_size) == (28, 1024, 3072)
    assert (c.num_heads, c.num_kv_heads, c.head_dim) == (16, 8, 128)
    assert c.head_dim != c.hidden_size // c.num_heads
    assert (c.vocab_size, c.max_position_embeddings) == (151_936, 40_960)
    assert (c.rope.theta, c.rope.rope_type, c.rms_norm_eps) == (1e6, "default", 1e-6)
    assert c.tie_word_embeddings
    assert c.qk_norm
    assert not c.qkv_bias
    assert c.eos_token_ids == (151_645, 151_643)
    assert c.dtype == "bfloat16"


def test_transformers_reads_the_same_config() -> None:
    from transformers import AutoConfig

    theirs = AutoConfig.for_model(**QWEN3_0_6B_HF_CONFIG)
    again = ModelConfig.from_dict(
        theirs.to_dict() | {"dtype": "bfloat16"}, {"eos_token_id": [151_645, 151_643]}
    )
    assert again == QWEN3_0_6B


# Parameters as the models are published (a tied matrix once), KiB of KV per token.
@pytest.mark.parametrize(
    "name, parameters, kv_kib",
    [
        ("Qwen3-0.6B", 596_049_920, 112),
        ("Qwen3-1.7B", 1_720_574_976, 112),
        ("Qwen3-4B", 4_022_468_096, 144),
        ("Qwen3-8B", 8_190_735_360, 144),
    ],
)
def test_the_larger_models_have_their_published_size(
    name: str, parameters: int, kv_kib: int
) -> None:
    shape = QWEN3_SHAPES[name]
    assert parameter_counts(shape).total == parameters
    assert kv_bytes(shape) == kv_kib * KIB
    assert (shape.num_kv_heads, shape.head_dim, shape.vocab_size) == (8, 128, 151_936)
    assert shape.eos_token_ids == QWEN3_0_6B.eos_token_ids


# What the notes quote, as it is quoted: name, value in the quoted unit, digits after the point.
QUOTED = [
    ("params_layer_attention", 6_291_456, 1, 0),
    ("params_layer_mlp", 9_437_184, 1, 0),
    ("params_layer_norms", 2_304, 1, 0),
    ("params_embedding", 155_582_464, 1, 0),
    ("params_linear", 440_401_920, 1, 0),
    ("params_total", 596_049_920, 1, 0),
    ("params_without_embedding", 0.44, 1e9, 2),
    ("embedding_share", 26.1, 1e-2, 1),
    ("weight_bytes", 1_192_099_840, 1, 0),
    ("weight_bytes_float32", 2_384_199_680, 1, 0),
    ("kv_bytes_per_token", 114_688, 1, 0),
    ("kv_bytes_per_token_layer", 4, KIB, 0),
    ("kv_bytes_per_token_mha", 229_376, 1, 0),
    ("kv_bytes_per_token_mqa", 14_336, 1, 0),
    ("kv_block_bytes", 1.75, MIB, 2),
    ("kv_block_bytes_layer", 64, KIB, 0),
    ("kv_block_waste_bytes", 840, KIB, 0),
    ("kv_crossover_tokens", 10_394, 1, 0),
    ("kv_bytes_2048", 224, MIB, 0),
    ("kv_bytes_8192", 896, MIB, 0),
    ("kv_bytes_32768", 3.5, GIB, 1),
    ("kv_bytes_40960", 4.375, GIB, 3),
    ("block_utilization_200", 96, 1e-2, 0),
    ("block_utilization_2048", 99.6, 1e-2, 1),
    ("naive_score_bytes_8192", 2, GIB, 0),
    ("kv_pool_tokens_8gib", 47.7, 1e3, 1),
    ("kv_pool_tokens_24gib", 182, 1e3, 0),
    ("kv_pool_tokens_80gib", 654, 1e3, 0),
    ("kv_pool_blocks_24gib", 11_404, 1, 0),
    ("linear_flops_per_token", 880.8, 1e6, 1),
    ("lm_head_flops_per_row", 311.2, 1e6, 1),
    ("attention_flops_per_token", 229_376, 1, 0),
    ("prefill_attention_flops", 114_688, 1, 0),
    ("prefill_half_length", 7_680, 1, 0),
    ("prefill_attention_share_512", 6, 1e-2, 0),
    ("prefill_attention_share_2048", 21, 1e-2, 0),
    ("prefill_attention_share_8192", 52, 1e-2, 0),
    ("prefill_attention_share_32768", 81, 1e-2, 0),
    ("token_forwards_uncached", 65_408, 1, 0),
    ("token_forwards_cached", 383, 1, 0),
    ("static_batch_use", 38, 1e-2, 0),
    ("chunked_weight_bytes", 17.8, GIB, 1),
    ("chunked_kv_reread_bytes", 6.6, GIB, 1),
    ("ridge_a100", 153, 1, 0),
    ("ridge_h100", 295, 1, 0),
    ("ridge_rtx4090", 164, 1, 0),
    ("decode_floor_a100", 0.585, 1e-3, 3),
    ("decode_floor_h100", 0.356, 1e-3, 3),
    ("decode_floor_rtx4090", 1.183, 1e-3, 3),
    ("decode_floor_h100_measured", 0.40, 1e-3, 2),
    ("decode_ceiling_a100", 1_710, 1, 0),
    ("decode_ceiling_h100", 2_810, 1, 0),
    ("decode_ceiling_rtx4090", 846, 1, 0),
    ("decode_limit_h100_1024", 28.5, 1e3, 1),
    ("kv_equals_weights_batch_1024", 10.2, 1, 1),
    ("prefill_floor_2048_a100", 7.3, 1e-3, 1),
    ("prefill_floor_2048_h100", 2.3, 1e-3, 1),
    ("prefill_floor_2048_rtx4090", 13.8, 1e-3, 1),
    ("swap_seconds_2048", 9.4, 1e-3, 1),
    ("gptq_bits_g128", 4.15625, 1, 5),
    ("gptq_bits_g32", 4.625, 1, 3),
    ("linear_bytes", 881, 1e6, 0),
    ("gptq_linear_bytes", 229, 1e6, 0),
    ("gptq_linear_saving", 74, 1e-2, 0),
    ("gptq_model_bytes", 540, 1e6, 0),
    ("gptq_model_saving", 55, 1e-2, 0),
    ("gptq_linear_speedup", 3.85, 1, 2),
    ("gptq_step_speedup", 2.2, 1, 1),
    ("gptq_full_gain_tokens_a100", 40, 1, 0),
    ("gptq_full_gain_tokens_h100", 77, 1, 0),
    ("gptq_full_gain_tokens_rtx4090", 43, 1, 0),
]


@pytest.mark.parametrize("name, quoted, unit, digits", QUOTED, ids=[row[0] for row in QUOTED])
def test_registry_holds_what_is_quoted(name: str, quoted: float, unit: float, digits: int) -> None:
    assert round(CONSTANTS[name].value / unit, digits) == quoted


def test_registry_is_complete_and_described() -> None:
    assert set(CONSTANTS) == {row[0] for row in QUOTED}
    for name, constant in CONSTANTS.items():
        assert constant.unit, name
        assert constant.meaning, name
        assert "\n" not in constant.meaning
