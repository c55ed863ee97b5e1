"""The architecture of a checkpoint, read from its Hugging Face ``config.json``.

One frozen dataclass describes Qwen3, Qwen2 and Llama: they differ by four booleans (QK-norm and
three biases), not by code. Everything the project cannot compute exactly is refused here, by
name, before a single weight is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import (
    CheckpointError,
    ConfigError,
    FoloError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from common.rope_config import RopeConfig

DTYPE_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}

# architecture name in config.json -> (family, QK-norm, bias of q/k/v where config.json is silent)
ARCHITECTURES: dict[str, tuple[str, bool, bool]] = {
    "Qwen3ForCausalLM": ("qwen3", True, False),
    "Qwen2ForCausalLM": ("qwen2", False, True),
    "LlamaForCausalLM": ("llama", False, False),
}


@dataclass(frozen=True)
class KVSpec:
    """The shape of what attention remembers: one K and one V vector per token, layer and KV head.

    Attributes:
        num_layers: Decoder layers, each with a cache of its own.
        num_kv_heads: KV heads per layer (GQA: fewer than query heads).
        head_dim: Elements of one head's vector.
        dtype: Element type, a key of :data:`DTYPE_BYTES`.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: str

    @property
    def bytes_per_token(self) -> int:
        """Bytes of K and V for one token over all layers: ``2 · layers · kv_heads · head_dim · b``.

        114,688 for Qwen3-0.6B in bfloat16.
        """
        elements = 2 * self.num_layers * self.num_kv_heads * self.head_dim
        return elements * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of one decoder-only checkpoint.

    Attributes:
        architecture: Class name in ``config.json``, a key of :data:`ARCHITECTURES`.
        vocab_size: Rows of the embedding; a tokenizer may use fewer (Qwen3 pads).
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the MLP between gate/up and down.
        num_layers: Decoder layers.
        num_heads: Query heads.
        num_kv_heads: Key/value heads; divides ``num_heads``.
        head_dim: Width of one head. Explicit: for Qwen3-0.6B it is 128, not 1024 / 16 = 64.
        max_position_embeddings: Longest context that the checkpoint was made for.
        rms_norm_eps: Epsilon of every RMSNorm.
        rope: Rotary embedding parameters.
        tie_word_embeddings: Whether ``lm_head`` is the embedding matrix itself.
        qk_norm: Whether q and k heads are normalised before RoPE (Qwen3).
        qkv_bias: Whether q, k and v projections carry a bias (Qwen2).
        o_bias: Whether the output projection carries a bias.
        mlp_bias: Whether gate, up and down projections carry a bias.
        eos_token_ids: Ids that end a sequence, from ``generation_config.json`` and ``config.json``.
        bos_token_id: Id that begins a sequence, if the checkpoint names one.
        dtype: Element type of the stored weights, a key of :data:`DTYPE_BYTES`.
        quantization: ``quantization_config`` as stored, for the stage that can read it.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope: RopeConfig
    tie_word_embeddings: bool
    qk_norm: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    dtype: str
    quantization: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Check every field once, so that no later code has to."""
        if self.architecture not in ARCHITECTURES:
            raise UnsupportedModelError(
                f"architecture {self.architecture!r} is not supported; "
                f"supported: {', '.join(ARCHITECTURES)}"
            )
        for name in (
            "vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads",
            "num_kv_heads", "head_dim", "max_position_embeddings",
        ):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be an integer of at least 1, got {value!r}")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads ({self.num_heads}) must be a multiple of "
                f"num_kv_heads ({self.num_kv_heads})"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even for RoPE, got {self.head_dim}")
        if not 0.0 < self.rms_norm_eps < 1.0:
            raise ConfigError(f"rms_norm_eps must be in (0, 1), got {self.rms_norm_eps!r}")
        if self.dtype not in DTYPE_BYTES:
            raise ConfigError(f"dtype must be one of {', '.join(DTYPE_BYTES)}, got {self.dtype!r}")
        for token in self.eos_token_ids:
            if isinstance(token, bool) or not isinstance(token, int):
                raise ConfigError(f"eos_token_id must be an integer, got {token!r}")
            if not 0 <= token < self.vocab_size:
                raise ConfigError(
                    f"eos_token_id {token} is outside the vocabulary of {self.vocab_size}"
                )

    @property
    def family(self) -> str:
        """Short name of the architecture: ``qwen3``, ``qwen2`` or ``llama``."""
        return ARCHITECTURES[self.architecture][0]

    @property
    def q_size(self) -> int:
        """Output width of the query projection, ``num_heads · head_dim``."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Output width of the key (or value) projection, ``num_kv_heads · head_dim``."""
        return self.num_kv_heads * self.head_dim

    def kv_spec(self, dtype: str | None = None) -> KVSpec:
        """Shape of the KV cache when the engine runs in ``dtype`` (the stored one by default)."""
        return KVSpec(self.num_layers, self.num_kv_heads, self.head_dim, dtype or self.dtype)

    def resolve_max_model_len(self, requested: int | None) -> int:
        """The engine's longest prompt plus output: what was asked for, within what was trained.

        Raises:
            ConfigError: More than ``max_position_embeddings``.
        """
        if requested is None:
            return self.max_position_embeddings
        if requested > self.max_position_embeddings:
            raise ConfigError(
                f"max_model_len must be at most {self.max_position_embeddings} "
                f"(the model's max_position_embeddings), got {requested}"
            )
        return requested

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> ModelConfig:
        """Read ``config.json`` (and ``generation_config.json`` for its EOS ids) of a model folder.

        Raises:
            ModelNotFoundError: There is no ``config.json``.
            CheckpointError: A file is not JSON, or a required key is missing.
            UnsupportedModelError: The checkpoint needs something that is not implemented.
            ConfigError: A value is outside its range.
        """
        path = Path(folder) / "config.json"
        if not path.is_file():
            raise ModelNotFoundError(f"{folder} has no config.json")
        generation = Path(folder) / "generation_config.json"
        extra = _read_json(generation) if generation.is_file() else {}
        return cls.from_dict(_read_json(path), extra)

    @classmethod
    def from_dict(
        cls, raw: Mapping[str, Any], generation: Mapping[str, Any] | None = None
    ) -> ModelConfig:
        """Translate the keys of a Hugging Face config (old and new spellings).

        Raises:
            CheckpointError: A required key is missing.
            UnsupportedModelError: The config asks for something that is not implemented.
            ConfigError: A value is outside its range.
        """
        try:
            return cls._translate(raw, generation or {})
        except FoloError:
            raise
        except (TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise ConfigError(f"config.json holds a value of a wrong kind: {error}") from error

    @classmethod
    def _translate(cls, raw: Mapping[str, Any], generation: Mapping[str, Any]) -> ModelConfig:
        architecture = (raw.get("architectures") or ["(none)"])[0]
        if architecture not in ARCHITECTURES:
            raise UnsupportedModelError(
                f"architecture {architecture!r} is not supported; "
                f"supported: {', '.join(ARCHITECTURES)}"
            )
        _, qk_norm, default_bias = ARCHITECTURES[architecture]
        _refuse_unsupported(raw)
        hidden, heads = _require(raw, "hidden_size"), _require(raw, "num_attention_heads")
        max_positions = _require(raw, "max_position_embeddings")
        # Explicit in every published Qwen3 file; transformers assumes 128 for one that lacks it.
        head_dim = raw.get("head_dim") or (128 if qk_norm else hidden // heads)
        bias = bool(raw.get("attention_bias", default_bias))
        return cls(
            architecture=architecture,
            vocab_size=_require(raw, "vocab_size"),
            hidden_size=hidden,
            intermediate_size=_require(raw, "intermediate_size"),
            num_layers=_require(raw, "num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=raw.get("num_key_value_heads") or heads,
            head_dim=head_dim,
            max_position_embeddings=max_positions,
            rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            rope=RopeConfig.from_dict(raw, max_positions),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            qk_norm=qk_norm,
            # Qwen2 has a bias on q, k and v whatever its config says, and none on o.
            qkv_bias=True if architecture == "Qwen2ForCausalLM" else bias,
            o_bias=False if architecture == "Qwen2ForCausalLM" else bias,
            mlp_bias=bool(raw.get("mlp_bias", False)),
            eos_token_ids=_eos_ids(raw, generation),
            bos_token_id=raw.get("bos_token_id"),
            dtype=_dtype(raw),
            quantization=raw.get("quantization_config"),
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, found {type(value).__name__}")
    return value


def _require(raw: Mapping[str, Any], key: str) -> Any:
    if raw.get(key) is None:
        raise CheckpointError(f"config.json lacks {key!r}")
    return raw[key]


def _dtype(raw: Mapping[str, Any]) -> str:
    """``dtype`` (transformers 5) or ``torch_dtype`` (before); float32 where neither is stored."""
    name = raw.get("dtype") or raw.get("torch_dtype") or "float32"
    return str(name).removeprefix("torch.")


def _eos_ids(*sources: Mapping[str, Any]) -> tuple[int, ...]:
    """Every EOS id that a source names, in order, once. Both files may hold an int or a list."""
    ids: list[int] = []
    for source in sources:
        value = source.get("eos_token_id")
        for token in value if isinstance(value, list) else [value]:
            if token is not None and token not in ids:
                ids.append(token)
    return tuple(ids)


def _refuse_unsupported(raw: Mapping[str, Any]) -> None:
    activation = raw.get("hidden_act", "silu")
    if activation != "silu":
        raise UnsupportedModelError(f"hidden_act {activation!r} is not supported; supported: silu")
    sliding = raw.get("use_sliding_window") or "sliding_attention" in (raw.get("layer_types") or ())
    if sliding:
        raise UnsupportedModelError("sliding-window attention is not supported; full attention is")
    partial = raw.get("partial_rotary_factor", 1.0)
    if partial != 1.0:
        raise UnsupportedModelError(f"partial_rotary_factor {partial} is not supported; 1.0 is")
