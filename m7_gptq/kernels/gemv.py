"""Decode: a few rows of x against the whole weight, which is read once. Weight bytes are the cost.

A program computes ``8 · blocks`` outputs. Its warps share out the inputs, so that even 1024
outputs give an H100 128 programs without cutting K between programs::

    one chunk of a program          words [blocks, warps, 8, 16]

      tile t     ┐ output 0   |w w w w|w w w w|w w w w|w w w w|    4 threads of 16 bytes
      (warp 0)   │ output 1   |       |       |       |       |
                 ┘ …       8  512 consecutive bytes of a warp, once per block
      tile t + 1 …            warp 1

    in time         | all chunks' words, scales, zeros: reads under way | wait | x, multiply |
                    the kernel that makes x is still running            |      |

All chunks of a program are in registers before the first is used: a memory of 3 TB/s that answers
after 0.7 µs needs 16 KB under way per multiprocessor. And none of them depends on the kernel in
front, so they are read before its end (see :mod:`m4_flash.kernels.launch`). K of more chunks than
fit is walked through in groups of :data:`DEPTH`.

A weight costs three instructions, of which further rows of x repeat one; none is an integer
conversion, which runs at a fraction of the speed. With the exponent of ``2^(23−p)`` written above
it, a value at bit p of the word is the float ``2^(23−p) + q``; subtracting ``2^(23−p) + zero`` is
exact::

    acc += (as_float(w & (15 << p) | exponent) − (2^(23−p) + zero)) · x

The scale is applied once per group in a tile. Everything is float32 until the output is rounded.
With ``gated`` the two blocks are the same outputs of gate and up, and ``silu(gate) · up`` is
written: no launch of its own, and neither half is rounded before it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from common.errors import ConfigError
from m4_flash.kernels.activation import swiglu
from m4_flash.kernels.launch import chain, launch_options
from m7_gptq.kernels.repack import SLICE, PackedWeight
from m7_gptq.kernels.tiles import difference, load_grid, to_float32

MAX_ROWS = 16
LANES = 8
"""Outputs of a warp at a time."""
DEPTH = 8
"""Reads of 16 bytes that a thread has under way: 32 registers."""
FEW_WARPS, MANY_WARPS = 4, 8
FEW_SMS = 16
"""Where the interpreter stands in for a device."""


@dataclass(frozen=True)
class GemvConfig:
    """Launch of the kernel.

    Attributes:
        blocks: Blocks of 8 outputs per program, 1 or 2: x is read and converted once for both.
        num_warps: Warps per program, and tiles of K per chunk.
        depth: Chunks in registers at a time.
    """

    blocks: int
    num_warps: int
    depth: int

    def __post_init__(self) -> None:
        """Sides of a Triton tile are powers of two.

        Raises:
            ConfigError: One is not, or a value is out of range.
        """
        for name, most in (("blocks", 2), ("num_warps", 32)):
            value = getattr(self, name)
            if not 1 <= value <= most or value & (value - 1):
                raise ConfigError(f"{name} must be a power of two in 1 … {most}, got {value}")
        if self.depth < 1:
            raise ConfigError(f"depth must be at least 1, got {self.depth}")


@functools.cache
def default_config(
    rows: int, outputs: int, tiles: int, num_sms: int, *, gated: bool = False
) -> GemvConfig:
    """A launch that fills the device; depends on shapes alone.

    Args:
        rows: Rows of x, 1 … 16.
        outputs: Rows of the weight: those of gate and up if ``gated``.
        tiles: Tiles of K.
        num_sms: Streaming multiprocessors.
        gated: Whether gate and up are computed together: always two blocks.
    """
    # Two blocks where that leaves every multiprocessor three programs; not beside many sums.
    many = rows <= 2 and outputs >= 3 * 2 * LANES * num_sms
    blocks = 2 if gated or many else 1
    programs = triton.cdiv(outputs, LANES * blocks)
    # Few programs need many warps each. With two blocks, 8 warps compile to 254 registers.
    most = MANY_WARPS if blocks == 1 and programs < 2 * num_sms else FEW_WARPS
    warps = min(triton.next_power_of_2(tiles), most)
    chunks = triton.cdiv(tiles, warps)
    # Loops over chunks, values and rows are unrolled: 16 rows of 8 chunks compile for minutes.
    groups = triton.cdiv(chunks, max(1, DEPTH // (blocks * rows)))
    return GemvConfig(blocks, warps, triton.cdiv(chunks, groups))


@triton.jit
def _load_words(
    words_ptr, first, n, outputs,
    TILES: tl.constexpr, SLICE: tl.constexpr, STEP: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """A tuple of ``[BLOCKS, STEP, LANES, SLICE]``, one for each chunk from tile ``first`` on."""
    slot = tl.arange(0, SLICE)[None, None, None, :]
    found = ()
    for chunk in tl.static_range(DEPTH):
        tile = first + chunk * STEP + tl.arange(0, STEP)[None, :, None]
        if TILES % (STEP * DEPTH) != 0:  # past the end read the last one again: x counts as 0
            tile = tl.minimum(tile, TILES - 1)
        at = (tile * outputs + n) * SLICE
        found = found + (tl.load(words_ptr + at[:, :, :, None] + slot),)  # noqa: RUF005
    return found


@triton.jit
def _load_grids(
    scales_ptr, zeros_ptr, first, n, outputs, groups,
    BITS: tl.constexpr, WIDTH: tl.constexpr, SLICE: tl.constexpr, SPAN: tl.constexpr,
    STEP: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Grids ``[BLOCKS, STEP, LANES, 1]``, a pair for each SPAN values of each chunk's words: zero
    point (int32), then scale (float32).
    """  # noqa: D205
    RUNS: tl.constexpr = 32 // BITS // SPAN
    found = ()
    for chunk in tl.static_range(DEPTH):
        tile = first + chunk * STEP + tl.arange(0, STEP)[None, :, None]
        for run in tl.static_range(RUNS):
            place = (tile * RUNS + run) * SPAN * SLICE
            group = tl.minimum(place // WIDTH, groups - 1)
            scale, zero = load_grid(scales_ptr, zeros_ptr, group, n, outputs, None, BITS)
            found = found + (zero[:, :, :, None], scale[:, :, :, None])  # noqa: RUF005
    return found


@triton.jit
def _multiply(
    sums, words, grids, x_ptr, source_ptr, x_stride, first, nought,
    BITS: tl.constexpr, SLICE: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr,
    K: tl.constexpr, TILES: tl.constexpr, STEP: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Add the products of some chunks; ``sums`` holds a tile for each row of x."""
    COUNT: tl.constexpr = 32 // BITS
    RUNS: tl.constexpr = COUNT // SPAN
    slot = tl.arange(0, SLICE)[None, None, None, :]
    for chunk in tl.static_range(DEPTH):
        tile = (first + chunk * STEP + tl.arange(0, STEP))[None, :, None, None]
        for run in tl.static_range(RUNS):
            parts = ()
            for _ in tl.static_range(ROWS):
                parts = parts + (tl.zeros_like(sums[0]),)  # noqa: RUF005
            for i in tl.static_range(SPAN):
                zero = grids[2 * (chunk * RUNS + run)]
                exact = difference(words[chunk], zero, run * SPAN + i, BITS, nought)
                places = (tile * COUNT + (run * SPAN + i)) * SLICE + slot
                if source_ptr is not None:
                    known = places < TILES * COUNT * SLICE
                    channels = tl.load(source_ptr + places, mask=known, other=-1)
                else:
                    channels = places
                grown = ()
                for row in tl.static_range(ROWS):
                    at = x_ptr + row * x_stride + channels
                    if source_ptr is not None:
                        x = tl.load(at, mask=channels >= 0, other=0.0)
                    elif K % (STEP * DEPTH * COUNT * SLICE) == 0:
                        x = tl.load(at)
                    else:
                        x = tl.load(at, mask=places < K, other=0.0)
                    grown = grown + (parts[row] + exact * to_float32(x),)  # noqa: RUF005
                parts = grown
            scale = grids[2 * (chunk * RUNS + run) + 1]
            grown = ()
            for row in tl.static_range(ROWS):
                grown = grown + (sums[row] + parts[row] * scale,)  # noqa: RUF005
            sums = grown
    return sums


@triton.jit
def _gemv_kernel(
    x_ptr, words_ptr, scales_ptr, zeros_ptr, source_ptr, bias_ptr, out_ptr,
    x_stride, outputs, groups,
    BITS: tl.constexpr, WIDTH: tl.constexpr, SLICE: tl.constexpr, LANES: tl.constexpr,
    ROWS: tl.constexpr, K: tl.constexpr, TILES: tl.constexpr,
    BLOCKS: tl.constexpr, STEP: tl.constexpr, DEPTH: tl.constexpr,
    GATED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    COUNT: tl.constexpr = 32 // BITS
    WHOLE: tl.constexpr = WIDTH % (SLICE * COUNT) == 0  # a tile is in one group
    PARTS: tl.constexpr = not WHOLE and SLICE * COUNT % WIDTH == 0  # a group is part of a tile
    SPAN: tl.constexpr = COUNT if WHOLE else WIDTH // SLICE if PARTS else 1
    block, lane = tl.arange(0, BLOCKS)[:, None], tl.arange(0, LANES)[None, :]
    width = outputs // 2 if GATED else outputs
    if GATED:  # block 0 is gate, block 1 the same outputs of up
        n = tl.program_id(0) * LANES + lane
        row_of_w = tl.minimum(n, width - 1) + block * width
    else:
        n = (tl.program_id(0) * BLOCKS + block) * LANES + lane
        row_of_w = tl.minimum(n, width - 1)
    o = row_of_w[:, None, :]
    words = _load_words(words_ptr, 0, o, outputs, TILES, SLICE, STEP, DEPTH)
    grids = _load_grids(
        scales_ptr, zeros_ptr, 0, o, outputs, groups, BITS, WIDTH, SLICE, SPAN, STEP, DEPTH
    )
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + row_of_w).to(tl.float32)
    chain(PDL)
    nought = outputs >> 31  # see difference
    sums = ()
    for _ in tl.static_range(ROWS):
        sums = sums + (tl.zeros([BLOCKS, STEP, LANES, SLICE], dtype=tl.float32),)  # noqa: RUF005
    sums = _multiply(
        sums, words, grids, x_ptr, source_ptr, x_stride, 0, nought,
        BITS, SLICE, SPAN, ROWS, K, TILES, STEP, DEPTH,
    )  # fmt: skip
    for first in tl.range(STEP * DEPTH, TILES, STEP * DEPTH):
        words = _load_words(words_ptr, first, o, outputs, TILES, SLICE, STEP, DEPTH)
        grids = _load_grids(
            scales_ptr, zeros_ptr, first, o, outputs, groups, BITS, WIDTH, SLICE, SPAN, STEP, DEPTH
        )
        sums = _multiply(
            sums, words, grids, x_ptr, source_ptr, x_stride, first, nought,
            BITS, SLICE, SPAN, ROWS, K, TILES, STEP, DEPTH,
        )  # fmt: skip
    for row in tl.static_range(ROWS):
        y = tl.sum(tl.sum(sums[row], axis=3), axis=1)  # [BLOCKS, LANES]
        if bias_ptr is not None:
            y += bias
        if GATED:
            gate, up = tl.split(tl.trans(y))
            y = swiglu(gate, up)[None, :]
        tl.store(out_ptr + row * width + n, y.to(out_ptr.dtype.element_ty), mask=n < width)


def gemv(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None = None,
    config: GemvConfig | None = None,
    *,
    gated: bool = False,
    pdl: bool = False,
) -> Tensor:
    """``x · Ŵᵀ (+ bias)`` for at most 16 rows, or ``silu(gate) · up`` of it where Ŵ holds both.

    Rounded once; deterministic.

    Args:
        x: ``[rows, in]`` floating point, 1 … 16 rows, neighbouring inputs adjacent.
        weight: On the same device; gate's outputs, then up's, if ``gated``.
        bias: ``[out]`` or None.
        config: The launch, of two blocks if ``gated``; by default :func:`default_config`.
        gated: Halve the outputs by SwiGLU's gate.
        pdl: Launch programmatically, see :mod:`m4_flash.kernels.launch`.

    Returns:
        ``[rows, out]``, or ``[rows, out / 2]`` if ``gated``, in the dtype of ``x``.
    """
    (rows, inputs), outputs, tiles = x.shape, weight.out_features, len(weight.words)
    assert 1 <= rows <= MAX_ROWS, rows
    assert inputs == weight.in_features, (inputs, weight.in_features)
    assert x.stride(1) == 1
    config = config or default_config(rows, outputs, tiles, num_sms(x.device), gated=gated)
    assert not gated or (config.blocks == 2 and outputs % 2 == 0), (config, outputs)
    out = torch.empty(rows, outputs // 2 if gated else outputs, dtype=x.dtype, device=x.device)
    _gemv_kernel[(triton.cdiv(out.shape[1], LANES * (1 if gated else config.blocks)),)](
        x, weight.words, weight.scales, weight.zeros, weight.source, bias, out,
        x.stride(0), outputs, len(weight.scales),
        BITS=weight.bits, WIDTH=weight.group_width, SLICE=SLICE, LANES=LANES,
        ROWS=rows, K=inputs, TILES=tiles,
        BLOCKS=config.blocks, STEP=config.num_warps, DEPTH=config.depth,
        GATED=gated, PDL=pdl, num_warps=config.num_warps, **launch_options(pdl),
    )  # fmt: skip
    return out


@functools.cache
def num_sms(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; a small number where kernels are interpreted."""
    if device.type == "cuda":  # gpu-only: m7_gptq/tests/test_gpu_kernels.py::test_qwen3_shapes
        return torch.cuda.get_device_properties(device).multi_processor_count
    return FEW_SMS
