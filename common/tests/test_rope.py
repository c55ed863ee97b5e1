"""The rope table against transformers' own functions, for every scaling that is honoured."""

from typing import Any

import pytest
import torch

from common.model.ops import TorchOps, apply_rope
from common.model.rope import inverse_frequencies, rope_table
from common.model_config import ModelConfig
from common.testing.checkpoints import tiny_config

SCALINGS: dict[str, dict[str, Any] | None] = {
    "default": None,
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    "yarn, not truncated": {
        "rope_type": "yarn",
        "factor": 40.0,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "truncate": False,
        "original_max_position_embeddings": 64,
    },
    "yarn, given attention factor": {
        "rope_type": "yarn",
        "factor": 2.0,
        "attention_factor": 1.25,
        "original_max_position_embeddings": 256,
    },
    "yarn, factor 1": {"rope_type": "yarn", "factor": 1.0},
}
THETAS = (10_000.0, 1_000_000.0)


def their_frequencies(raw: dict[str, Any]) -> tuple[torch.Tensor, float]:
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

    config: Any = AutoConfig.for_model(**raw)
    kind = config.rope_parameters["rope_type"]
    if kind == "default":
        return Qwen3RotaryEmbedding.compute_default_rope_parameters(config)
    frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    return frequencies, factor


@pytest.mark.parametrize("theta", THETAS)
@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
def test_frequencies_equal_transformers(scaling: dict[str, Any] | None, theta: float) -> None:
    raw = tiny_config("qwen3", head_dim=64, rope_theta=theta, rope_scaling=scaling)
    config = ModelConfig.from_dict(raw)
    ours, our_factor = inverse_frequencies(config.rope, config.head_dim)
    theirs, their_factor = their_frequencies(raw)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    assert our_factor == pytest.approx(their_factor)
    # The scalings must not be the same thing under several names.
    plain, _ = inverse_frequencies(ModelConfig.from_dict(tiny_config("qwen3")).rope, 64)
    scaled = scaling is not None and scaling["factor"] > 1
    assert torch.allclose(ours, plain, rtol=1e-5) == (not scaled and theta == 10_000.0)


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
def test_rotated_heads_equal_transformers(scaling: dict[str, Any] | None) -> None:
    from transformers import AutoConfig, Qwen3Config
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding, apply_rotary_pos_emb

    raw = tiny_config("qwen3", rope_scaling=scaling)
    config, hf_config = ModelConfig.from_dict(raw), AutoConfig.for_model(**raw)
    assert isinstance(hf_config, Qwen3Config)
    table = rope_table(config.rope, config.head_dim, 512)
    assert table.shape == (512, 64)
    assert table.dtype == torch.float32

    positions = torch.tensor([0, 1, 2, 100, 511])
    q = torch.randn(5, 4, 32, generator=torch.Generator().manual_seed(0))
    cos, sin = Qwen3RotaryEmbedding(hf_config)(q, positions[None])
    theirs, _ = apply_rotary_pos_emb(q[None], q[None], cos, sin, unsqueeze_dim=2)
    torch.testing.assert_close(apply_rope(q, table[positions]), theirs[0], rtol=1e-5, atol=1e-5)


def test_position_zero_is_left_alone_and_length_is_kept() -> None:
    config = ModelConfig.from_dict(tiny_config("llama"))
    table = rope_table(config.rope, 32, 300)
    x = torch.randn(300, 2, 32, generator=torch.Generator().manual_seed(1))
    turned = apply_rope(x, table)
    assert torch.equal(turned[0], x[0])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


def test_scores_depend_on_distance_only() -> None:
    table = rope_table(ModelConfig.from_dict(tiny_config("llama")).rope, 32, 512)
    generator = torch.Generator().manual_seed(2)
    q, k = (torch.randn(1, 1, 32, generator=generator) for _ in range(2))

    def score(q_at: int, k_at: int) -> float:
        a, b = apply_rope(q, table[[q_at]]), apply_rope(k, table[[k_at]])
        return float((a * b).sum())

    assert score(7, 3) == pytest.approx(score(407, 403), abs=1e-4)
    assert score(7, 3) != pytest.approx(score(7, 4), abs=1e-2)


def test_bfloat16_is_rotated_in_float32_and_rounded_once() -> None:
    table = rope_table(ModelConfig.from_dict(tiny_config("llama")).rope, 32, 64)
    x = torch.randn(64, 2, 32, generator=torch.Generator().manual_seed(3)).bfloat16()
    turned = apply_rope(x, table)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, apply_rope(x.float(), table).bfloat16())


def test_norm_comes_before_rotation() -> None:
    """Qwen3's order; the other one gives other numbers, because the weights differ by pair."""
    generator = torch.Generator().manual_seed(4)
    q, k = torch.randn(9, 4, 32, generator=generator), torch.randn(9, 2, 32, generator=generator)
    weight = 1 + torch.rand(32, generator=generator)
    rows = rope_table(ModelConfig.from_dict(tiny_config("qwen3")).rope, 32, 9)
    ops = TorchOps()
    ours, _ = ops.qk_norm_rope(q, k, k, weight, weight, 1e-6, rows, None)
    normed = q / (q.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    torch.testing.assert_close(ours, apply_rope(normed, rows))
    swapped = ops.rms_norm(apply_rope(q, rows), weight, 1e-6)
    assert not torch.allclose(ours, swapped, atol=1e-2)
    bare, _ = ops.qk_norm_rope(q, k, k, None, None, 1e-6, rows, None)
    torch.testing.assert_close(bare, apply_rope(q, rows))
