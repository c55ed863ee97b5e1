"""A GPTQ checkpoint on disk: what each linear layer holds, checked against the file headers.

====================  ==================  =====================================================
tensor of layer X     dtype, shape        meaning
====================  ==================  =====================================================
``X.qweight``         int32 [in/8, out]   integers, packed along the inputs (8 bits: in/4)
``X.qzeros``          int32 [G, out/8]    zero points, packed along the outputs (8 bits: out/4)
``X.scales``          float [G, out]      float16 in nearly all files
``X.g_idx``           int32 [in]          group of each input; absent in old files: i // group
``X.bias``            float [out]         where the layer has one (AutoGPTQ once wrote zeros)
====================  ==================  =====================================================

``G = ceil(in / group_size)``; the last group may be smaller. Whether a layer is quantised at all is
read from the files, which cannot be wrong about it: layers with ``X.weight`` are dense, whatever
``modules_in_block_to_quantize``, ``lm_head`` or a ``dynamic`` rule brought that about.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from common.errors import CheckpointError, UnsupportedModelError
from common.model.weights import safetensors_files
from common.model_config import ModelConfig
from m7_gptq.packing import Format, per_word
from m7_gptq.quantization_config import FILE, GPTQConfig, read_config

SCALE_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


@dataclass(frozen=True)
class LinearFormat:
    """How one quantised linear layer is stored.

    Attributes:
        bits: 4 or 8.
        group_size: Input channels of a whole group (−1 is resolved to all of them).
        form: How zero points are stored.
        scale_dtype: Element type of the scales.
        has_g_idx: Whether ``g_idx`` is stored.
        has_bias: Whether ``bias`` is stored.
        whole_words: See :func:`m7_gptq.packing.unpack_zeros`.
    """

    bits: int
    group_size: int
    form: Format
    scale_dtype: torch.dtype
    has_g_idx: bool
    has_bias: bool
    whole_words: bool = False

    def num_groups(self, in_features: int) -> int:
        """Groups of a layer with ``in_features`` inputs, the ragged last one included."""
        return -(-in_features // self.group_size)


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of one tensor: its dtype's name and its shape."""

    dtype: str
    shape: tuple[int, ...]


class GPTQCheckpoint:
    """The headers of a checkpoint and its quantisation config.

    Attributes:
        folder: Where it lies.
        config: Bits, groups, format, exceptions.
        headers: Every stored tensor.
    """

    def __init__(self, folder: Path, config: GPTQConfig, headers: Mapping[str, Header]) -> None:
        """Keep what was read; :meth:`read` is the usual way in."""
        self.folder, self.config, self.headers = folder, config, headers

    @classmethod
    def read(cls, folder: Path, model: ModelConfig) -> GPTQCheckpoint:
        """Read configs and headers, no weights.

        Raises:
            CheckpointError: A file is broken or absent, or the configs disagree.
            UnsupportedModelError: It needs something that is not implemented.
        """
        config = read_config(folder, model.quantization)
        headers = read_headers(folder)
        if model.tie_word_embeddings and "lm_head.qweight" in headers:
            raise UnsupportedModelError(
                f"{folder}: a quantised lm_head that config.json ties to the embedding "
                f"(tie_word_embeddings) is not supported"
            )
        if "model.embed_tokens.qweight" in headers:
            raise UnsupportedModelError(f"{folder}: a quantised embedding is not supported")
        return cls(folder, config, headers)

    def linear(self, name: str, in_features: int, out_features: int) -> LinearFormat | None:
        """How a linear layer is stored; None where it is dense.

        Args:
            name: Its name in the checkpoint.
            in_features: Width of its input.
            out_features: Width of its output.

        Raises:
            CheckpointError: Config and files disagree, or a shape is wrong.
            UnsupportedModelError: A layout that is not implemented.
        """
        if f"{name}.qweight" not in self.headers:
            return None
        values = self.config.for_module(name)
        if values is None:
            raise CheckpointError(f"{name} is quantised in {self.folder}, a dynamic rule denies it")
        bits, group = values
        made = LinearFormat(
            bits=bits,
            group_size=in_features if group == -1 else min(group, in_features),
            form=self.config.form,
            scale_dtype=self._scale_dtype(name),
            has_g_idx=f"{name}.g_idx" in self.headers,
            has_bias=f"{name}.bias" in self.headers,
            whole_words=self.config.whole_words,
        )
        self._check_shapes(name, made, in_features, out_features)
        return made

    def _scale_dtype(self, name: str) -> torch.dtype:
        header = self.headers.get(f"{name}.scales")
        if header is None:
            raise CheckpointError(f"{self.folder} lacks '{name}.scales'")
        if header.dtype not in SCALE_DTYPES:
            raise UnsupportedModelError(f"{name}.scales of type {header.dtype} are not supported")
        return SCALE_DTYPES[header.dtype]

    def _check_shapes(
        self, name: str, made: LinearFormat, in_features: int, out_features: int
    ) -> None:
        """Headers against config: a wrong ``bits`` or ``group_size`` shows in the shapes."""
        count, groups = per_word(made.bits), made.num_groups(in_features)
        if in_features % count or out_features % count:
            raise UnsupportedModelError(
                f"{name} is {in_features} × {out_features}: {made.bits}-bit words need "
                f"multiples of {count}"
            )
        expected: dict[str, Header] = {
            "qweight": Header("I32", (in_features // count, out_features)),
            "qzeros": Header("I32", (groups, out_features // count)),
            "scales": Header(self.headers[f"{name}.scales"].dtype, (groups, out_features)),
        }
        if made.has_g_idx:
            expected["g_idx"] = Header("I32", (in_features,))
        for leaf, header in expected.items():
            found = self.headers.get(f"{name}.{leaf}")
            if found is None:
                raise CheckpointError(f"{self.folder} lacks '{name}.{leaf}'")
            if found != header:
                raise CheckpointError(
                    f"{name}.{leaf} is {found.dtype} {list(found.shape)}; {made.bits} bits in "
                    f"groups of {made.group_size} need {header.dtype} {list(header.shape)}"
                )


def is_quantised(folder: Path, model: ModelConfig) -> bool:
    """Whether a checkpoint says that it is quantised, or holds packed tensors all the same.

    Raises:
        CheckpointError: A file is broken or absent.
    """
    if model.quantization is not None or (folder / FILE).is_file():
        return True
    return any(name.endswith(".qweight") for name in read_headers(folder))


def read_headers(folder: Path) -> dict[str, Header]:
    """Name, dtype and shape of every tensor of a checkpoint, sharded or not.

    Raises:
        CheckpointError: A file is broken or absent.
    """
    headers: dict[str, Header] = {}
    for path in safetensors_files(folder):
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    part: Any = file.get_slice(name)
                    headers[name] = Header(str(part.get_dtype()), tuple(part.get_shape()))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    return headers
