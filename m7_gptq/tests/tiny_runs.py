"""A tiny model, quantised once for several tests."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

from common.model.transformer import Transformer
from common.model_config import ModelConfig
from m0_init.loader import load
from m1_basic.attention import UncachedAttend
from m7_gptq.calibrate import QuantizedLinear, quantise_model
from m7_gptq.checkpoint_writer import (
    write_checkpoint,
)
from m7_gptq.packing import Format
from m7_gptq.quantizer import QuantSpec

SPEC = QuantSpec(bits=4, group_size=16)


def ids(count: int, length: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        [int(each) for each in torch.randint(256, (length,), generator=generator)]
        for _ in range(count)
    ]


SAMPLES = ids(6, 48, seed=0)


def dense(folder: Path, dtype: str = "float32") -> Transformer:
    return load(folder, dtype=dtype, device="cpu").model


def logits(model: Transformer, tokens: list[int]) -> Tensor:
    hidden = model(torch.tensor(tokens), torch.arange(len(tokens)), UncachedAttend())
    return model.logits(hidden)


def put(model: Transformer, linears: list[QuantizedLinear]) -> None:
    """Write Ŵ of some layers into a dense model."""
    from common.model.weights import checkpoint_modules

    table = checkpoint_modules(model.config)
    for each in linears:
        path, shard = table[each.name]
        module = model.get_submodule(path)
        load_shard = module.load_shard
        assert callable(load_shard)
        load_shard("weight", shard, each.weight.dequantised())


@functools.cache
def quantised(folder: Path, spec: QuantSpec) -> list[QuantizedLinear]:
    """The layers of a model, quantised once for all tests."""
    return list(quantise_model(dense(folder), SAMPLES[:2], spec))


def write(
    folder: Path, out: Path, spec: QuantSpec, form: Format | None = None
) -> list[QuantizedLinear]:
    """Quantise and write; returns the layers."""
    linears = quantised(folder, spec)
    write_checkpoint(out, folder, ModelConfig.from_pretrained(folder), linears, spec, form=form)
    return linears
