"""Which checkpoints cross the border: every combination that we write, a selection of theirs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from common.testing.checkpoints import Family, tiny_config, write_checkpoint
from m7_gptq.packing import Format
from m7_gptq.quantizer import QuantSpec

FAMILIES: tuple[Family, ...] = ("qwen3", "qwen2", "llama")
GROUPS = (32, 64, -1)
VOCAB = 320


@dataclass(frozen=True)
class Case:
    """One quantised checkpoint.

    Attributes:
        family: Architecture of the tiny random model.
        spec: Bits, groups, symmetry, order.
        form: How zero points are stored.
    """

    family: Family
    spec: QuantSpec
    form: Format

    @property
    def name(self) -> str:
        """Such as ``qwen3-4bit-g32-sym-order-gptq_v2``; also its folder's."""
        group = "all" if self.spec.group_size == -1 else self.spec.group_size
        parts = [self.family, f"{self.spec.bits}bit", f"g{group}"]
        parts += ["sym" if self.spec.sym else "asym", *["order"] * self.spec.desc_act, self.form]
        return "-".join(parts)

    @property
    def config(self) -> dict[str, Any]:
        """The same in GPTQModel's words.

        Its own reordering of groups (``act_group_aware``) excludes act-order and a single group.
        """
        spec = self.spec
        return {
            "bits": spec.bits,
            "group_size": spec.group_size,
            "sym": spec.sym,
            "desc_act": spec.desc_act,
            "act_group_aware": not spec.desc_act and spec.group_size != -1,
            "format": self.form,
        }


def ours() -> list[Case]:
    """Every combination that we write by default, and symmetric v2: 36. Families take turns."""
    forms: tuple[tuple[bool, Format], ...] = ((True, "gptq"), (True, "gptq_v2"), (False, "gptq_v2"))
    grid = itertools.product((4, 8), GROUPS, (False, True), forms)
    return [
        Case(family, QuantSpec(bits=bits, group_size=group, sym=sym, desc_act=order), form)
        for family, (bits, group, order, (sym, form)) in zip(
            itertools.cycle(_turns()), grid, strict=False
        )
    ]


def refused() -> Case:
    """Asymmetric v1 by somebody else: GPTQModel does not load it, which is why we write v2."""
    return Case("qwen3", QuantSpec(bits=4, group_size=32, sym=False), "gptq")


def theirs() -> list[Case]:
    """Twelve checkpoints for GPTQModel to make: both widths, formats, grids and orders."""
    settings: tuple[tuple[int, bool, bool, Format], ...] = (
        (32, True, False, "gptq"),
        (-1, True, False, "gptq_v2"),
        (64, False, False, "gptq"),
        (32, False, False, "gptq_v2"),
        (64, True, True, "gptq"),
        (32, False, True, "gptq"),
    )
    return [
        Case(family, QuantSpec(bits=bits, group_size=group, sym=sym, desc_act=order), form)
        for bits in (4, 8)
        for family, (group, sym, order, form) in zip(
            itertools.cycle(FAMILIES), settings, strict=False
        )
    ]


def _turns() -> list[Family]:
    """The families, shifted each time: none always meets the same one of the three forms."""
    count = len(FAMILIES)
    return [FAMILIES[(i + shift) % count] for shift in range(count) for i in range(count)]


def write_dense(folder: Path, family: Family) -> Path:
    """A tiny random model in float16, untied where it has biases.

    Everything is exact in float16, so whoever loads it has the same floats. Every fifth output of
    each layer has positive weights alone: on an asymmetric grid its zero point is 0, the one that
    v1 stores as −1.
    """
    config = tiny_config(
        family, hidden=64, layers=2, intermediate=128, vocab=VOCAB, tied=family != "qwen2"
    )
    write_checkpoint(folder, config, dtype="float16", tokenizer=True)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if name.endswith("proj.weight"):
            tensor[::5] = tensor[::5].abs()
    save_file(tensors, path, {"format": "pt"})
    return folder


def token_ids(count: int, length: int, seed: int) -> torch.Tensor:
    """``[count, length]`` random ids of the byte alphabet."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, length), generator=generator)
