"""Linear layers over packed integers, made by a factory: the model does not know that they exist.

q, k and v (and gate and up) are merged by their columns, in storage always::

    qweight [in/8, q + k + v]    scales [G, q + k + v]    qzeros [G, (q + k + v)/8]
    |   q   | k | v |            |   q   | k | v |        |   q   | k | v |

Whether one product can serve all three is known only when the last tensor is loaded: it can if
their ``g_idx`` are equal (always without act-order; with it, if they shared a Hessian). Otherwise
each part is computed on its own columns. Parts that are stored differently (another bit width or
group size by a ``dynamic`` rule, or dense) are separate modules, :class:`SideBySide`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from common.errors import CheckpointError
from common.model.interfaces import LinearFactory, LoadableModule
from common.model.linear import DenseLinear, copy_checked, dense_linear_factory, uninitialised
from common.model.weights import checkpoint_modules
from common.model_config import ModelConfig
from m0_init.loader import MakeLinear
from m7_gptq.checkpoint import GPTQCheckpoint, LinearFormat, is_quantised
from m7_gptq.packing import pack_zeros, per_word, pick_columns, unpack_rows, unpack_zeros

CHUNK = 1024
"""Output channels that the reference dequantises at a time."""


class GPTQLinear(LoadableModule):
    """``y = x · Ŵᵀ (+ b)`` with Ŵ in 4 or 8 bits; the parts are stored alike.

    The forward pass is the reference: unpack some columns, multiply, forget them. Nothing
    dequantised is kept, so memory stays at the packed size plus one chunk: ``in · 1024 · 9`` bytes
    (of each weight an integer, a float, and a float zero point or scale).

    Attributes:
        format: How the parts are stored.
        in_features: Width of the input.
        out_sizes: Columns of each part.
        split: Whether the call returns one tensor per part.
        qweight: ``[in · bits / 32, sum(out_sizes)]`` int32.
        qzeros: ``[groups, sum(out_sizes) · bits / 32]`` int32: the true zero points (the form of
            v2, whatever the checkpoint's was).
        scales: ``[groups, sum(out_sizes)]``, in the stored dtype.
        g_idx: ``[parts, in]`` int32, group of each input channel.
        bias: ``[sum(out_sizes)]`` in the model's dtype, or None.
        merged: Once loaded, whether all parts have the same ``g_idx``.
        dtype: Element type of the model.
    """

    def __init__(
        self,
        prefix: str,
        in_features: int,
        out_sizes: tuple[int, ...],
        split: bool,
        form: LinearFormat,
        *,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        """Allocate the merged tensors without filling them."""
        super().__init__()
        self.prefix, self.in_features, self.out_sizes = prefix, in_features, out_sizes
        self.split, self.format, self.merged = split, form, False
        self.dtype = dtype
        columns, count = sum(out_sizes), per_word(form.bits)
        groups = form.num_groups(in_features)
        self.qweight = uninitialised((in_features // count, columns), torch.int32, device)
        self.qzeros = uninitialised((groups, columns // count), torch.int32, device)
        self.scales = uninitialised((groups, columns), form.scale_dtype, device)
        self.g_idx = uninitialised((len(out_sizes), in_features), torch.int32, device)
        self.bias = uninitialised((columns,), dtype, device) if bias else None
        default = torch.arange(in_features, dtype=torch.int32) // form.group_size
        self.g_idx.data.copy_(default.expand_as(self.g_idx))
        self._missing = self.expected_shards()

    def expected_shards(self) -> set[tuple[str, int]]:
        """``qweight``, ``qzeros``, ``scales`` of each part, ``g_idx`` and ``bias`` where stored."""
        names = ["qweight", "qzeros", "scales"]
        names += ["g_idx"] * self.format.has_g_idx + ["bias"] * (self.bias is not None)
        return {(name, shard) for name in names for shard in range(len(self.out_sizes))}

    def load_shard(self, name: str, shard: int, tensor: Tensor) -> None:
        """Copy one stored tensor into its columns; after the last one, :meth:`loaded` is called.

        Raises:
            CheckpointError: The name is unknown, a shape or dtype is wrong, or ``g_idx`` names a
                group that is not there.
        """
        what = f"{self.prefix} (shard {shard})"
        if (name, shard) not in self.expected_shards():
            raise CheckpointError(f"{what} has no tensor {name!r}")
        bits, count = self.format.bits, per_word(self.format.bits)
        first = sum(self.out_sizes[:shard])
        last = first + self.out_sizes[shard]
        if name == "g_idx":
            _copy_ints(self.g_idx[shard], tensor, f"{what} g_idx")
            self._check_groups(shard, what)
        elif name == "qweight":
            _copy_ints(self.qweight[:, first:last], tensor, f"{what} qweight")
        elif name == "qzeros":
            target = self.qzeros[:, first // count : last // count]
            _copy_ints(target, tensor, f"{what} qzeros")
            if self.format.form != "gptq_v2":
                by_word = self.format.whole_words
                zeros = unpack_zeros(target, bits, self.format.form, whole_words=by_word)
                target.copy_(pack_zeros(zeros, bits, "gptq_v2"))
        elif name == "scales":
            copy_checked(self.scales[:, first:last], tensor, f"{what} scales")
        else:
            assert self.bias is not None
            copy_checked(self.bias[first:last], tensor, f"{what} bias")
        self._missing.discard((name, shard))
        if not self._missing:
            self.loaded()

    def loaded(self) -> None:
        """Every tensor is there: see whether the parts agree. Kernels repack here."""
        self.merged = bool((self.g_idx == self.g_idx[0]).all())

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """``[..., in_features]`` to ``[..., out]``, or to a tuple of views when ``split``."""
        columns = sum(self.out_sizes)
        y = x.new_empty(*x.shape[:-1], columns)
        for first, last in self.chunks():
            y[..., first:last] = x @ self.dequantised(first, last).to(x.dtype)
        if self.bias is not None:
            y += self.bias
        return torch.split(y, list(self.out_sizes), dim=-1) if self.split else y

    def spans(self) -> list[tuple[int, int]]:
        """Ranges of columns that share one ``g_idx``: all of them if :attr:`merged`, else parts."""
        ends = list(itertools.accumulate(self.out_sizes))
        return [(0, ends[-1])] if self.merged else list(zip([0, *ends], ends, strict=False))

    def chunks(self) -> list[tuple[int, int]]:
        """Ranges of columns of at most :data:`CHUNK`, none across two spans."""
        return [
            (i, min(i + CHUNK, stop))
            for start, stop in self.spans()
            for i in range(start, stop, CHUNK)
        ]

    def dequantised(self, first: int, last: int) -> Tensor:
        """Columns ``first … last − 1`` of Ŵᵀ: ``scales · (ints − zeros)``.

        Args:
            first: First output channel, a multiple of ``32 / bits``.
            last: One past the last; within one part unless :attr:`merged`.

        Returns:
            ``[in_features, last − first]`` float32, exact for float16 scales.
        """
        bits, count = self.format.bits, per_word(self.format.bits)
        words = self.qzeros[:, first // count : last // count]
        zeros, scales = unpack_zeros(words, bits, "gptq_v2"), self.scales[:, first:last]
        groups = self.g_idx[0 if self.merged else self._part(first)].long()
        weight = unpack_rows(self.qweight[:, first:last], bits).float()
        weight -= zeros.float()[groups]  # one row of zeros and scales for each input
        weight *= scales.float()[groups]
        return weight

    def rows(self, ids: Tensor) -> Tensor:
        """Some rows of Ŵ, as an embedding looks them up. For a layer of one part.

        Args:
            ids: ``[...]`` int64, output channels.

        Returns:
            ``[..., in_features]`` in the model's dtype.
        """
        bits, flat = self.format.bits, ids.reshape(-1)
        groups = self.g_idx[0].long()
        weight = unpack_rows(self.qweight[:, flat], bits).float()
        weight -= pick_columns(self.qzeros, flat, bits).float()[groups]
        weight *= self.scales[:, flat].float()[groups]
        rows = weight.T.contiguous().to(self.dtype)  # kernels read a row at a time
        return rows.reshape(*ids.shape, self.in_features)

    def _part(self, column: int) -> int:
        """The part that holds a column."""
        stop = 0
        for part, size in enumerate(self.out_sizes):
            stop += size
            if column < stop:
                return part
        raise AssertionError(column)

    def _check_groups(self, shard: int, what: str) -> None:
        low, high = (int(value) for value in self.g_idx[shard].aminmax())
        groups = self.scales.shape[0]
        if low < 0 or high >= groups:
            raise CheckpointError(
                f"{what} g_idx holds groups {low} … {high}, the layer has {groups} groups"
            )


class SideBySide(LoadableModule):
    """Parts of one merged layer that are stored differently, each a module of its own."""

    def __init__(self, parts: list[LoadableModule], split: bool) -> None:
        """Take the parts, each made for one output size without splitting."""
        super().__init__()
        self.parts, self.split = nn.ModuleList(parts), split

    def expected_shards(self) -> set[tuple[str, int]]:
        """What each part expects, numbered by part."""
        return {
            (name, shard)
            for shard in range(len(self.parts))
            for name, _ in self._part(shard).expected_shards()
        }

    def load_shard(self, name: str, shard: int, tensor: Tensor) -> None:
        """Hand the tensor to its part.

        Raises:
            CheckpointError: The part refuses it, or there is no such part.
        """
        if not 0 <= shard < len(self.parts):
            raise CheckpointError(f"there is no shard {shard}, only {len(self.parts)}")
        self._part(shard).load_shard(name, 0, tensor)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """``[..., in_features]`` to a tuple of outputs, or to them side by side."""
        outputs = tuple(part(x) for part in self.parts)
        return outputs if self.split else torch.cat(outputs, dim=-1)

    def _part(self, shard: int) -> LoadableModule:
        part = self.parts[shard]
        assert isinstance(part, LoadableModule)
        return part


MakeGPTQLinear = Callable[..., LoadableModule]
"""Makes a quantised layer from the arguments of :class:`GPTQLinear`; a stage's kernels go here."""


def gptq_linear(folder: Path, layer: MakeGPTQLinear = GPTQLinear) -> MakeLinear:
    """For ``m0_init.loader.load(folder, linear=gptq_linear(folder))``; a dense model stays dense.

    Args:
        folder: The checkpoint, a local folder.
        layer: Makes each quantised layer.

    Raises:
        CheckpointError: (when called) Files are broken or contradict each other.
        UnsupportedModelError: (when called) It needs something that is not implemented.
    """

    def make(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> LinearFactory:
        if not is_quantised(folder, config):
            return dense_linear_factory(dtype, device)
        checkpoint = GPTQCheckpoint.read(folder, config)
        return gptq_linear_factory(checkpoint, config, dtype, device, layer)

    return make


def gptq_linear_factory(
    checkpoint: GPTQCheckpoint,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device | str,
    layer: MakeGPTQLinear = GPTQLinear,
) -> LinearFactory:
    """A factory that gives each layer the form in which the checkpoint stores it."""
    names = {target: name for name, target in checkpoint_modules(config).items()}

    def part(
        prefix: str, inputs: int, sizes: tuple[int, ...], bias: bool, split: bool,
        form: LinearFormat | None,
    ) -> LoadableModule:  # fmt: skip
        if form is None:
            return DenseLinear(prefix, inputs, sizes, bias, split, dtype=dtype, device=device)
        # A bias that the config does not know (AutoGPTQ wrote zeros) is stored, so it is added.
        stored = bias or form.has_bias
        return layer(prefix, inputs, sizes, split, form, bias=stored, dtype=dtype, device=device)

    def make(
        prefix: str, in_features: int, out_sizes: tuple[int, ...], bias: bool, split: bool
    ) -> LoadableModule:
        forms = [
            checkpoint.linear(names[prefix, shard], in_features, size)
            for shard, size in enumerate(out_sizes)
        ]
        if all(form == forms[0] for form in forms):
            return part(prefix, in_features, out_sizes, bias, split, forms[0])
        parts = [
            part(f"{prefix}.{shard}", in_features, (size,), bias, False, form)
            for shard, (size, form) in enumerate(zip(out_sizes, forms, strict=True))
        ]
        return SideBySide(parts, split)

    return make


def _copy_ints(target: Tensor, source: Tensor, what: str) -> None:
    """Copy int32 words, never converting.

    Raises:
        CheckpointError: Another shape or dtype.
    """
    if target.shape != source.shape or source.dtype != torch.int32:
        raise CheckpointError(
            f"{what} is {source.dtype} {tuple(source.shape)} in the checkpoint, expected "
            f"torch.int32 {tuple(target.shape)}"
        )
    target.copy_(source)
