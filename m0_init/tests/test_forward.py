"""Hidden states after every layer, logits and greedy ids against transformers, in float32."""

from pathlib import Path
from typing import Any

import pytest
import torch

from common.model.layers import Attention
from common.testing.checkpoints import Family, tiny_config, write_checkpoint
from common.testing.oracle import HFOracle, OracleStates, margin_prompts
from m0_init.forward import FullAttend, LayerStates, greedy, layer_states, next_token_logits
from m0_init.loader import load

TOLERANCE = 1e-4
"""Of the layer's largest value."""

SHAPES: dict[str, tuple[Family, dict[str, Any]]] = {
    "qwen3 gqa 2, tied": ("qwen3", {}),
    "qwen3 gqa 4, untied": ("qwen3", {"heads": 8, "kv_heads": 2, "tied": False}),
    "qwen3 mha": ("qwen3", {"kv_heads": 4}),
    "qwen3 mqa, wide heads": ("qwen3", {"kv_heads": 1, "head_dim": 64}),
    "qwen3 with biases": ("qwen3", {"qkv_bias": True}),
    "qwen2 gqa 2, tied": ("qwen2", {}),
    "qwen2 mha, untied": ("qwen2", {"kv_heads": 4, "tied": False}),
    "qwen2 mqa": ("qwen2", {"kv_heads": 1}),
    "llama gqa 2, tied": ("llama", {}),
    "llama gqa 3, narrow heads": (
        "llama",
        {"heads": 6, "kv_heads": 2, "head_dim": 8, "hidden": 96},
    ),
    "llama mha, untied": ("llama", {"kv_heads": 4, "tied": False}),
    "llama mqa, all biases": ("llama", {"kv_heads": 1, "qkv_bias": True, "mlp_bias": True}),
    "llama with llama3 rope": (
        "llama",
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "qwen3 with yarn": (
        "qwen3",
        {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            }
        },
    ),
}


def assert_equal_states(ours: LayerStates, theirs: OracleStates) -> None:
    assert len(ours.hidden) == len(theirs.hidden)
    pairs = zip((*ours.hidden, ours.logits), (*theirs.hidden, theirs.logits), strict=True)
    for index, (mine, reference) in enumerate(pairs):
        assert mine.shape == reference.shape
        error = float((mine - reference).abs().max() / reference.abs().max())
        assert error <= TOLERANCE, f"entry {index}: {error:.1e} of the layer's maximum"


@pytest.fixture(scope="module", params=SHAPES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, shape = SHAPES[request.param]
    return write_checkpoint(tmp_path_factory.mktemp("model"), tiny_config(family, **shape), seed=1)


def test_tiny_models_equal_transformers(folder: Path) -> None:
    oracle, model = HFOracle(folder), load(folder, device="cpu").model
    prompts = margin_prompts(oracle, 2, [1, 100], new_tokens=12, vocab=320)
    for prompt in prompts:
        theirs = oracle.hidden_states(prompt)
        assert_equal_states(layer_states(model, prompt), theirs)
        last = next_token_logits(model, prompt)
        torch.testing.assert_close(last, theirs.logits[-1], rtol=1e-3, atol=1e-3)
        assert greedy(model, prompt, 12) == oracle.greedy(prompt, 12)


def test_smollm2_equals_transformers(smollm2: Path) -> None:
    oracle, loaded = HFOracle(smollm2), load("smollm2", device="cpu")
    assert loaded.tokenizer is not None
    text = "Water boils at a lower temperature on a mountain because"
    prompt = loaded.tokenizer.encode(text)
    theirs = oracle.hidden_states(prompt)
    assert len(theirs.hidden) == 31
    assert_equal_states(layer_states(loaded.model, prompt), theirs)
    assert greedy(loaded.model, prompt, 4) == oracle.greedy(prompt, 4)


def test_a_wrong_order_of_norm_and_rope_shows_in_the_first_layer(tmp_path: Path) -> None:
    """The comparison above can fail: Qwen3 without its QK-norm is another model."""
    path = write_checkpoint(tmp_path, tiny_config("qwen3"), seed=1)
    model, prompt = load(path, device="cpu").model, list(range(20))
    theirs = HFOracle(path).hidden_states(prompt)
    for module in model.modules():
        if isinstance(module, Attention):
            module.q_norm = module.k_norm = None
    broken = layer_states(model, prompt)
    assert torch.equal(broken.hidden[0], theirs.hidden[0])
    error = (broken.hidden[1] - theirs.hidden[1]).abs().max() / theirs.hidden[1].abs().max()
    assert error > 100 * TOLERANCE


class TestFullAttend:
    def test_against_pytorchs_own_attention(self) -> None:
        generator = torch.Generator().manual_seed(0)
        q, k, v = (torch.randn(7, heads, 8, generator=generator) for heads in (6, 2, 2))
        ours = FullAttend()(0, q, k, v)
        query, key, value = (x.transpose(0, 1)[None] for x in (q, k, v))
        theirs = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=True
        )
        torch.testing.assert_close(ours, theirs[0].transpose(0, 1))

    def test_a_token_sees_nothing_of_the_future(self) -> None:
        generator = torch.Generator().manual_seed(1)
        q, k, v = (torch.randn(5, 2, 8, generator=generator) for _ in range(3))
        before = FullAttend()(0, q, k, v)
        k[4] += 1.0
        v[4] += 1.0
        after = FullAttend()(0, q, k, v)
        assert torch.equal(after[:4], before[:4])
        assert not torch.equal(after[4], before[4])

    def test_the_first_token_copies_its_own_value(self) -> None:
        generator = torch.Generator().manual_seed(2)
        q, k, v = (torch.randn(3, heads, 8, generator=generator) for heads in (4, 2, 2))
        out = FullAttend()(0, q, k, v)
        torch.testing.assert_close(out[0], v[0].repeat_interleave(2, dim=0))

    def test_bfloat16_keeps_its_dtype_and_it_stores_nothing(self) -> None:
        x = torch.ones(3, 2, 8).bfloat16()
        assert FullAttend()(0, x, x, x).dtype == torch.bfloat16
        assert FullAttend().kv_sink(0) is None
