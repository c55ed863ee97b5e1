"""Random layers as a checkpoint stores them, and their dense weight by plain unpacking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from m7_gptq.kernels.repack import PackedWeight
from m7_gptq.packing import Format, max_int, pack_rows, pack_zeros, unpack_rows, unpack_zeros

Order = Literal["plain", "act-order", "uneven"]


@dataclass(frozen=True)
class StoredLayer:
    """What a checkpoint holds of one layer.

    Attributes:
        qweight: ``[in · bits / 32, out]`` int32.
        qzeros: ``[groups, out · bits / 32]`` int32, in ``form``.
        scales: ``[groups, out]``.
        g_idx: ``[in]`` int32.
        bits: 4 or 8.
        group_size: Inputs of a whole group.
        form: ``gptq`` or ``gptq_v2``.
    """

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor
    g_idx: Tensor
    bits: int
    group_size: int
    form: Format

    def packed(self) -> PackedWeight:
        """For the kernels."""
        offset = 1 if self.form == "gptq" else 0
        return PackedWeight.from_checkpoint(
            self.qweight, self.qzeros, self.scales, self.g_idx, self.bits, self.group_size, offset
        )

    def dense(self) -> Tensor:
        """Ŵ ``[out, in]`` float32, by the functions of :mod:`m7_gptq.packing` alone."""
        ints = unpack_rows(self.qweight, self.bits).float()
        groups = self.g_idx.long()
        zeros = unpack_zeros(self.qzeros, self.bits, self.form).float()[groups]
        return ((ints - zeros) * self.scales.float()[groups]).T.contiguous()


def stored_layer(
    inputs: int,
    outputs: int,
    *,
    bits: int = 4,
    group_size: int = 32,
    form: Format = "gptq_v2",
    sym: bool = False,
    order: Order = "plain",
    scale_dtype: torch.dtype = torch.float16,
    device: str = "cpu",
    seed: int = 0,
) -> StoredLayer:
    """Random integers; asymmetric zeros include the smallest and the largest.

    Args:
        inputs: Width of the input.
        outputs: Width of the output.
        bits: 4 or 8.
        group_size: Inputs of a whole group, −1 for all.
        form: How zeros are stored.
        sym: All zeros in the middle.
        order: ``act-order`` scatters the groups' inputs; ``uneven`` also gives each input a random
            group, so that groups differ in size and one may be empty.
        scale_dtype: Of the scales.
        device: Where the layer shall be.
        seed: Of everything.
    """
    generator = torch.Generator().manual_seed(seed)
    size = inputs if group_size == -1 else group_size
    groups = -(-inputs // size)
    top = max_int(bits)
    ints = torch.randint(top + 1, (inputs, outputs), generator=generator)
    zeros = torch.randint(top + 1, (groups, outputs), generator=generator)
    zeros[0, 0], zeros[-1, -1] = 0, top
    if sym:
        zeros.fill_((top + 1) // 2)
    scales = (0.5 + torch.rand(groups, outputs, generator=generator)) / top
    g_idx = torch.arange(inputs) // size
    if order == "act-order":
        g_idx = g_idx[torch.randperm(inputs, generator=generator)]
    elif order == "uneven":
        g_idx = torch.randint(groups, (inputs,), generator=generator)
    return StoredLayer(
        pack_rows(ints, bits).to(device),
        pack_zeros(zeros, bits, form).to(device),
        scales.to(scale_dtype).to(device),
        g_idx.int().to(device),
        bits,
        size,
        form,
    )


def activations(rows: int, inputs: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normally distributed ``[rows, in]``."""
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(7)).to(dtype)


def packed_bytes(inputs: int, outputs: int, group_size: int, bits: int = 4) -> int:
    """Bytes of one matrix without act-order, from the layout alone.

    Words come in whole tiles (128 inputs of 4 bits, 64 of 8), the last one padded, so 64 inputs
    of 4 bits take as many words as 128. Each group has a float16 scale and a zero point.
    """
    tile = 16 * 32 // bits
    words = -(-inputs // tile) * tile * outputs * bits // 8
    return words + -(-inputs // group_size) * outputs * (16 + bits) // 8
