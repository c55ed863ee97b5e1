"""Some rows of a packed matrix, as an embedding looks them up: one launch.

A recorded step looks up one row per sequence. In PyTorch's operations that would be some twenty
kernels for a few kilobytes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from m4_flash.kernels.launch import chain, launch_options
from m7_gptq.kernels.repack import SLICE, PackedWeight
from m7_gptq.kernels.tiles import difference, load_grid


@triton.jit
def _lookup_kernel(
    ids_ptr, words_ptr, scales_ptr, zeros_ptr, out_ptr,
    inputs, outputs, groups,
    BITS: tl.constexpr, WIDTH: tl.constexpr, SLICE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    COUNT: tl.constexpr = 32 // BITS
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.arange(0, SLICE)
    chain(PDL)
    n = tl.load(ids_ptr + row)
    words = tl.load(words_ptr + (tile * outputs + n) * SLICE + slot)
    for value in tl.static_range(COUNT):
        place = (tile * COUNT + value) * SLICE
        group = tl.minimum(place // WIDTH, groups - 1)
        scale, zero = load_grid(scales_ptr, zeros_ptr, group, n, outputs, None, BITS)
        weights = difference(words, zero, value, BITS) * scale
        weights = weights.to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + row * inputs + place + slot, weights, mask=place + slot < inputs)


def lookup(ids: Tensor, weight: PackedWeight, dtype: torch.dtype, *, pdl: bool = False) -> Tensor:
    """Rows ``ids`` of Ŵ, each element rounded once. For a weight without act-order.

    Args:
        ids: ``[n]`` int64, output channels, contiguous.
        weight: On the same device.
        dtype: Of the result.
        pdl: Launch programmatically, see :mod:`m4_flash.kernels.launch`.

    Returns:
        ``[n, in]``.
    """
    assert weight.source is None, "a row's inputs would have to be put back into their order"
    out = torch.empty(len(ids), weight.in_features, dtype=dtype, device=ids.device)
    if len(ids):
        _lookup_kernel[(len(ids), len(weight.words))](
            ids, weight.words, weight.scales, weight.zeros, out,
            weight.in_features, weight.out_features, len(weight.scales),
            BITS=weight.bits, WIDTH=weight.group_width, SLICE=SLICE, PDL=pdl,
            num_warps=1, **launch_options(pdl),
        )  # fmt: skip
    return out
