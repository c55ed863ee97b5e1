"""What the kernels of this folder share: reading x and the grids, and adding up parts of K.

A slice is 16 inputs at one place j of each word (see :mod:`m7_gptq.kernels.repack`). All inputs
of a slice are in one group.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def load_x(x_ptr, source_ptr, row_offsets, places, inputs, mask):
    """Some places of x; 0 where the mask says so or the place is padding.

    ``row_offsets``, ``places`` and ``mask`` broadcast to the shape of the result.
    """
    if source_ptr is not None:
        channels = tl.load(source_ptr + places)  # padded to whole tiles: every place is there
        mask = mask & (channels >= 0)
    else:
        channels = places
        mask = mask & (places < inputs)
    return tl.load(x_ptr + row_offsets + channels, mask=mask, other=0.0)


@triton.jit
def load_grid(scales_ptr, zeros_ptr, group, n, outputs, mask, BITS: tl.constexpr):
    """Scale (float32) and zero point (int32) of outputs ``n`` in ``group``; they broadcast.

    Scales of outputs that are masked are 0.
    """
    COUNT: tl.constexpr = 32 // BITS
    scale = tl.load(scales_ptr + group * outputs + n, mask=mask, other=0.0).to(tl.float32)
    word = tl.load(zeros_ptr + group * (outputs // COUNT) + n // COUNT, mask=mask, other=0)
    zero = (word >> (n % COUNT * BITS)) & ((1 << BITS) - 1)
    return scale, zero


@triton.jit
def _sum_parts_kernel(
    part_ptr, bias_ptr, out_ptr, size, outputs, SPLITS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(part_ptr + split * size + at, mask=mask, other=0.0)
    if bias_ptr is not None:
        total += tl.load(bias_ptr + at % outputs, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=mask)


def sum_parts(parts: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Add the parts of K that programs computed apart, always in the same order.

    Args:
        parts: ``[splits, rows, out]`` float32.
        bias: ``[out]`` or None.
        out: ``[rows, out]``, contiguous, written.
    """
    size, block = out.numel(), 256
    assert parts.numel() < 2**31, parts.shape
    _sum_parts_kernel[(triton.cdiv(size, block),)](
        parts, bias, out, size, out.shape[1], SPLITS=len(parts), BLOCK=block, num_warps=4
    )
