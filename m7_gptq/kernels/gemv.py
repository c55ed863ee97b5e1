"""One row of x against the whole weight: a multiplication for each weight, no tensor core.

Words are read and unpacked before x is there, see :mod:`m7_gptq.kernels.held`. Unpacking takes two
instructions a weight and no integer is converted, which would run at a fraction of the speed. With
the exponent of ``2^(23−p)`` written above it, a value at bit p of the word is the float
``2^(23−p) + q``; subtracting ``2^(23−p) + zero`` is exact::

    held = as_float(w & (15 << p) | exponent) − (2^(23−p) + zero)        before the wait
    acc += held · x                                                      behind it

The scale is applied once per group in a tile. Everything is float32 until the output is rounded.
With ``gated`` a program computes the same outputs of gate and up, and ``silu(gate) · up`` is
written: no launch of its own, and neither half is rounded before it.

More rows are computed one after the other. :mod:`m7_gptq.kernels.few_rows` takes 16 at once.
"""

from __future__ import annotations

import functools

import triton
import triton.language as tl
from torch import Tensor

from m4_flash.kernels.activation import swiglu
from m4_flash.kernels.launch import start_next, wait_for_last
from m7_gptq.kernels.held import HeldConfig, held_config, launch, load_weights, outputs_of
from m7_gptq.kernels.repack import PackedWeight
from m7_gptq.kernels.tiles import difference, to_float32

BLOCKS, WARPS = 2, 8
"""x is read and converted once for both blocks."""
HELD = 192
"""Unpacked weights in the registers of a thread, of 255."""
PER_THREAD = 4
"""Words of a thread in a block of a chunk."""


