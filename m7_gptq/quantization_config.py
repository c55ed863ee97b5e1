"""What a GPTQ checkpoint says of itself: ``quantization_config`` or ``quantize_config.json``.

The same keys are written twice by today's tools (into ``config.json`` for transformers and vLLM,
into ``quantize_config.json`` for AutoGPTQ and GPTQModel). Old files have only the second, and know
neither ``format`` nor ``checkpoint_format``: they are v1.

Keys that only say how the integers were found (damping, act-order, order of layers) change nothing
for a reader and are not looked at. Keys that change what the integers mean are read here, or
refused by name. One of them is who wrote the file: GPTQModel stores v1 zero points its own way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import CheckpointError, UnsupportedModelError
from m7_gptq.packing import FORMATS, SUPPORTED_BITS, Format

FILE = "quantize_config.json"
SAME_IN_BOTH = ("bits", "group_size", "format", "checkpoint_format", "dynamic")
REFUSED_WHEN_SET = ("adapter", "rotation", "is_marlin_format")
"""Keys that change the arithmetic: added LoRA terms, rotated inputs, another packing."""

DECODING = ("bits", "group_size")
"""What a ``dynamic`` rule may change for a reader."""

IGNORED_IN_RULES = ("desc_act", "sym", "act_group_aware", "damp_percent", "damp_auto_increment",
                    "static_groups", "mse", "hessian", "fallback", "gptaq", "foem")  # fmt: skip
"""What a ``dynamic`` rule may say of how integers were found."""


@dataclass(frozen=True)
class GPTQConfig:
    """How to read the integers of a checkpoint.

    Attributes:
        bits: 4 or 8.
        group_size: Input channels per group, −1 for all.
        form: How zero points are stored.
        dynamic: Exceptions: a rule (see :meth:`for_module`) and what it changes.
        whole_words: The 1 of v1 zero points was subtracted from whole words (GPTQModel).
    """

    bits: int
    group_size: int
    form: Format
    dynamic: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    whole_words: bool = False

    def __post_init__(self) -> None:
        """Refuse what is not supported.

        Raises:
            UnsupportedModelError: Bits or groups that this project does not read.
        """
        check_bits(self.bits, "bits")
        check_group(self.group_size, "group_size")

    def for_module(self, name: str) -> tuple[int, int] | None:
        """Bits and group size of one linear layer; None where a rule keeps it dense.

        GPTQModel's rules: the first whose pattern matches the beginning of the name decides.
        ``-:pattern`` keeps the layer dense; ``+:pattern`` (or ``pattern``) changes its values.

        Args:
            name: In the checkpoint, such as ``model.layers.0.mlp.down_proj`` or ``lm_head``.
        """
        for rule, changes in self.dynamic:
            if re.match(rule[2:] if rule[:2] in ("+:", "-:") else rule, name):
                if rule.startswith("-:"):
                    return None
                return changes.get("bits", self.bits), changes.get("group_size", self.group_size)
        return self.bits, self.group_size


def read_config(folder: Path, stored: Mapping[str, Any] | None) -> GPTQConfig:
    """Read and check the quantisation config of a checkpoint.

    Args:
        folder: The checkpoint.
        stored: ``quantization_config`` of its ``config.json``, if there is one.

    Raises:
        CheckpointError: There is none, the two disagree, or a key is missing or of a wrong kind.
        UnsupportedModelError: It needs something that is not implemented.
    """
    own = _read_file(folder / FILE)
    if stored is not None and not isinstance(stored, Mapping):
        raise CheckpointError(f"quantization_config in {folder} must be an object, got {stored!r}")
    if stored is not None and own is not None:
        for key in SAME_IN_BOTH:
            if key in stored and key in own and stored[key] != own[key]:
                raise CheckpointError(
                    f"{folder}: config.json says {key} = {stored[key]!r}, {FILE} says {own[key]!r}"
                )
    raw = stored if stored is not None else own
    if raw is None:
        raise CheckpointError(f"{folder} has no quantization_config and no {FILE}")
    try:
        return parse_config(raw)
    except (UnsupportedModelError, CheckpointError) as error:
        raise type(error)(f"{folder}: {error}") from error


def parse_config(raw: Mapping[str, Any]) -> GPTQConfig:
    """Translate the keys of one file.

    Raises:
        CheckpointError: A key is missing, of a wrong kind, or contradicts another.
        UnsupportedModelError: Another method, format, packing or bit width.
    """
    for key in ("quant_method", "method"):
        value = raw.get(key, "gptq")
        if value != "gptq":
            raise UnsupportedModelError(f"{key} {value!r} is not supported; supported: gptq")
    packed = raw.get("pack_dtype", "int32")
    if packed != "int32":
        raise UnsupportedModelError(f"pack_dtype {packed!r} is not supported; supported: int32")
    for key in REFUSED_WHEN_SET:
        if raw.get(key):
            raise UnsupportedModelError(f"{key} = {raw[key]!r} is not supported")
    for key in DECODING:
        if key not in raw:
            raise CheckpointError(f"the quantisation config lacks {key!r}")
    return GPTQConfig(
        raw["bits"], raw["group_size"], _format(raw), _rules(raw.get("dynamic")), _by_gptqmodel(raw)
    )


def check_bits(bits: Any, what: str) -> None:
    """Refuse a bit width other than 4 and 8.

    Raises:
        UnsupportedModelError: Names it.
    """
    if isinstance(bits, bool) or bits not in SUPPORTED_BITS:
        raise UnsupportedModelError(f"{what} {bits!r} is not supported; supported: 4, 8")


def check_group(size: Any, what: str) -> None:
    """Refuse a group size that is neither −1 nor positive.

    Raises:
        UnsupportedModelError: Names it.
    """
    if isinstance(size, bool) or not isinstance(size, int) or (size != -1 and size < 1):
        raise UnsupportedModelError(f"{what} {size!r} is not supported; −1 and positive ones are")


def _format(raw: Mapping[str, Any]) -> Format:
    """``format`` and ``checkpoint_format`` are one key under two names; neither means v1."""
    named = {raw[key] for key in ("format", "checkpoint_format") if raw.get(key) is not None}
    if len(named) > 1:
        raise CheckpointError(
            f"format is {raw['format']!r} and checkpoint_format {raw['checkpoint_format']!r}"
        )
    value = named.pop() if named else "gptq"
    for form in FORMATS:
        if value == form:
            return form
    raise UnsupportedModelError(f"format {value!r} is not supported; supported: gptq, gptq_v2")


def _by_gptqmodel(raw: Mapping[str, Any]) -> bool:
    """Whether ``meta`` names GPTQModel as the writer: ``"quantizer": ["gptqmodel:7.6.0"]``."""
    meta = raw.get("meta")
    named = meta.get("quantizer") if isinstance(meta, Mapping) else None
    writers = named if isinstance(named, list) else [named]
    return any(str(each).lower().startswith("gptqmodel:") for each in writers)


def _rules(raw: Any) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    """Check every ``dynamic`` rule, also those that match nothing."""
    if raw is None:
        return ()
    if not isinstance(raw, Mapping):
        raise CheckpointError(f"dynamic must be an object of rules, got {raw!r}")
    for rule, changes in raw.items():
        try:
            re.compile(rule[2:] if rule[:2] in ("+:", "-:") else rule)
        except re.error as error:
            raise CheckpointError(f"dynamic rule {rule!r} is no pattern: {error}") from error
        if rule.startswith("-:"):
            continue
        if not isinstance(changes, Mapping):
            raise CheckpointError(f"dynamic rule {rule!r} must hold an object, got {changes!r}")
        for key, value in changes.items():
            if key == "bits":
                check_bits(value, f"dynamic rule {rule!r}: bits")
            elif key == "group_size":
                check_group(value, f"dynamic rule {rule!r}: group_size")
            elif key not in IGNORED_IN_RULES:
                raise UnsupportedModelError(f"dynamic rule {rule!r}: {key!r} is not supported")
    return tuple(raw.items())


def _read_file(path: Path) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, found {type(value).__name__}")
    return value
