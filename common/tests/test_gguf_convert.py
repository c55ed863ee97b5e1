"""GGUF to a Hugging Face folder, on a tiny file written here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from common.errors import UnsupportedModelError
from common.gguf_convert import convert_gguf, halves_from_neighbours, hf_name
from common.testing.byte_tokenizer import byte_symbols
from common.tokenizer import Tokenizer

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, FFN, LAYERS = 4, 2, 8, 32, 64, 2
SPECIALS = ["<unk>", "<s>", "</s>"]
MERGES = [("Ġ", "1"), ("a", "b")]
TOKENS = [*SPECIALS, *byte_symbols(), *(left + right for left, right in MERGES)]
Array = NDArray[np.float32]


def _weights(rng: np.random.Generator, tied: bool) -> dict[str, Array]:
    """The original weights, under Hugging Face's names and in its order of rows."""

    def random(*shape: int) -> Array:
        return rng.standard_normal(shape, dtype=np.float32)

    weights = {
        "model.embed_tokens.weight": random(len(TOKENS), HIDDEN),
        "model.norm.weight": random(HIDDEN),
    }
    if not tied:
        weights["lm_head.weight"] = random(len(TOKENS), HIDDEN)
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        weights |= {
            prefix + "input_layernorm.weight": random(HIDDEN),
            prefix + "self_attn.q_proj.weight": random(HEADS * HEAD_DIM, HIDDEN),
            prefix + "self_attn.k_proj.weight": random(KV_HEADS * HEAD_DIM, HIDDEN),
            prefix + "self_attn.v_proj.weight": random(KV_HEADS * HEAD_DIM, HIDDEN),
            prefix + "self_attn.o_proj.weight": random(HIDDEN, HEADS * HEAD_DIM),
            prefix + "post_attention_layernorm.weight": random(HIDDEN),
            prefix + "mlp.gate_proj.weight": random(FFN, HIDDEN),
            prefix + "mlp.up_proj.weight": random(FFN, HIDDEN),
            prefix + "mlp.down_proj.weight": random(HIDDEN, FFN),
        }
    return weights


def _gguf_name(name: str) -> str:
    outer = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in outer:
        return outer[name]
    _, _, layer, part = name.split(".", 3)
    names = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    return f"blk.{layer}.{names[part.removesuffix('.weight')]}.weight"


def _neighbours_from_halves(weight: Array, heads: int) -> Array:
    """llama.cpp's order of query and key rows, as its converter makes it."""
    pairs = weight.reshape(heads, 2, HEAD_DIM // 2, HIDDEN)
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _write_gguf(path: Path, weights: dict[str, Array], quantized: str = "", **changes: Any) -> Path:
    """Write a GGUF file; tensors whose name ends with ``quantized`` are stored as Q8_0."""
    writer = gguf.GGUFWriter(str(path), changes.get("arch", "llama"))
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    if changes.get("vocab_size", True):
        writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(changes.get("pre", "smollm"))
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIALS) + [1] * (len(TOKENS) - len(SPECIALS)))
    writer.add_token_merges([" ".join(merge) for merge in MERGES])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    for name, weight in weights.items():
        stored = weight
        if name.endswith("q_proj.weight"):
            stored = _neighbours_from_halves(weight, HEADS)
        if name.endswith("k_proj.weight"):
            stored = _neighbours_from_halves(weight, KV_HEADS)
        if quantized and name.endswith(quantized):
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(_gguf_name(name), gguf.quants.quantize(stored, kind), raw_dtype=kind)
        else:
            writer.add_tensor(_gguf_name(name), np.ascontiguousarray(stored))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [True, False])
def test_float_weights_come_back_bit_for_bit(tmp_path: Path, tied: bool) -> None:
    weights = _weights(np.random.default_rng(0), tied)
    convert_gguf(_write_gguf(tmp_path / "m.gguf", weights), tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], weight, err_msg=name)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["tie_word_embeddings"] is tied


