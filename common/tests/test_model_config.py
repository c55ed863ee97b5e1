"""Reading config.json: three families, old and new keys, and everything that is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import (
    CheckpointError,
    ConfigError,
    FoloError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from common.model_config import KVSpec, ModelConfig
from common.testing.checkpoints import Family, tiny_config

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}


def parse(**changes: Any) -> ModelConfig:
    """A tiny Qwen3 with some keys changed; a value of None removes the key."""
    raw = tiny_config("qwen3") | changes
    return ModelConfig.from_dict({k: v for k, v in raw.items() if v is not None})


class TestFamilies:
    @pytest.mark.parametrize(
        "family, qk_norm, qkv_bias, head_dim",
        [("qwen3", True, False, 32), ("qwen2", False, True, 16), ("llama", False, False, 32)],
    )
    def test_what_tells_them_apart(
        self, family: Family, qk_norm: bool, qkv_bias: bool, head_dim: int
    ) -> None:
        config = ModelConfig.from_dict(tiny_config(family))
        assert config.family == family
        assert (config.qk_norm, config.qkv_bias, config.o_bias, config.mlp_bias) == (
            (qk_norm, qkv_bias, False, False)
        )
        assert config.head_dim == head_dim
        assert config.q_size == 4 * head_dim
        assert config.kv_size == 2 * head_dim

    def test_qwen3_and_llama_take_attention_bias_on_all_four_projections(self) -> None:
        for family in ("qwen3", "llama"):
            config = ModelConfig.from_dict(tiny_config(family) | {"attention_bias": True})
            assert config.qkv_bias
            assert config.o_bias

    def test_qwen2_keeps_its_bias_whatever_the_config_says(self) -> None:
        config = ModelConfig.from_dict(tiny_config("qwen2") | {"attention_bias": False})
        assert config.qkv_bias
        assert not config.o_bias

    def test_llama_takes_mlp_bias(self) -> None:
        assert ModelConfig.from_dict(tiny_config("llama", mlp_bias=True)).mlp_bias

    def test_kv_heads_default_to_query_heads(self) -> None:
        assert parse(num_key_value_heads=None).num_kv_heads == 4

    def test_missing_head_dim(self) -> None:
        # hidden / heads for Llama; Qwen3's class in transformers assumes 128.
        llama = {k: v for k, v in tiny_config("llama").items() if k != "head_dim"}
        assert ModelConfig.from_dict(llama).head_dim == 16
        assert parse(head_dim=None).head_dim == 128

    @pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama"])
    def test_transformers_own_rewriting_of_a_config_reads_the_same(self, family: Family) -> None:
        from transformers import AutoConfig

        raw = tiny_config(family, tied=False, eos_token_id=7) | {"dtype": "float32"}
        rewritten = AutoConfig.for_model(**raw).to_dict() | {"dtype": "float32"}
        assert "rope_parameters" in rewritten
        assert ModelConfig.from_dict(rewritten) == ModelConfig.from_dict(raw)


class TestKeys:
    @pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
    @pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
    def test_dtype_in_both_spellings(self, key: str, name: str) -> None:
        assert parse(**{key: name}).dtype == name
        assert parse(**{key: f"torch.{name}"}).dtype == name

    def test_dtype_defaults_to_float32(self) -> None:
        assert parse().dtype == "float32"

    @pytest.mark.parametrize(
        "in_config, in_generation, expected",
        [
            (5, None, (5,)),
            ([5, 6], None, (5, 6)),
            (None, [7], (7,)),
            (5, [6, 5], (5, 6)),
            (None, None, ()),
            (0, 319, (0, 319)),
        ],
    )
    def test_eos_ids_of_both_files(
        self, in_config: Any, in_generation: Any, expected: tuple[int, ...]
    ) -> None:
        raw = tiny_config("qwen3", eos_token_id=in_config)
        generation = {} if in_generation is None else {"eos_token_id": in_generation}
        assert ModelConfig.from_dict(raw, generation).eos_token_ids == expected

    def test_quantization_config_is_kept_for_the_stage_that_reads_it(self) -> None:
        config = parse(quantization_config={"quant_method": "gptq", "bits": 4})
        assert config.quantization == {"quant_method": "gptq", "bits": 4}
        assert parse().quantization is None

    def test_tied_embeddings_default_to_off(self) -> None:
        assert not parse(tie_word_embeddings=None).tie_word_embeddings
        assert parse(tie_word_embeddings=True).tie_word_embeddings

    def test_kv_spec_is_in_the_running_dtype(self) -> None:
        config = parse(dtype="bfloat16")
        assert config.kv_spec() == KVSpec(3, 2, 32, "bfloat16")
        assert config.kv_spec("float32").bytes_per_token == 2 * config.kv_spec().bytes_per_token

    def test_max_model_len(self) -> None:
        config = parse()
        assert config.resolve_max_model_len(None) == 512
        assert config.resolve_max_model_len(512) == 512
        with pytest.raises(ConfigError, match=r"at most 512 .*, got 513"):
            config.resolve_max_model_len(513)


class TestRopeKeys:
    def test_old_and_new_spelling_agree(self) -> None:
        old = parse(rope_theta=5e5, rope_scaling=LLAMA3)
        new = parse(rope_theta=None, rope_parameters=LLAMA3 | {"rope_theta": 5e5})
        assert old.rope == new.rope
        assert old.rope.theta == 5e5
        assert old.rope.rope_type == "llama3"
        assert old.rope.original_max_positions == 256

    def test_type_is_the_older_name_of_rope_type(self) -> None:
        rope = parse(rope_scaling={"type": "linear", "factor": 2.0}).rope
        assert (rope.rope_type, rope.factor) == ("linear", 2.0)

    def test_theta_defaults_to_ten_thousand(self) -> None:
        assert parse(rope_theta=None).rope.theta == 10_000.0

    def test_original_length_defaults_to_the_models(self) -> None:
        rope = parse(rope_scaling={"rope_type": "yarn", "factor": 4.0}).rope
        assert rope.original_max_positions == 512

    def test_yarn_options_are_read(self) -> None:
        scaling = {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16, "attention_factor": 1.5,
                   "truncate": False, "original_max_position_embeddings": 128}  # fmt: skip
        rope = parse(rope_scaling=scaling).rope
        assert (rope.beta_fast, rope.beta_slow) == (16, 1.0)
        assert rope.attention_factor == 1.5
        assert not rope.truncate

    @pytest.mark.parametrize(
        "scaling, message",
        [
            ({"rope_type": "dynamic", "factor": 2.0}, "rope_type 'dynamic' is not supported"),
            ({"type": "longrope"}, "rope_type 'longrope' is not supported"),
            (
                {"rope_type": "yarn", "factor": 2.0, "mscale": 0.7},
                "rope parameter 'mscale' of rope_type 'yarn' is not supported",
            ),
            ({"rope_type": "linear"}, "lacks 'factor' for rope_type 'linear'"),
            (
                {k: v for k, v in LLAMA3.items() if k != "low_freq_factor"},
                "lacks 'low_freq_factor' for rope_type 'llama3'",
            ),
            ({"rope_type": "linear", "factor": 0.5}, "rope factor must be at least 1, got 0.5"),
        ],
    )
    def test_what_is_not_implemented_is_refused_by_name(
        self, scaling: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(FoloError, match=message):
            parse(rope_scaling=scaling)

    @pytest.mark.parametrize("theta", [-1.0, 0.0])
    def test_theta_must_be_positive(self, theta: float) -> None:
        with pytest.raises(ConfigError, match=f"rope_theta must be positive, got {theta}"):
            parse(rope_theta=theta)

    @pytest.mark.parametrize(
        "parameters",
        [
            {"full_attention": {"rope_theta": 1e6, "rope_type": "default"}},
            {"rope_type": "default", "partial_rotary_factor": 0.5},
        ],
    )
    def test_keys_that_default_rope_does_not_know(self, parameters: dict[str, Any]) -> None:
        with pytest.raises(UnsupportedModelError, match="of rope_type 'default' is not supported"):
            parse(rope_parameters=parameters)


class TestRefusals:
    @pytest.mark.parametrize(
        "changes, error, message",
        [
            (
                {"architectures": ["GemmaForCausalLM"]},
                UnsupportedModelError,
                "architecture 'GemmaForCausalLM' is not supported; supported: Qwen3ForCausalLM",
            ),
            ({"architectures": None}, UnsupportedModelError, r"architecture '\(none\)'"),
            ({"architectures": []}, UnsupportedModelError, r"architecture '\(none\)'"),
            ({"hidden_act": "gelu"}, UnsupportedModelError, "hidden_act 'gelu' is not supported"),
            ({"use_sliding_window": True}, UnsupportedModelError, "sliding-window attention"),
            (
                {"layer_types": ["full_attention", "sliding_attention"]},
                UnsupportedModelError,
                "sliding-window attention",
            ),
            (
                {"partial_rotary_factor": 0.5},
                UnsupportedModelError,
                r"partial_rotary_factor 0\.5 is not supported",
            ),
            ({"num_key_value_heads": 3}, ConfigError, r"num_heads \(4\) must be a multiple of"),
            ({"head_dim": 31}, ConfigError, "head_dim must be even for RoPE, got 31"),
            ({"num_hidden_layers": 0}, ConfigError, "num_layers must be .* at least 1, got 0"),
            ({"vocab_size": 1.5}, ConfigError, "vocab_size must be an integer .*, got 1.5"),
            ({"intermediate_size": True}, ConfigError, "intermediate_size must be .* got True"),
            ({"rms_norm_eps": 0.0}, ConfigError, r"rms_norm_eps must be in \(0, 1\), got 0\.0"),
            ({"dtype": "float64"}, ConfigError, "dtype must be one of float32, .*'float64'"),
            ({"eos_token_id": 320}, ConfigError, "eos_token_id 320 is outside .* of 320"),
            ({"eos_token_id": [1, -1]}, ConfigError, "eos_token_id -1 is outside"),
            ({"eos_token_id": "x"}, ConfigError, "eos_token_id must be an integer, got 'x'"),
            ({"eos_token_id": 1.5}, ConfigError, r"eos_token_id must be an integer, got 1\.5"),
            ({"hidden_size": "big"}, ConfigError, "hidden_size must be .* got 'big'"),
            ({"rms_norm_eps": "x"}, ConfigError, "a value of a wrong kind: .*'x'"),
            ({"rms_norm_eps": [1]}, ConfigError, "a value of a wrong kind"),
            ({"architectures": {"a": 1}}, ConfigError, "a value of a wrong kind"),
            ({"architectures": 3}, ConfigError, "a value of a wrong kind"),
            ({"layer_types": 3}, ConfigError, "a value of a wrong kind"),
            ({"rope_scaling": "x"}, ConfigError, "a value of a wrong kind"),
            ({"rope_theta": "x"}, ConfigError, "a value of a wrong kind: .*'x'"),
        ],
    )
    def test_refused_with_the_value(
        self, changes: dict[str, Any], error: type[FoloError], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            parse(**changes)

    @pytest.mark.parametrize(
        "key",
        ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
         "num_attention_heads", "max_position_embeddings"],
    )  # fmt: skip
    def test_a_missing_key_is_named(self, key: str) -> None:
        with pytest.raises(CheckpointError, match=f"config.json lacks '{key}'"):
            parse(**{key: None})

    def test_full_attention_layer_types_are_fine(self) -> None:
        assert parse(layer_types=["full_attention"] * 3, use_sliding_window=False).num_layers == 3

    def test_a_constructed_config_is_checked_too(self) -> None:
        with pytest.raises(UnsupportedModelError, match="architecture 'Nope'"):
            dataclasses.replace(parse(), architecture="Nope")


class TestFiles:
    def test_folder_without_config(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFoundError, match=r"has no config\.json"):
            ModelConfig.from_pretrained(tmp_path)

    @pytest.mark.parametrize(
        "content, message",
        [
            (b"{not json", "is not valid JSON"),
            (b"", "is not valid JSON"),
            (b"\xff\xfe", "is not valid JSON"),
            (b"[1, 2]", "must hold a JSON object, found list"),
        ],
    )
    @pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
    def test_broken_files(self, tmp_path: Path, name: str, content: bytes, message: str) -> None:
        (tmp_path / "config.json").write_text(json.dumps(tiny_config("qwen3")))
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as caught:
            ModelConfig.from_pretrained(tmp_path)
        assert name in str(caught.value)

    def test_generation_config_adds_its_eos_ids(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps(tiny_config("qwen3", eos_token_id=3)))
        assert ModelConfig.from_pretrained(tmp_path).eos_token_ids == (3,)
        (tmp_path / "generation_config.json").write_text('{"eos_token_id": [4, 3]}')
        assert ModelConfig.from_pretrained(str(tmp_path)).eos_token_ids == (3, 4)
