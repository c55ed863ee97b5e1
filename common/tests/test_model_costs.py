"""What a model costs: against numbers worked out by hand, and against the real model."""

import dataclasses

import pytest
import torch
from torch import nn

from common.devices import (
    A100_80GB,
    GIB,
    H100_80GB,
    gptq_full_gain_tokens,
    gptq_linear_speedup,
)
from common.errors import ConfigError
from common.model.linear import dense_linear_factory
from common.model.ops import TorchOps
from common.model.transformer import Transformer
from common.model_config import DTYPE_BYTES, ModelConfig
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
    num_chunks,
    parameter_counts,
    prefill_attention_flops,
    prefill_attention_share,
    prefill_flops,
    static_batch_utilization,
    token_forwards,
    weight_bytes,
)
from common.qwen3 import QWEN3_0_6B
from common.testing.checkpoints import tiny_config

KIB, MIB = 1024, 1024**2
SMOLLM2 = ModelConfig.from_dict(
    tiny_config(
        "llama",
        hidden=576,
        layers=30,
        heads=9,
        kv_heads=3,
        head_dim=64,
        intermediate=1536,
        vocab=49_152,
        max_positions=8192,
    )
    | {"dtype": "float32"}
)


def meta_model(config: ModelConfig, dtype: torch.dtype = torch.bfloat16) -> Transformer:
    return Transformer(
        config,
        ops=TorchOps(),
        linear=dense_linear_factory(dtype, "meta"),
        dtype=dtype,
        device="meta",
        max_positions=64,
    )


def counted(model: Transformer) -> dict[str, int]:
    """Parameters by component, read off the model's own tensors, shared storage once."""
    groups = dict.fromkeys(("embedding", "qkv", "attention_output", "mlp", "norms", "lm_head"), 0)
    for name, parameter in model.named_parameters(remove_duplicate=True):
        if name.startswith("embed_tokens"):
            key = "embedding"
        elif name.startswith("lm_head"):
            key = "lm_head"
        elif ".qkv." in name:
            key = "qkv"
        elif ".attn.o." in name:
            key = "attention_output"
        elif ".mlp." in name:
            key = "mlp"
        else:
            assert name.endswith("norm.weight"), name
            key = "norms"
        groups[key] += parameter.numel()
    return groups