def test_quantized_weights_are_expanded(tmp_path: Path) -> None:
    weights = _weights(np.random.default_rng(1), tied=True)
    convert_gguf(_write_gguf(tmp_path / "m.gguf", weights, quantized="proj.weight"), tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    for name, weight in weights.items():
        # Q8_0 rounds to a step of max/127 in blocks of 32 (the step itself is stored as float16).
        step = np.abs(weight).max() / 127 if name.endswith("proj.weight") else 0.0
        assert np.abs(found[name] - weight).max() <= 0.51 * step, name


def test_the_order_of_rows_keeps_attention_scores() -> None:
    """RoPE over neighbours before the conversion equals RoPE over halves after it."""
    rng = np.random.default_rng(2)
    w_q, w_k = rng.standard_normal((2, HEAD_DIM, HIDDEN)).astype(np.float32)
    x, y = rng.standard_normal((2, HIDDEN)).astype(np.float32)
    half = HEAD_DIM // 2
    angles = 10000.0 ** (-np.arange(half) / half)

    def rotate(real: Array, imaginary: Array, position: int) -> NDArray[np.complex128]:
        rotated: NDArray[np.complex128] = (real + 1j * imaginary) * np.exp(1j * position * angles)
        return rotated

    def neighbours(vector: Array, position: int) -> NDArray[np.complex128]:
        return rotate(vector[0::2], vector[1::2], position)

    def halves(vector: Array, position: int) -> NDArray[np.complex128]:
        return rotate(vector[:half], vector[half:], position)

    before = np.vdot(neighbours(w_q @ x, 3), neighbours(w_k @ y, 7)).real
    new_q, new_k = halves_from_neighbours(w_q, 1), halves_from_neighbours(w_k, 1)
    after = np.vdot(halves(new_q @ x, 3), halves(new_k @ y, 7)).real
    unchanged = np.vdot(halves(w_q @ x, 3), halves(w_k @ y, 7)).real
    assert after == pytest.approx(before, rel=1e-5)
    assert unchanged != pytest.approx(before, rel=1e-2)


def test_configs_and_tokenizer(tmp_path: Path) -> None:
    weights = _weights(np.random.default_rng(3), tied=True)
    convert_gguf(_write_gguf(tmp_path / "m.gguf", weights), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    expected = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "dtype": "float32",
        "vocab_size": len(TOKENS),
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "max_position_embeddings": 128,
        "eos_token_id": 2,
    }
    assert {key: config[key] for key in expected} == expected
    generation = json.loads((tmp_path / "generation_config.json").read_text(encoding="utf-8"))
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}

    tokenizer = Tokenizer.from_pretrained(tmp_path)
    assert tokenizer.vocab_size == len(TOKENS)
    assert tokenizer.eos_token_id == 2
    pieces = [tokenizer.token_text(i) for i in tokenizer.encode("ab 12</s>")]
    assert pieces == ["ab", " ", "1", "2", "</s>"]  # "Ġ1" is a token, but digits stand alone
    assert tokenizer.decode(tokenizer.encode("ab 12</s>")) == "ab 12"
    assert tokenizer.render_chat_template([{"role": "user", "content": "x"}]) == "x"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"arch": "qwen3"}, "general.architecture is 'qwen3', expected 'llama'"),
        ({"pre": "llama-bpe"}, "tokenizer.ggml.pre is 'llama-bpe', expected 'smollm'"),
        ({"vocab_size": False}, "the GGUF file has no llama.vocab_size"),
    ],
)
def test_another_kind_of_file_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    weights = {"model.norm.weight": np.ones(HIDDEN, dtype=np.float32)}
    path = _write_gguf(tmp_path / "m.gguf", weights, **changes)
    with pytest.raises(UnsupportedModelError, match=message):
        convert_gguf(path, tmp_path)


def test_tensor_names() -> None:
    assert hf_name("blk.12.ffn_down.weight") == "model.layers.12.mlp.down_proj.weight"
    for name in ("blk.0.attn_q_norm.weight", "rope_freqs.weight", "blk.0.token_embd.weight", "x"):
        with pytest.raises(UnsupportedModelError, match="no Llama model has a tensor"):
            hf_name(name)
