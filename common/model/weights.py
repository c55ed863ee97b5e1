"""From checkpoint names to (module, shard), streamed from safetensors one tensor at a time.

Nothing here knows a layer's arithmetic: a module says which tensors it expects and copies each
into place, so that merged matrices (and later, quantised ones) need no second copy of the weights.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from common.errors import CheckpointError
from common.model.interfaces import LoadableModule
from common.model.transformer import Transformer
from common.model_config import ModelConfig

# checkpoint module inside a layer -> (our module inside a layer, shard)
LAYER_MODULES: dict[str, tuple[str, int]] = {
    "input_layernorm": ("attn_norm", 0),
    "self_attn.q_proj": ("attn.qkv", 0),
    "self_attn.k_proj": ("attn.qkv", 1),
    "self_attn.v_proj": ("attn.qkv", 2),
    "self_attn.o_proj": ("attn.o", 0),
    "self_attn.q_norm": ("attn.q_norm", 0),
    "self_attn.k_norm": ("attn.k_norm", 0),
    "post_attention_layernorm": ("mlp_norm", 0),
    "mlp.gate_proj": ("mlp.gate_up", 0),
    "mlp.up_proj": ("mlp.gate_up", 1),
    "mlp.down_proj": ("mlp.down", 0),
}


@dataclass(frozen=True)
class LoadReport:
    """What loading cost.

    Attributes:
        num_files: Safetensors files opened.
        num_tensors: Tensors copied.
        num_bytes: Bytes of those tensors as stored.
        seconds: Wall time, allocation of the model not included.
    """

    num_files: int
    num_tensors: int
    num_bytes: int
    seconds: float


def checkpoint_modules(config: ModelConfig) -> dict[str, tuple[str, int]]:
    """Checkpoint module name to (path in our model, shard), for every module of a checkpoint.

    ``model.layers.3.self_attn.k_proj`` maps to ``("layers.3.attn.qkv", 1)``.
    """
    table = {
        "model.embed_tokens": ("embed_tokens", 0),
        "model.norm": ("norm", 0),
        "lm_head": ("lm_head", 0),
    }
    for layer in range(config.num_layers):
        for theirs, (ours, shard) in LAYER_MODULES.items():
            table[f"model.layers.{layer}.{theirs}"] = (f"layers.{layer}.{ours}", shard)
    return table


def load_weights(model: Transformer, folder: Path) -> LoadReport:
    """Fill ``model`` from the safetensors files in ``folder``.

    Raises:
        CheckpointError: A file is broken or absent, or a tensor is missing, unexpected or of the
            wrong shape; the message names it.
    """
    start = time.perf_counter()
    table = checkpoint_modules(model.config)
    modules = _loadable_modules(model)
    pending = {
        (path, *shard) for path, module in modules.items() for shard in module.expected_shards()
    }
    files = safetensors_files(folder)
    count = size = 0
    copy_of_embedding: Tensor | None = None
    for name, tensor in _stream(files):
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            copy_of_embedding = tensor  # some tied checkpoints store the matrix twice
            continue
        prefix, _, leaf = name.rpartition(".")
        path, shard = table.get(prefix, ("", 0))
        if path not in modules or (path, leaf, shard) not in pending:
            raise CheckpointError(f"unexpected tensor {name!r} in {folder}")
        try:
            modules[path].load_shard(leaf, shard, tensor)
        except CheckpointError as error:
            raise CheckpointError(f"tensor {name!r}: {error}") from error
        pending.remove((path, leaf, shard))
        count, size = count + 1, size + tensor.nbytes
    if pending:
        raise CheckpointError(f"{folder} lacks {_checkpoint_name(table, *min(pending))!r}")
    if copy_of_embedding is not None:
        _check_tied(model, copy_of_embedding, folder)
    return LoadReport(len(files), count, size, time.perf_counter() - start)


def safetensors_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint: those of its index, or its one file.

    Raises:
        CheckpointError: There is none, the index is broken, or a file it names is absent.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            names = sorted(set(listed))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index} is not a safetensors index: {error}") from error
    else:
        names = sorted(path.name for path in folder.glob("*.safetensors"))
    if not names:
        raise CheckpointError(f"{folder} has no .safetensors file (other formats are not read)")
    for name in names:
        # A name, never a path: an index must not reach files outside its folder.
        if not isinstance(name, str) or not name or Path(name).name != name:
            raise CheckpointError(f"{index} names {name!r}, which is no file of its folder")
        if not (folder / name).is_file():
            raise CheckpointError(f"{index} names {name}, which is not there")
    return [folder / name for name in names]


def _loadable_modules(model: Transformer) -> dict[str, LoadableModule]:
    """Every outermost loadable module by its path.

    A loadable module may be made of others (parts of a merged layer that are stored differently);
    it expects their tensors itself and hands them on.
    """
    found: dict[str, LoadableModule] = {}
    for path, module in model.named_modules():  # a parent comes before its children
        inside = any(path.startswith(f"{outer}.") for outer in found)
        if isinstance(module, LoadableModule) and not inside:
            found[path] = module
    return found


def _check_tied(model: Transformer, head: Tensor, folder: Path) -> None:
    """A stored ``lm_head.weight`` must be the embedding that the config says it is.

    Raises:
        CheckpointError: It is another matrix: dropping it would give fluent, wrong text.
    """
    embedding = model.embed_tokens.weight
    same = head.shape == embedding.shape and torch.equal(head.to(embedding), embedding)
    if not same:
        raise CheckpointError(
            f"lm_head.weight in {folder} differs from the embedding, although config.json says "
            f"tie_word_embeddings"
        )


def _stream(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor once. Each is a view of the mapped file: its pages are read on copy.

    Old Llama files store the rope frequencies of each layer; we compute them from the config.
    """
    for path in files:
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    if not name.endswith("rotary_emb.inv_freq"):
                        yield name, file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error


def _checkpoint_name(table: dict[str, tuple[str, int]], path: str, leaf: str, shard: int) -> str:
    """The checkpoint's own name of one of our shards, for messages."""
    theirs = next(name for name, target in table.items() if target == (path, shard))
    return f"{theirs}.{leaf}"
