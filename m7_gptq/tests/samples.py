"""Checkpoints for the tests: GPTQModel's own, and others derived from them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.model.transformer import Transformer
from common.model.weights import checkpoint_modules
from m0_init.loader import load
from m1_basic.attention import UncachedAttend
from m7_gptq.linear import GPTQLinear, SideBySide, gptq_linear

FIXTURES = Path(__file__).parent / "fixtures"
PUBLISHED = ("qwen3-g16-sym-v1", "qwen3-g16-sym-v2", "llama-asym-v1")
Tensors = dict[str, Tensor]


def tensors_of(folder: Path) -> Tensors:
    """Every tensor of a checkpoint with one file."""
    return load_file(folder / "model.safetensors")


def reference(name: str) -> tuple[Tensor, Tensor]:
    """A fixture's ``token_ids [64]`` and transformers' ``logits [64, vocab]`` for them."""
    stored = load_file(FIXTURES / "references" / f"{name}.safetensors")
    return stored["token_ids"].long(), stored["logits"]


def copy_of(
    name: str,
    folder: Path,
    change: Callable[[Tensors], Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """A fixture copied to ``folder``, with changed tensors and config keys.

    Args:
        name: One of :data:`PUBLISHED`.
        folder: Where to.
        change: Edits the dict of tensors in place.
        config: Keys that replace those of both quantisation configs; None removes a key.
    """
    shutil.copytree(FIXTURES / name, folder)
    if change is not None:
        tensors = tensors_of(folder)
        change(tensors)
        save_file({key: value.contiguous() for key, value in tensors.items()},
                  folder / "model.safetensors", {"format": "pt"})  # fmt: skip
    own = folder / "quantize_config.json"
    raw = {**json.loads(own.read_text()), **(config or {})}
    raw = {key: value for key, value in raw.items() if value is not None}
    own.write_text(json.dumps(raw))
    edit_config(folder, quantization_config=raw)
    return folder


def edit_config(folder: Path, **keys: Any) -> None:
    """Set keys of ``config.json``; None removes one."""
    path = folder / "config.json"
    raw = {**json.loads(path.read_text()), **keys}
    raw = {key: value for key, value in raw.items() if value is not None}
    path.write_text(json.dumps(raw))


def dequantise(tensors: Tensors, name: str, offset: int, bits: int = 4) -> NDArray[np.float32]:
    """Ŵ ``[out, in]`` of one layer, from the description of the format alone, in plain numpy.

    Args:
        tensors: A checkpoint.
        name: The layer.
        offset: 1 for v1 (it stores the zero point minus 1), 0 for v2.
        bits: 4 or 8.
    """
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    qweight, qzeros, g_idx = (
        tensors[f"{name}.{leaf}"].numpy() for leaf in ("qweight", "qzeros", "g_idx")
    )
    scales = tensors[f"{name}.scales"].numpy().astype(np.float32)
    mask = np.uint32(2**bits - 1)
    rows = (qweight.view(np.uint32)[:, None, :] >> shifts[None, :, None]) & mask
    columns = (qzeros.view(np.uint32)[:, :, None] >> shifts[None, None, :]) & mask
    q = rows.reshape(-1, qweight.shape[1]).astype(np.int64)
    z = (columns.reshape(qzeros.shape[0], -1).astype(np.int64) + offset) & int(mask)
    weight: NDArray[np.float32] = (scales[g_idx] * (q - z[g_idx])).T.astype(np.float32)
    return weight


def quantised_names(tensors: Tensors) -> list[str]:
    """Layers that are stored packed."""
    return [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]


def repacked(values: Tensor, bits: int) -> Tensor:
    """``[rows, columns]`` integers packed along the rows, in plain numpy."""
    count = 32 // bits
    parts = values.numpy().astype(np.uint32).reshape(-1, count, values.shape[1])
    words = np.zeros(parts[:, 0].shape, dtype=np.uint32)
    for place in range(count):
        words |= parts[:, place] << np.uint32(place * bits)
    return torch.from_numpy(words.view(np.int32))


def loaded(folder: Path) -> Transformer:
    return load(folder, dtype="float32", device="cpu", linear=gptq_linear(folder)).model


def logits(model: Transformer, ids: Tensor) -> Tensor:
    hidden = model(ids, torch.arange(len(ids)), UncachedAttend())
    return model.logits(hidden)


def our_weight(model: Transformer, name: str) -> Tensor:
    """Ŵ ``[out, in]`` of one checkpoint layer as our module dequantises it."""
    path, shard = checkpoint_modules(model.config)[name]
    module = model.get_submodule(path)
    if isinstance(module, SideBySide):
        module, shard = module.parts[shard], 0
    assert isinstance(module, GPTQLinear)
    first = sum(module.out_sizes[:shard])
    return module.dequantised(first, first + module.out_sizes[shard]).T