@functools.cache
def default_config(tiles: int, bits: int) -> HeldConfig:
    """The launch for a number of tiles of K: as many chunks at a time as registers hold."""
    return held_config(BLOCKS, WARPS, tiles, HELD // (BLOCKS * PER_THREAD * (32 // bits)))


@triton.jit
def _unpack(
    words, zeros, nought, BITS: tl.constexpr, SPAN: tl.constexpr, DEPTH: tl.constexpr
):  # fmt: skip
    """Every value of the chunks as ``q − zero``, a float32 tile each."""
    COUNT: tl.constexpr = 32 // BITS
    held = ()
    for chunk in tl.static_range(DEPTH):
        for value in tl.static_range(COUNT):
            zero = zeros[chunk * (COUNT // SPAN) + value // SPAN][:, :, :, None]
            held = held + (difference(words[chunk], zero, value, BITS, nought),)  # noqa: RUF005
    return held


@triton.jit
def _load_x(
    x_ptr, source_ptr, first,
    COUNT: tl.constexpr, SLICE: tl.constexpr,
    K: tl.constexpr, TILES: tl.constexpr, STEP: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """A tuple of ``[1, STEP, 1, SLICE]``, one for each value of each chunk's words."""
    slot = tl.arange(0, SLICE)[None, None, None, :]
    found = ()
    for chunk in tl.static_range(DEPTH):
        tile = (first + chunk * STEP + tl.arange(0, STEP))[None, :, None, None]
        for value in tl.static_range(COUNT):
            places = (tile * COUNT + value) * SLICE + slot
            if source_ptr is not None:
                known = places < TILES * COUNT * SLICE
                channels = tl.load(source_ptr + places, mask=known, other=-1)
                x = tl.load(x_ptr + channels, mask=channels >= 0, other=0.0)
            elif K % (STEP * DEPTH * COUNT * SLICE) == 0:
                x = tl.load(x_ptr + places)
            else:
                x = tl.load(x_ptr + places, mask=places < K, other=0.0)
            found = found + (x,)  # noqa: RUF005
    return found


@triton.jit
def _multiply(
    total, held, scales, xs, COUNT: tl.constexpr, SPAN: tl.constexpr, DEPTH: tl.constexpr
):  # fmt: skip
    """Add the products of some chunks to ``total`` ``[LANES, STEP, BLOCKS, SLICE]``."""
    for run in tl.static_range(DEPTH * COUNT // SPAN):
        part = tl.zeros_like(total)
        for i in tl.static_range(SPAN):
            part += held[run * SPAN + i] * to_float32(xs[run * SPAN + i])
        total += part * scales[run][:, :, :, None]
    return total


@triton.jit(do_not_specialize=["rows"])
def _gemv_kernel(
    x_ptr, words_ptr, scales_ptr, zeros_ptr, source_ptr, bias_ptr, out_ptr,
    rows, x_stride, outputs, groups,
    BITS: tl.constexpr, WIDTH: tl.constexpr, SLICE: tl.constexpr, SPAN: tl.constexpr,
    K: tl.constexpr, TILES: tl.constexpr, LANES: tl.constexpr,
    BLOCKS: tl.constexpr, STEP: tl.constexpr, DEPTH: tl.constexpr,
    GATED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    COUNT: tl.constexpr = 32 // BITS
    start_next(PDL)
    nought = outputs >> 31  # see difference
    n = outputs_of(outputs, LANES, BLOCKS, GATED)
    words, scales, zeros = load_weights(
        words_ptr, scales_ptr, zeros_ptr, 0, n, outputs, groups,
        BITS, WIDTH, SLICE, SPAN, TILES, STEP, DEPTH,
    )  # fmt: skip
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + n).to(tl.float32)
    if TILES <= STEP * DEPTH:
        held = _unpack(words, zeros, nought, BITS, SPAN, DEPTH)
    for row in tl.range(0, rows, num_stages=1):  # a wall for the compiler, see held
        wait_for_last(PDL)
        x_row = x_ptr + row * x_stride
        total = tl.zeros([LANES, STEP, BLOCKS, SLICE], dtype=tl.float32)
        if TILES <= STEP * DEPTH:
            xs = _load_x(x_row, source_ptr, 0, COUNT, SLICE, K, TILES, STEP, DEPTH)
            total = _multiply(total, held, scales, xs, COUNT, SPAN, DEPTH)
        else:
            now, now_scales, now_zeros = words, scales, zeros
            for first in tl.range(0, TILES, STEP * DEPTH, num_stages=1):
                then, then_scales, then_zeros = load_weights(
                    words_ptr, scales_ptr, zeros_ptr, first + STEP * DEPTH, n, outputs, groups,
                    BITS, WIDTH, SLICE, SPAN, TILES, STEP, DEPTH,
                )  # fmt: skip
                part = _unpack(now, now_zeros, nought, BITS, SPAN, DEPTH)
                xs_now = _load_x(x_row, source_ptr, first, COUNT, SLICE, K, TILES, STEP, DEPTH)
                total = _multiply(total, part, now_scales, xs_now, COUNT, SPAN, DEPTH)
                now, now_scales, now_zeros = then, then_scales, then_zeros
        y = tl.sum(tl.sum(total, axis=3), axis=1)  # [LANES, BLOCKS]
        if bias_ptr is not None:
            y += bias
        width, own = outputs, BLOCKS
        if GATED:
            gate, up = tl.split(tl.reshape(y, [LANES, BLOCKS // 2, 2]))
            y = swiglu(gate, up)
            width, own = outputs // 2, BLOCKS // 2
        block = tl.arange(0, BLOCKS // 2 if GATED else BLOCKS)[None, :]
        at = (tl.program_id(0) * own + block) * LANES + tl.arange(0, LANES)[:, None]
        y = y.to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + row * width + at, y, mask=at < width)


def gemv(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None = None,
    config: HeldConfig | None = None,
    *,
    gated: bool = False,
    pdl: bool = False,
) -> Tensor:
    """``x · Ŵᵀ (+ bias)``, row by row, or ``silu(gate) · up`` of it where Ŵ holds both.

    Rounded once; deterministic.

    Args:
        x: ``[rows, in]`` floating point, at least 1 row, neighbouring inputs adjacent.
        weight: On the same device; gate's outputs, then up's, if ``gated``.
        bias: ``[out]`` or None.
        config: The launch; by default :func:`default_config`.
        gated: Halve the outputs by SwiGLU's gate.
        pdl: Launch programmatically, see :mod:`m4_flash.kernels.launch`.

    Returns:
        ``[rows, out]``, or ``[rows, out / 2]`` if ``gated``, in the dtype of ``x``.
    """
    config = config or default_config(len(weight.words), weight.bits)
    return launch(_gemv_kernel, x, weight, bias, config, gated=gated, pdl=pdl)
