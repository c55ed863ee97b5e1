"""Few rows of x against a weight, on the tensor cores: eight rows take as long as one.

Words are read and unpacked before x is there, see :mod:`m7_gptq.kernels.held`. Unpacked they are
``q − zero``, a whole number below 256 and so exact in bfloat16 and float16, and they are the
*operand* as they lie (:mod:`m7_gptq.kernels.operand`): the tensor core's instruction wants outputs
g and g + 8 and four neighbouring inputs of a thread, which is what a thread has read::

    operand [8 · blocks outputs, inputs of a warp's tile]    x [8 or 16 rows]
                          |                                      |
    total  [warps, outputs, rows]  +=  scale · (operand · xᵀ)        in float32
    out    [rows, outputs]          =  sum over warps

so no weight passes through shared memory. The scale multiplies the product of a group, and the
weight is never rounded to the dtype of x. The rows that x does not have are zeros and cost nothing
but their place: a tile of the tensor core is 8 columns wide.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from m4_flash.kernels.activation import swiglu
from m4_flash.kernels.launch import start_next, wait_for_last
from m7_gptq.kernels.held import (
    LANES,
    HeldConfig,
    held_config,
    launch,
    load_weights,
    num_sms,
    outputs_of,
    span_of,
)
from m7_gptq.kernels.operand import unpack_operands
from m7_gptq.kernels.repack import PackedWeight
from m7_gptq.packing import per_word

MAX_ROWS = 32
"""More than 16 are computed 16 at a time, with the weight held."""
FEW_WARPS, MANY_WARPS = 4, 8
HELD = 64
"""Unpacked weights of a thread in one word's place: blocks · chunks · values of a word."""
MANY_OUTPUTS = 128
"""Per multiprocessor: from here on small programs, many of them, hide each other's latency."""


@functools.cache
def default_config(outputs: int, tiles: int, bits: int, num_sms: int) -> HeldConfig:
    """A launch that fills the device; depends on shapes alone.

    Args:
        outputs: Rows of the weight.
        tiles: Tiles of K.
        bits: Of a weight.
        num_sms: Streaming multiprocessors.
    """
    if outputs >= MANY_OUTPUTS * num_sms:
        return held_config(2, 2, tiles, 1)
    blocks = 4 if outputs >= 3 * LANES * num_sms else 2
    most = HELD // (blocks * (32 // bits))
    # More warps where they spare walking through K.
    spares = triton.cdiv(tiles, FEW_WARPS) > most >= triton.cdiv(tiles, MANY_WARPS)
    return held_config(blocks, MANY_WARPS if spares else FEW_WARPS, tiles, most)


