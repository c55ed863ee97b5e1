"""Decode: a few rows of x against the whole weight, which is read once. Weight bytes are the cost.

A program computes ``8 · blocks`` outputs. Its warps share out the inputs, so that even 1024
outputs give an H100 128 programs without cutting K between programs::

    one step of a program           words [blocks, step_tiles, 8, 16]

      tile t     ┐ output 0   |w w w w|w w w w|w w w w|w w w w|    4 threads of 16 bytes
      (a warp)   │ output 1   |       |       |       |       |
                 ┘ …       8  512 consecutive bytes of a warp, once per block
      tile t + 1 …            the next warp

A weight costs three instructions per row of x, none of them an integer conversion, which runs at
a fraction of the speed: with ``0x4B000000`` written above it, a value at bit p of the word is the
float ``2²³ + q · 2^p``. Subtracting ``2²³ + zero · 2^p`` is exact, and x carries the ``2^−p``::

    acc += (as_float(w & (15 << p) | 0x4B000000) − (2²³ + zero · 2^p)) · (x · 2^−p)

The scale is applied once per group in a tile. Everything is float32 until the output is rounded.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from common.errors import ConfigError
from m7_gptq.kernels.repack import SLICE, PackedWeight
from m7_gptq.kernels.tiles import load_grid, load_x, sum_parts

MAX_ROWS = 16
LANES = 8
"""Outputs of a warp at a time."""
PROGRAMS_PER_SM = 2
"""At least, before a program takes more than 8 outputs."""
FEW_SMS = 16
"""Where the interpreter stands in for a device."""


@dataclass(frozen=True)
class GemvConfig:
    """Launch of the kernel.

    Attributes:
        blocks: Blocks of 8 outputs per program: x is read and converted once for all of them.
            With Triton 3.6, 4 compile to a kernel that moves scales through shared memory.
        step_tiles: Tiles of K per step, shared out among the warps.
        splits: Programs among which K is cut; above 1 a second kernel adds their parts.
        num_warps: Warps per program.
    """

    blocks: int
    step_tiles: int
    splits: int
    num_warps: int

    def __post_init__(self) -> None:
        """Sides of a Triton tile are powers of two.

        Raises:
            ConfigError: One is not, or a value is below 1.
        """
        for name in ("blocks", "step_tiles", "num_warps"):
            value = getattr(self, name)
            if value < 1 or value & (value - 1):
                raise ConfigError(f"{name} must be a power of two of at least 1, got {value}")
        if self.splits < 1:
            raise ConfigError(f"splits must be at least 1, got {self.splits}")


@functools.cache
def default_config(rows: int, outputs: int, tiles: int, num_sms: int) -> GemvConfig:
    """A launch that fills the device; depends on shapes alone.

    Defaults until candidates are measured on a device: they follow from the sizes above.

    Args:
        rows: Rows of x, 1 … 16.
        outputs: Width of the output.
        tiles: Tiles of K.
        num_sms: Streaming multiprocessors.
    """
    warps = min(triton.next_power_of_2(tiles), 8)
    # With 4 rows, 2 blocks take all 255 registers of a thread.
    blocks = 2 if rows <= 2 and outputs >= LANES * 2 * PROGRAMS_PER_SM * num_sms else 1
    programs, steps = triton.cdiv(outputs, LANES * blocks), triton.cdiv(tiles, warps)
    # 1024 outputs are 128 programs for 132 SMs: a second kernel would cost more than it fills.
    splits = max(1, min(num_sms * 3 // 4 // programs, steps))
    return GemvConfig(blocks, warps, splits, warps)


@triton.jit
def scaled_difference(words, zero, VALUE: tl.constexpr, BITS: tl.constexpr):
    """``(q − zero) · 2^p`` in float32 for value number ``VALUE`` of each word, exact."""
    HALF: tl.constexpr = 16 // BITS
    P: tl.constexpr = VALUE % HALF * BITS
    if VALUE >= HALF:
        words = words >> 16
    bits = (words & (((1 << BITS) - 1) << P)) | 0x4B000000
    return bits.to(tl.float32, bitcast=True) - (8388608.0 + zero.to(tl.float32) * (1 << P))


@triton.jit
def _load_words(words_ptr, tile, end, n, slot, outputs, SLICE: tl.constexpr):
    """``[BLOCKS, STEP, LANES, SLICE]``; 0 for tiles from ``end`` on and outputs beyond the last."""
    mask = ((tile < end) & (n < outputs))[:, :, :, None] & (slot < SLICE)
    at = ((tile * outputs + n) * SLICE)[:, :, :, None]
    return tl.load(words_ptr + at + slot, mask=mask, other=0)


@triton.jit(do_not_specialize=["rows"])
def _gemv_kernel(
    x_ptr, words_ptr, scales_ptr, zeros_ptr, source_ptr, bias_ptr, out_ptr,
    rows, x_stride, inputs, outputs, tiles, groups,
    BITS: tl.constexpr, WIDTH: tl.constexpr, SLICE: tl.constexpr, ROWS: tl.constexpr,
    LANES: tl.constexpr, BLOCKS: tl.constexpr, STEP: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    COUNT: tl.constexpr = 32 // BITS
    HALF: tl.constexpr = 16 // BITS
    TILE: tl.constexpr = SLICE * COUNT
    WHOLE: tl.constexpr = WIDTH % TILE == 0  # a tile is in one group
    block = tl.arange(0, BLOCKS)[:, None, None]
    step = tl.arange(0, STEP)[None, :, None]
    n = (tl.program_id(0) * BLOCKS + block) * LANES + tl.arange(0, LANES)[None, None, :]
    slot = tl.arange(0, SLICE)[None, None, None, :]

    split = tl.program_id(1)
    steps = tl.cdiv(tiles, STEP)
    begin = split * steps // SPLITS * STEP
    end = tl.minimum((split + 1) * steps // SPLITS * STEP, tiles)
    # One accumulator per row of x, not a dimension more: layouts stay those of the words.
    sums = ()
    for _ in tl.static_range(ROWS):
        sums = sums + (tl.zeros([BLOCKS, STEP, LANES, SLICE], dtype=tl.float32),)  # noqa: RUF005
    words = _load_words(words_ptr, begin + step, end, n, slot, outputs, SLICE)
    for first in tl.range(begin, end, STEP):
        tile = first + step
        following = _load_words(words_ptr, tile + STEP, end, n, slot, outputs, SLICE)
        known = tile < end  # [1, STEP, 1]
        valid = known & (n < outputs)
        grown = ()
        for row in tl.static_range(ROWS):
            part = tl.zeros([BLOCKS, STEP, LANES, SLICE], dtype=tl.float32)
            for value in tl.static_range(COUNT):
                if value == 0 or (not WHOLE and (value * SLICE % WIDTH == 0 or TILE % WIDTH != 0)):
                    group = tl.minimum((tile * TILE + value * SLICE) // WIDTH, groups - 1)
                    scale, zero = load_grid(
                        scales_ptr, zeros_ptr, group, n, outputs, valid, BITS
                    )  # fmt: skip
                    scale, zero = scale[:, :, :, None], zero[:, :, :, None]
                places = tl.where(known, tile * TILE, 0)[:, :, :, None] + value * SLICE + slot
                there = (known & (row < rows))[:, :, :, None]
                x = load_x(x_ptr, source_ptr, row * x_stride, places, inputs, there)
                x = x.to(tl.float32) * (1.0 / (1 << (value % HALF * BITS)))
                difference = scaled_difference(words, zero, value, BITS)
                part += (difference if WHOLE else difference * scale) * x
            if WHOLE:
                part *= scale
            grown = grown + (sums[row] + part,)  # noqa: RUF005 (Triton knows no unpacking here)
        sums = grown
        words = following

    block = tl.arange(0, BLOCKS)[:, None]
    n = (tl.program_id(0) * BLOCKS + block) * LANES + tl.arange(0, LANES)[None, :]
    for row in tl.static_range(ROWS):
        total = tl.sum(tl.sum(sums[row], axis=3), axis=1)  # [BLOCKS, LANES]
        if SPLITS == 1:  # noqa: SIM102 (decided when compiling)
            if bias_ptr is not None:
                total += tl.load(bias_ptr + n, mask=n < outputs, other=0.0).to(tl.float32)
        at = (split * rows + row) * outputs + n
        mask = (n < outputs) & (row < rows)
        tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=mask)


def gemv(
    x: Tensor, weight: PackedWeight, bias: Tensor | None = None, config: GemvConfig | None = None
) -> Tensor:
    """``x · Ŵᵀ (+ bias)`` for at most 16 rows, rounded once; deterministic.

    Args:
        x: ``[rows, in]`` floating point, 1 … 16 rows, neighbouring inputs adjacent.
        weight: On the same device.
        bias: ``[out]`` or None.
        config: The launch; by default :func:`default_config`.

    Returns:
        ``[rows, out]`` in the dtype of ``x``.
    """
    (rows, inputs), outputs, tiles = x.shape, weight.out_features, len(weight.words)
    assert 1 <= rows <= MAX_ROWS, rows
    assert inputs == weight.in_features, (inputs, weight.in_features)
    assert x.stride(1) == 1
    config = config or default_config(rows, outputs, tiles, num_sms(x.device))
    splits = min(config.splits, triton.cdiv(tiles, config.step_tiles))
    out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    target = out
    if splits > 1:
        target = torch.empty(splits, rows, outputs, dtype=torch.float32, device=x.device)
    _gemv_kernel[(triton.cdiv(outputs, LANES * config.blocks), splits)](
        x, weight.words, weight.scales, weight.zeros, weight.source, bias, target,
        rows, x.stride(0), inputs, outputs, tiles, len(weight.scales),
        BITS=weight.bits, WIDTH=weight.group_width, SLICE=SLICE, ROWS=triton.next_power_of_2(rows),
        LANES=LANES, BLOCKS=config.blocks, STEP=config.step_tiles, SPLITS=splits,
        num_warps=config.num_warps,
    )  # fmt: skip
    if splits > 1:
        sum_parts(target, bias, out)
    return out


@functools.cache
def num_sms(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; a small number where kernels are interpreted."""
    if device.type == "cuda":  # gpu-only: m7_gptq/tests/test_gpu_kernels.py::test_qwen3_shapes
        return torch.cuda.get_device_properties(device).multi_processor_count
    return FEW_SMS