CONFIGS = {
    "qwen3-0.6b": QWEN3_0_6B,
    "smollm2": SMOLLM2,
    "qwen2, untied, biases": ModelConfig.from_dict(tiny_config("qwen2", tied=False)),
    "llama, all biases": ModelConfig.from_dict(
        tiny_config("llama", qkv_bias=True, mlp_bias=True, kv_heads=1)
    ),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
class TestAgainstTheModel:
    def test_parameters_by_component(self, config: ModelConfig) -> None:
        expected = counted(meta_model(config))
        assert dataclasses.asdict(parameter_counts(config)) == expected
        assert parameter_counts(config).total == sum(expected.values())

    @pytest.mark.parametrize("dtype", DTYPE_BYTES)
    def test_weight_bytes(self, config: ModelConfig, dtype: str) -> None:
        model = meta_model(config, getattr(torch, dtype))
        assert weight_bytes(config, dtype) == sum(p.nbytes for p in model.parameters())

    def test_kv_bytes_per_token(self, config: ModelConfig) -> None:
        model = meta_model(config)
        k, v = torch.empty(2, config.num_layers, config.num_kv_heads, config.head_dim).bfloat16()
        assert model.kv_spec().bytes_per_token == k.nbytes + v.nbytes
        assert kv_bytes(config, 7, "bfloat16") == 7 * (k.nbytes + v.nbytes)

    def test_linear_flops_count_two_per_weight(self, config: ModelConfig) -> None:
        weights = sum(
            p.numel()
            for name, p in meta_model(config).named_parameters()
            if name.startswith("layers.") and p.dim() == 2
        )
        assert linear_flops_per_token(config) == 2 * weights


def test_parameters() -> None:
    counts = parameter_counts(QWEN3_0_6B)
    assert counts.attention == 28 * 6_291_456
    assert counts.mlp == 28 * 9_437_184
    assert counts.norms == 28 * 2_304 + 1_024
    assert counts.embedding == 155_582_464
    assert counts.lm_head == 0
    assert counts.linear == 440_401_920
    assert counts.total == 596_049_920
    assert counts.embedding / counts.total == pytest.approx(0.261, abs=5e-4)
    assert weight_bytes(QWEN3_0_6B) == 1_192_099_840
    assert weight_bytes(QWEN3_0_6B) / GIB == pytest.approx(1.11, abs=5e-3)


def test_kv() -> None:
    model = QWEN3_0_6B
    assert kv_bytes(model) == 114_688 == 112 * KIB
    assert kv_bytes(model) // 28 == 4 * KIB
    assert kv_bytes(model, 16) == 1.75 * MIB
    assert kv_bytes(model, 16) // 28 == 64 * KIB
    assert kv_bytes(model, 2048) == 224 * MIB
    assert kv_bytes(model, 8192) == 896 * MIB
    assert kv_bytes(model, 32_768) == 3.5 * GIB
    assert kv_bytes(model, 40_960) == 4.375 * GIB
    assert kv_bytes_with_heads(model, 16) == 229_376
    assert kv_bytes_with_heads(model, 1) == 14_336
    crossover = kv_crossover_tokens(model)
    assert crossover == 10_394
    assert kv_bytes(model, crossover) <= weight_bytes(model) < kv_bytes(model, crossover + 1)


def test_flops() -> None:
    model = QWEN3_0_6B
    assert linear_flops_per_token(model) == 880_803_840
    assert lm_head_flops_per_row(model) == 311_164_928
    assert attention_flops_per_token(model) == 229_376
    assert attention_flops_per_token(model, 1000) == 229_376_000
    assert prefill_attention_flops(model, 2048) == 114_688 * 2048**2
    for length, share in ((512, 0.06), (2048, 0.21), (8192, 0.52), (32_768, 0.81)):
        assert prefill_attention_share(model, length) == length / (length + 7680)
        assert prefill_attention_share(model, length) == pytest.approx(share, abs=5e-3)
        direct = prefill_attention_flops(model, length) / prefill_flops(model, length)
        assert prefill_attention_share(model, length) == pytest.approx(direct)


def test_matrix_products_of_a_prompt_cost_what_the_sheet_says() -> None:
    """Counted by PyTorch's own FLOP counter on a run of transformers' shapes."""
    from torch.utils.flop_counter import FlopCounterMode

    config = dataclasses.replace(QWEN3_0_6B, num_layers=2)
    model, length = meta_model(config), 24

    class Scores(nn.Module):
        def __call__(
            self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
        ) -> torch.Tensor:
            k, v = (x.repeat_interleave(2, dim=1).transpose(0, 1) for x in (k, v))
            return ((q.transpose(0, 1) @ k.transpose(1, 2)) @ v).transpose(0, 1)

        def kv_sink(self, layer: int) -> None:
            return None

    ids = torch.zeros(length, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        hidden = model(ids, ids, Scores())
        model.logits(hidden[-1:])
    # The naive product computes the full square, twice the causal half.
    expected = (
        length * linear_flops_per_token(config)
        + 2 * prefill_attention_flops(config, length)
        + lm_head_flops_per_row(config)
    )
    assert counter.get_total_flops() == expected


def test_batching_and_blocks() -> None:
    assert static_batch_utilization((20, 200, 10)) == 230 / 600
    assert static_batch_utilization((5, 5)) == 1.0
    assert block_utilization(200) == pytest.approx(0.96, abs=5e-3)
    assert block_utilization(2048) == pytest.approx(0.996, abs=5e-4)
    assert block_utilization(100, block_size=1) == 1.0
    assert token_forwards(128, 256, use_cache=False) == 65_408
    assert token_forwards(128, 256, use_cache=True) == 383
    assert token_forwards(7, 1, use_cache=True) == token_forwards(7, 1, use_cache=False) == 7
    assert naive_score_bytes(QWEN3_0_6B, 8192) == 2 * GIB
    assert naive_score_bytes(QWEN3_0_6B, 8192, 4) == 4 * GIB


@pytest.mark.parametrize("length", [1, 511, 512, 513, 8192])
def test_chunks_reread_exactly_the_tokens_before_them(length: int) -> None:
    starts = range(0, length, 512)
    assert num_chunks(length, 512) == len(starts)
    assert chunk_weight_bytes(QWEN3_0_6B, length, 512) == len(starts) * weight_bytes(QWEN3_0_6B)
    assert chunk_kv_reread_bytes(QWEN3_0_6B, length, 512) == kv_bytes(QWEN3_0_6B, sum(starts))


def test_chunk_costs() -> None:
    assert chunk_weight_bytes(QWEN3_0_6B, 8192, 512) / GIB == pytest.approx(17.8, abs=0.05)
    assert chunk_kv_reread_bytes(QWEN3_0_6B, 8192, 512) / GIB == pytest.approx(6.6, abs=0.05)


def test_gptq() -> None:
    model = QWEN3_0_6B
    assert gptq_bits_per_weight(128) == 4.15625
    assert gptq_bits_per_weight(32) == 4.625
    assert gptq_linear_bytes(model) == pytest.approx(229e6, abs=5e5)
    assert 1 - gptq_linear_bytes(model) / (2 * 440_401_920) == pytest.approx(0.74, abs=5e-3)
    assert gptq_model_bytes(model) == 540_098_560
    assert 1 - gptq_model_bytes(model) / weight_bytes(model) == pytest.approx(0.55, abs=5e-3)
    assert gptq_linear_speedup() == pytest.approx(3.85, abs=5e-3)
    assert round(gptq_full_gain_tokens(H100_80GB.ridge)) == 77
    assert round(gptq_full_gain_tokens(A100_80GB.ridge)) == 40
    with pytest.raises(ConfigError, match="group_size must be at least 1, got 0"):
        gptq_bits_per_weight(0)