@triton.jit
def _load_x(
    x_ptr, source_ptr, m, rows, x_stride, first,
    COUNT: tl.constexpr, SLICE: tl.constexpr, SPAN: tl.constexpr,
    K: tl.constexpr, TILES: tl.constexpr, STEP: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """A tuple of ``[STEP, M, SPAN · SLICE]``, one for each group in each chunk; 0 outside."""
    RUNS: tl.constexpr = COUNT // SPAN
    k = tl.arange(0, SPAN * SLICE)[None, None, :]
    known_m, at_m = (m < rows)[None, :, None], (x_ptr + m * x_stride)[None, :, None]
    found = ()
    for chunk in tl.static_range(DEPTH):
        tile = (first + chunk * STEP + tl.arange(0, STEP))[:, None, None]
        for run in tl.static_range(RUNS):
            places = (tile * COUNT + run * SPAN) * SLICE + k
            if source_ptr is not None:
                known = places < TILES * COUNT * SLICE
                channels = tl.load(source_ptr + places, mask=known, other=-1)
                x = tl.load(at_m + channels, mask=known_m & (channels >= 0), other=0.0)
            elif K % (STEP * DEPTH * COUNT * SLICE) == 0 and STEP * DEPTH >= TILES:
                x = tl.load(at_m + places, mask=known_m, other=0.0)
            else:
                x = tl.load(at_m + places, mask=known_m & (places < K), other=0.0)
            found = found + (x,)  # noqa: RUF005
    return found


@triton.jit
def _multiply(total, operands, scales, xs, COUNT: tl.constexpr):
    """Add the products of ``COUNT`` groups to ``total`` ``[STEP, BLOCKS · LANES, M]``."""
    for i in tl.static_range(COUNT):
        part = tl.dot(operands[i], tl.permute(xs[i], 0, 2, 1), input_precision="ieee")
        scale = tl.permute(scales[i], 1, 2, 0)
        total += part * tl.reshape(scale, [total.shape[0], total.shape[1], 1])
    return total


@triton.jit(do_not_specialize=["rows"])
def _few_rows_kernel(
    x_ptr, words_ptr, scales_ptr, zeros_ptr, source_ptr, bias_ptr, out_ptr,
    rows, x_stride, outputs, groups,
    BITS: tl.constexpr, WIDTH: tl.constexpr, SLICE: tl.constexpr, SPAN: tl.constexpr,
    K: tl.constexpr, TILES: tl.constexpr, LANES: tl.constexpr, M: tl.constexpr,
    BLOCKS: tl.constexpr, STEP: tl.constexpr, DEPTH: tl.constexpr,
    PAIRS: tl.constexpr, GATED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    COUNT: tl.constexpr = 32 // BITS
    start_next(PDL)
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    N: tl.constexpr = BLOCKS * LANES
    nought = outputs >> 31  # see difference
    n = outputs_of(outputs, LANES, BLOCKS, GATED)
    words, scales, zeros = load_weights(
        words_ptr, scales_ptr, zeros_ptr, 0, n, outputs, groups,
        BITS, WIDTH, SLICE, SPAN, TILES, STEP, DEPTH,
    )  # fmt: skip
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + tl.reshape(tl.permute(n, 1, 0), [N])).to(tl.float32)
    if TILES <= STEP * DEPTH:
        held = unpack_operands(
            words, zeros, nought, DTYPE, BITS, SLICE, SPAN, PAIRS, LANES, BLOCKS, STEP, DEPTH
        )
    for top in tl.range(0, rows, M, num_stages=1):  # a wall for the compiler, see held
        wait_for_last(PDL)
        m = top + tl.arange(0, M)
        total = tl.zeros([STEP, N, M], dtype=tl.float32)
        xs = _load_x(
            x_ptr, source_ptr, m, rows, x_stride, 0, COUNT, SLICE, SPAN, K, TILES, STEP, DEPTH
        )
        if TILES <= STEP * DEPTH:
            total = _multiply(total, held, scales, xs, DEPTH * COUNT // SPAN)
        else:
            now, now_scales, now_zeros = words, scales, zeros
            for first in tl.range(STEP * DEPTH, TILES + STEP * DEPTH, STEP * DEPTH, num_stages=1):
                then, then_scales, then_zeros = load_weights(
                    words_ptr, scales_ptr, zeros_ptr, first, n, outputs, groups,
                    BITS, WIDTH, SLICE, SPAN, TILES, STEP, DEPTH,
                )  # fmt: skip
                then_xs = _load_x(
                    x_ptr, source_ptr, m, rows, x_stride, first,
                    COUNT, SLICE, SPAN, K, TILES, STEP, DEPTH,
                )  # fmt: skip
                part = unpack_operands(
                    now, now_zeros, nought, DTYPE,
                    BITS, SLICE, SPAN, PAIRS, LANES, BLOCKS, STEP, DEPTH,
                )  # fmt: skip
                total = _multiply(total, part, now_scales, xs, DEPTH * COUNT // SPAN)
                now, now_scales, now_zeros, xs = then, then_scales, then_zeros, then_xs
        y = tl.sum(total, axis=0)  # [BLOCKS · LANES, M]
        if bias_ptr is not None:
            y += bias[:, None]
        if GATED:
            halves = tl.permute(tl.reshape(y, [BLOCKS // 2, 2, LANES, M]), 0, 2, 3, 1)
            gate, up = tl.split(halves)
            y = tl.reshape(swiglu(gate, up), [N // 2, M])
            at = tl.program_id(0) * (N // 2) + tl.arange(0, N // 2)
            width = outputs // 2
        else:
            at = tl.program_id(0) * N + tl.arange(0, N)
            width = outputs
        mask = (at < width)[:, None] & (m < rows)[None, :]
        y = y.to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + m[None, :] * width + at[:, None], y, mask=mask)


def few_rows(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None = None,
    config: HeldConfig | None = None,
    *,
    gated: bool = False,
    pdl: bool = False,
) -> Tensor:
    """``x · Ŵᵀ (+ bias)`` for at most 32 rows, or ``silu(gate) · up`` of it where Ŵ holds both.

    Rounded once; deterministic.

    Args:
        x: ``[rows, in]``, 1 … 32 rows, neighbouring inputs adjacent; on a GPU of 16-bit floats.
        weight: On the same device; gate's outputs, then up's, if ``gated``.
        bias: ``[out]`` or None.
        config: The launch; by default :func:`default_config`. At least 2 blocks: the tensor core
            takes 16 outputs.
        gated: Halve the outputs by SwiGLU's gate.
        pdl: Launch programmatically, see :mod:`m4_flash.kernels.launch`.

    Returns:
        ``[rows, out]``, or ``[rows, out / 2]`` if ``gated``, in the dtype of ``x``.
    """
    rows, tiles = len(x), len(weight.words)
    assert 1 <= rows <= MAX_ROWS, rows
    assert not x.is_cuda or x.dtype != torch.float32
    config = config or default_config(weight.out_features, tiles, weight.bits, num_sms(x.device))
    assert config.blocks >= 2, config
    pairs = x.is_cuda and weight.bits == 4 and span_of(weight) == per_word(4)
    return launch(
        _few_rows_kernel, x, weight, bias, config,
        gated=gated, pdl=pdl, M=8 if rows <= 8 else 16, PAIRS=pairs,
    )  # fmt: skip
