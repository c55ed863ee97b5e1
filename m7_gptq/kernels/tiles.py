"""What the kernels of this folder share: reading x and grids, unpacking, adding up parts of K.

A slice is 16 inputs at one place j of each word (see :mod:`m7_gptq.kernels.repack`). All inputs
of a slice are in one group.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from m4_flash.kernels.launch import chain, launch_options


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

    Without a mask all outputs must exist; scales of those that it leaves out are 0.
    """
    COUNT: tl.constexpr = 32 // BITS
    scales_ptr += group * outputs + n
    zeros_ptr += group * (outputs // COUNT) + n // COUNT
    if mask is None:
        scale, word = tl.load(scales_ptr), tl.load(zeros_ptr)
    else:
        scale = tl.load(scales_ptr, mask=mask, other=0.0)
        word = tl.load(zeros_ptr, mask=mask, other=0)
    zero = (word >> (n % COUNT * BITS)) & ((1 << BITS) - 1)
    return scale.to(tl.float32), zero.to(tl.int32)


@triton.jit
def difference(words, zero, VALUE: tl.constexpr, BITS: tl.constexpr, nought=0):
    """``q − zero`` in float32 for value number ``VALUE`` of each word, exact.

    No integer is converted: with the exponent of ``2^(23−p)`` above it, an integer at bit p of a
    float is added to ``2^(23−p)``. The zero point gets the same form.

    ``nought`` is 0. If the compiler cannot know that, it keeps the exponent in a register, and AND
    and OR become one instruction: it has room for one constant.
    """
    HALF: tl.constexpr = 16 // BITS
    P: tl.constexpr = VALUE % HALF * BITS
    if VALUE >= HALF:
        words = words >> (nought + 16)
    exponent = nought + ((127 + 23 - P) << 23)
    q = (words & (((1 << BITS) - 1) << P)) | exponent
    zero = (zero << P) + exponent
    return q.to(tl.float32, bitcast=True) - zero.to(tl.float32, bitcast=True)


@triton.jit
def to_float32(x):
    """In float32. A bfloat16 is the upper half of one: moved as bits, two cost two instructions."""
    if x.dtype == tl.bfloat16:
        return (x.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@triton.jit
def _sum_parts_kernel(
    part_ptr, bias_ptr, out_ptr, size, outputs,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    chain(PDL)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(part_ptr + split * size + at, mask=mask, other=0.0)
    if bias_ptr is not None:
        total += tl.load(bias_ptr + at % outputs, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=mask)


def sum_parts(parts: Tensor, bias: Tensor | None, out: Tensor, *, pdl: bool) -> None:
    """Add the parts of K that programs computed apart, always in the same order.

    Args:
        parts: ``[splits, rows, out]`` float32.
        bias: ``[out]`` or None.
        out: ``[rows, out]``, contiguous, written.
        pdl: Launch programmatically, see :mod:`m4_flash.kernels.launch`.
    """
    size, block = out.numel(), 256
    assert parts.numel() < 2**31, parts.shape
    _sum_parts_kernel[(triton.cdiv(size, block),)](
        parts, bias, out, size, out.shape[1],
        SPLITS=len(parts), BLOCK=block, PDL=pdl, num_warps=4, **launch_options(pdl),
    )  # fmt: skip
