"""Larger batches: weights become floats in registers and meet x on the tensor cores.

The product is computed transposed, outputs as rows, so that a small batch is the narrow side of
the tensor core's tile and not its padded 64 rows::

    acc [block_n outputs, block_m rows] += (q − zero) [block_n, 16] · xᵀ [16, block_m]

once for each of the slices of a tile (see :mod:`m7_gptq.kernels.repack`). ``q − zero`` is a whole
number below 256: exact in bfloat16 and float16. The scale multiplies the float32 product, so the
weight is never rounded to the dtype of x; this is more exact than a dense matrix of that dtype.

Dequantising costs the same for every row tile of x, so at some batch it is cheaper to write the
dense matrix once (:func:`dequantise`) and let cuBLAS multiply.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from common.errors import ConfigError
from m4_flash.kernels.launch import chain, launch_options
from m7_gptq.kernels.held import num_sms
from m7_gptq.kernels.repack import SLICE, PackedWeight
from m7_gptq.kernels.tiles import difference, load_grid, load_x, sum_parts

DENSE_BLOCK = 64
"""Outputs of a program that dequantises."""


@dataclass(frozen=True)
class GemmConfig:
    """Launch of the kernel.

    Attributes:
        block_n: Outputs per program; 64 and more use Hopper's warp-group instruction.
        block_m: Rows of x per program.
        splits: Programs among which K is cut; above 1 a second kernel adds their parts.
        num_warps: Warps per program.
        num_stages: Loop steps whose loads are in flight.
    """

    block_n: int
    block_m: int
    splits: int
    num_warps: int
    num_stages: int

    def __post_init__(self) -> None:
        """Sides are those of ``tl.dot``.

        Raises:
            ConfigError: A side is not a power of two of at least 16, or a value is below 1.
        """
        for name, least in (("block_n", 16), ("block_m", 16), ("num_warps", 1)):
            value = getattr(self, name)
            if value < least or value & (value - 1):
                raise ConfigError(f"{name} must be a power of two of at least {least}, got {value}")
        for name in ("splits", "num_stages"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")


@functools.cache
def default_config(rows: int, outputs: int, tiles: int, num_sms: int) -> GemmConfig:
    """A launch that fills the device; depends on shapes alone.

    Three programs a multiprocessor were fastest at 32 and 64 rows of Qwen3-0.6B's layers.

    Args:
        rows: Rows of x, at least 1.
        outputs: Width of the output.
        tiles: Tiles of K.
        num_sms: Streaming multiprocessors.
    """
    block_m = min(max(triton.next_power_of_2(rows), 16), 64)
    programs = triton.cdiv(outputs, 64) * triton.cdiv(rows, block_m)
    splits = max(1, min(triton.cdiv(3 * num_sms, programs), tiles // 2, 16))
    return GemmConfig(64, block_m, splits, num_warps=4, num_stages=3)


@triton.jit(do_not_specialize=["rows"])
def _gemm_kernel(
    x_ptr, words_ptr, scales_ptr, zeros_ptr, source_ptr, bias_ptr, out_ptr,
    rows, x_stride, inputs, outputs, tiles, groups,
    BITS: tl.constexpr, WIDTH: tl.constexpr, SLICE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, SPLITS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    COUNT: tl.constexpr = 32 // BITS
    TILE: tl.constexpr = SLICE * COUNT
    WHOLE: tl.constexpr = WIDTH % TILE == 0  # a tile is in one group
    split = tl.program_id(2)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    slot = tl.arange(0, SLICE)
    real_n, real_m = n < outputs, m < rows
    row_offsets = m.to(tl.int64)[None, :] * x_stride
    acc = tl.zeros([BLOCK_N, BLOCK_M], dtype=tl.float32)
    chain(PDL)
    for tile in tl.range(split * tiles // SPLITS, (split + 1) * tiles // SPLITS):
        at = (tile * outputs + n)[:, None] * SLICE + slot[None, :]
        words = tl.load(words_ptr + at, mask=real_n[:, None], other=0)
        part = tl.zeros([BLOCK_N, BLOCK_M], dtype=tl.float32)
        for value in tl.static_range(COUNT):
            if value == 0 or (not WHOLE and (value * SLICE % WIDTH == 0 or TILE % WIDTH != 0)):
                if value > 0:  # the slices so far share a scale
                    acc += part * scale[:, None]  # noqa: F821 (set at value 0)
                    part = tl.zeros([BLOCK_N, BLOCK_M], dtype=tl.float32)
                group = tl.minimum((tile * TILE + value * SLICE) // WIDTH, groups - 1)
                scale, zero = load_grid(scales_ptr, zeros_ptr, group, n, outputs, real_n, BITS)
            places = (tile * TILE + value * SLICE + slot)[:, None]
            x = load_x(x_ptr, source_ptr, row_offsets, places, inputs, real_m[None, :])
            exact = difference(words, zero[:, None], value, BITS)
            part = tl.dot(exact.to(x.dtype), x, part, input_precision="ieee")
        acc += part * scale[:, None]
    if SPLITS == 1:  # noqa: SIM102 (decided when compiling)
        if bias_ptr is not None:
            acc += tl.load(bias_ptr + n, mask=real_n, other=0.0).to(tl.float32)[:, None]
    cells = (split * rows + m).to(tl.int64)[None, :] * outputs + n[:, None]
    mask = real_n[:, None] & real_m[None, :]
    tl.store(out_ptr + cells, acc.to(out_ptr.dtype.element_ty), mask=mask)


def gemm(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None = None,
    config: GemmConfig | None = None,
    *,
    pdl: bool = False,
) -> Tensor:
    """``x · Ŵᵀ (+ bias)`` for any number of rows, rounded once; deterministic.

    Args:
        x: ``[rows, in]`` floating point, at least 1 row, neighbouring inputs adjacent.
        weight: On the same device.
        bias: ``[out]`` or None.
        config: The launch; by default :func:`default_config`.
        pdl: Launch programmatically, see :mod:`m4_flash.kernels.launch`.

    Returns:
        ``[rows, out]`` in the dtype of ``x``.
    """
    (rows, inputs), outputs, tiles = x.shape, weight.out_features, len(weight.words)
    assert rows >= 1
    assert inputs == weight.in_features, (inputs, weight.in_features)
    assert x.stride(1) == 1
    config = config or default_config(rows, outputs, tiles, num_sms(x.device))
    splits = min(config.splits, tiles)
    out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    target = out
    if splits > 1:
        target = torch.empty(splits, rows, outputs, dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(outputs, config.block_n), triton.cdiv(rows, config.block_m), splits)
    _gemm_kernel[grid](
        x, weight.words, weight.scales, weight.zeros, weight.source, bias, target,
        rows, x.stride(0), inputs, outputs, tiles, len(weight.scales),
        BITS=weight.bits, WIDTH=weight.group_width, SLICE=SLICE,
        BLOCK_N=config.block_n, BLOCK_M=config.block_m, SPLITS=splits, PDL=pdl,
        num_warps=config.num_warps, num_stages=config.num_stages, **launch_options(pdl),
    )  # fmt: skip
    if splits > 1:
        sum_parts(target, bias, out, pdl=pdl)
    return out


@triton.jit
def _dequantise_kernel(
    words_ptr, scales_ptr, zeros_ptr, source_ptr, out_ptr,
    inputs, outputs, groups,
    BITS: tl.constexpr, WIDTH: tl.constexpr, SLICE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    COUNT: tl.constexpr = 32 // BITS
    TILE: tl.constexpr = SLICE * COUNT
    WHOLE: tl.constexpr = WIDTH % TILE == 0  # a tile is in one group
    tile = tl.program_id(1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    slot = tl.arange(0, SLICE)[None, :]
    real = n < outputs
    at = ((tile * outputs + n) * SLICE)[:, None] + slot
    words = tl.load(words_ptr + at, mask=real[:, None], other=0)
    for value in tl.static_range(COUNT):
        if value == 0 or (not WHOLE and (value * SLICE % WIDTH == 0 or TILE % WIDTH != 0)):
            group = tl.minimum((tile * TILE + value * SLICE) // WIDTH, groups - 1)
            scale, zero = load_grid(scales_ptr, zeros_ptr, group, n, outputs, real, BITS)
        weights = difference(words, zero[:, None], value, BITS) * scale[:, None]
        places = tile * TILE + value * SLICE + slot
        if source_ptr is not None:
            channels = tl.load(source_ptr + places)
            mask = real[:, None] & (channels >= 0)
        else:
            channels, mask = places, real[:, None] & (places < inputs)
        cells = n[:, None] * inputs + channels
        tl.store(out_ptr + cells, weights.to(out_ptr.dtype.element_ty), mask=mask)


def dequantise(weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """The dense Ŵ ``[out, in]``, each element rounded once to ``dtype``; inputs in their order."""
    inputs, outputs = weight.in_features, weight.out_features
    out = torch.empty(outputs, inputs, dtype=dtype, device=weight.words.device)
    _dequantise_kernel[(triton.cdiv(outputs, DENSE_BLOCK), len(weight.words))](
        weight.words, weight.scales, weight.zeros, weight.source, out,
        inputs, outputs, len(weight.scales),
        BITS=weight.bits, WIDTH=weight.group_width, SLICE=SLICE, BLOCK_N=DENSE_BLOCK, num_warps=4,
    )  # fmt: skip
    return out
