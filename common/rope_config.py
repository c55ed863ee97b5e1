"""Rotary embedding parameters, from either spelling of a Hugging Face config.

transformers 5 writes ``rope_parameters = {"rope_theta": …, "rope_type": …}``; earlier files have a
top-level ``rope_theta`` and an optional ``rope_scaling``. A scaling that is not implemented is
refused by name: a silently unscaled rope gives fluent, wrong text beyond the trained length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.errors import CheckpointError, ConfigError, UnsupportedModelError

ROPE_TYPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class RopeConfig:
    """How token positions turn into rotation angles.

    Attributes:
        theta: Base of the frequencies (1,000,000 for Qwen3-0.6B).
        rope_type: One of :data:`ROPE_TYPES`.
        factor: Context extension factor (all types but ``default``).
        original_max_positions: Context before the extension (``llama3`` and ``yarn``).
        low_freq_factor: ``llama3``: wavelengths above ``original / low`` are scaled fully.
        high_freq_factor: ``llama3``: wavelengths below ``original / high`` are left alone.
        beta_fast: ``yarn``: rotations above which a dimension is left alone.
        beta_slow: ``yarn``: rotations below which a dimension is scaled fully.
        truncate: ``yarn``: whether the ramp's ends are rounded to whole dimensions.
        attention_factor: ``yarn``: factor on cos and sin; None computes the paper's value.
    """

    theta: float
    rope_type: str = "default"
    factor: float = 1.0
    original_max_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        """Check every field once."""
        if self.rope_type not in ROPE_TYPES:
            raise UnsupportedModelError(
                f"rope_type {self.rope_type!r} is not supported; supported: {', '.join(ROPE_TYPES)}"
            )
        if not self.theta > 0:
            raise ConfigError(f"rope_theta must be positive, got {self.theta!r}")
        if self.rope_type != "default" and not self.factor >= 1.0:
            raise ConfigError(f"rope factor must be at least 1, got {self.factor!r}")
        if self.rope_type in ("llama3", "yarn") and self.original_max_positions < 1:
            raise ConfigError(
                f"rope_type {self.rope_type!r} needs original_max_position_embeddings of at least "
                f"1, got {self.original_max_positions}"
            )

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], max_positions: int) -> RopeConfig:
        """Read the rope keys of a ``config.json``.

        Args:
            raw: The whole config.
            max_positions: ``max_position_embeddings``, the fallback for the original length.

        Raises:
            UnsupportedModelError: A scaling, or a key of one, that is not implemented.
            CheckpointError: A key that the scaling needs is missing.
        """
        params = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
        stored = (params.pop("rope_theta", None), raw.get("rope_theta"), 10_000.0)
        theta = float(next(value for value in stored if value is not None))
        kind = params.pop("rope_type", None) or params.pop("type", None) or "default"
        params.pop("type", None)
        if kind not in ROPE_TYPES:
            raise UnsupportedModelError(
                f"rope_type {kind!r} is not supported; supported: {', '.join(ROPE_TYPES)}"
            )
        known = {
            "factor": "factor",
            "low_freq_factor": "low_freq_factor",
            "high_freq_factor": "high_freq_factor",
            "beta_fast": "beta_fast",
            "beta_slow": "beta_slow",
            "truncate": "truncate",
            "attention_factor": "attention_factor",
            "original_max_position_embeddings": "original_max_positions",
        }
        unknown = sorted(key for key in params if key not in known and params[key] is not None)
        if unknown:
            raise UnsupportedModelError(
                f"rope parameter {unknown[0]!r} of rope_type {kind!r} is not supported"
            )
        if kind == "default":
            return cls(theta)
        fields = {known[key]: value for key, value in params.items() if value is not None}
        required = {"linear": ["factor"], "yarn": ["factor"]}.get(
            kind, ["factor", "low_freq_factor", "high_freq_factor"]
        )
        for key in required:
            if key not in fields:
                raise CheckpointError(f"config.json lacks {key!r} for rope_type {kind!r}")
        if kind in ("llama3", "yarn"):
            fields.setdefault("original_max_positions", max_positions)
        return cls(theta, kind, **fields)
