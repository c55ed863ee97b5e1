"""Products of a few rows with a weight matrix, at the pace of reading the matrix.

At decode with few sequences a linear layer is its weight: 16 bits are read for every row of x. The
library's kernels are made for tiles of 64 rows and reach half of the memory's speed on the small
matrices of a 0.6B model. Two kernels here, by the number of rows::

    one to four      a program holds BLOCK_N whole rows of W in registers, a multiply per weight
    up to sixteen    a program streams BLOCK_N rows of W through the tensor cores

The first one reads its part of W *before* it waits for the kernel that makes x (see
:mod:`m4_flash.kernels.launch`), so its reads overlap with the norm, the rotation or the attention
in front of it. 4 KB to 48 KB a program, one to four programs an SM: all of W is under way at once.

The second one serves three and four rows of a large matrix. From eight rows on the library's own
kernel is faster, and the engine stops at four (:mod:`m4_flash.gemv_linear`).

With ``gated`` W holds gate and up, and a program computes the same rows of both, so that
``silu(gate) · up`` needs no launch of its own and neither half is rounded before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from m4_flash.kernels.activation import swiglu
from m4_flash.kernels.launch import chain, launch_options

MAX_ROWS = 16
MANY_OUTPUTS = 4096
CHUNK = 1024
"""Inputs of one tile: 8 elements, or 16 bytes, for each thread of 4 warps."""


@triton.jit
def _row_of_products(x_ptr, tiles, k, K: tl.constexpr, CHUNK: tl.constexpr, N: tl.constexpr):
    """Dot products of one row of x with N rows of W, the tiles of which are in registers."""
    sums = tl.zeros([N, CHUNK], dtype=tl.float32)
    for chunk in tl.static_range((K + CHUNK - 1) // CHUNK):
        at = chunk * CHUNK + k
        if K % CHUNK == 0:
            x = tl.load(x_ptr + at).to(tl.float32)
        else:
            x = tl.load(x_ptr + at, mask=at < K, other=0.0).to(tl.float32)
        sums += tiles[chunk].to(tl.float32) * x[None, :]
    return tl.sum(sums, axis=1)


@triton.jit
def _tiles_of(w_ptr, n, k, outputs, K: tl.constexpr, CHUNK: tl.constexpr):
    """All of some rows of W, a tile per chunk of inputs; 0 outside."""
    tiles = ()
    for chunk in tl.static_range((K + CHUNK - 1) // CHUNK):
        at = chunk * CHUNK + k
        mask = (n < outputs)[:, None]
        if K % CHUNK != 0:
            mask = mask & (at < K)[None, :]
        place = n.to(tl.int64)[:, None] * K + at[None, :]
        tiles = tiles + (tl.load(w_ptr + place, mask=mask, other=0.0),)  # noqa: RUF005
    return tiles


@triton.jit
def _bias_of(bias_ptr, n, outputs):
    return tl.load(bias_ptr + n, mask=n < outputs, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["outputs"])
def _few_rows_kernel(
    x_ptr, w_ptr, bias_ptr, out_ptr,
    outputs, x_stride,
    ROWS: tl.constexpr, K: tl.constexpr, CHUNK: tl.constexpr, BLOCK_N: tl.constexpr,
    GATED: tl.constexpr, BIAS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, CHUNK)
    tiles = _tiles_of(w_ptr, n, k, outputs, K, CHUNK)
    if GATED:
        up_tiles = _tiles_of(w_ptr + outputs.to(tl.int64) * K, n, k, outputs, K, CHUNK)
    chain(PDL)
    for row in tl.static_range(ROWS):
        y = _row_of_products(x_ptr + row * x_stride, tiles, k, K, CHUNK, BLOCK_N)
        if BIAS:
            y += _bias_of(bias_ptr, n, outputs)
        if GATED:
            up = _row_of_products(x_ptr + row * x_stride, up_tiles, k, K, CHUNK, BLOCK_N)
            if BIAS:
                up += _bias_of(bias_ptr + outputs, n, outputs)
            y = swiglu(y, up)
        tl.store(out_ptr + row * outputs + n, y.to(out_ptr.dtype.element_ty), mask=n < outputs)


@triton.jit(do_not_specialize=["rows", "outputs"])
def _dot_kernel(
    x_ptr, w_ptr, bias_ptr, out_ptr,
    rows, outputs, x_stride,
    K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GATED: tl.constexpr, BIAS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    known_n, known_m = (n < outputs)[None, :], (m < rows)[:, None]
    x_ptr += m[:, None] * x_stride + k[None, :]
    w_ptr += n.to(tl.int64)[None, :] * K + k[:, None]
    up_ptr = w_ptr + outputs.to(tl.int64) * K
    chain(PDL)
    y = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    up = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for first in tl.range(0, K, BLOCK_K):
        if K % BLOCK_K == 0:  # a mask that the compiler cannot see through costs the pipeline
            w_mask, x_mask = known_n, known_m
        else:
            w_mask = known_n & (first + k < K)[:, None]
            x_mask = known_m & (first + k < K)[None, :]
        w = tl.load(w_ptr + first, mask=w_mask, other=0.0)
        x = tl.load(x_ptr + first, mask=x_mask, other=0.0)
        y = tl.dot(x, w, y, input_precision="ieee")
        if GATED:
            w = tl.load(up_ptr + first, mask=w_mask, other=0.0)
            up = tl.dot(x, w, up, input_precision="ieee")
    if BIAS:
        y += _bias_of(bias_ptr, n, outputs)[None, :]
    if GATED:
        if BIAS:
            up += _bias_of(bias_ptr + outputs, n, outputs)[None, :]
        y = swiglu(y, up)
    out = out_ptr + m[:, None] * outputs + n[None, :]
    tl.store(out, y.to(out_ptr.dtype.element_ty), mask=known_m & known_n)


@dataclass(frozen=True)
class GemvConfig:
    """Launch of a product.

    Attributes:
        block_n: Outputs per program.
        num_warps: Warps per program.
    """

    block_n: int
    num_warps: int


def holds_whole_rows(rows: int, outputs: int) -> bool:
    """Whether the first kernel is the faster one; measured as :func:`few_rows_config`."""
    return rows <= 2 or (rows <= 4 and outputs <= MANY_OUTPUTS)


def few_rows_config(rows: int, outputs: int, inputs: int) -> GemvConfig:
    """What was fastest on an H100 for the four matrices of Qwen3-0.6B (benchmark ``few_rows``).

    Few outputs per program where there are few, so that every SM has a program; eight warps where
    the rows of W are long, so that they fit the registers.

    Args:
        rows: Rows of x.
        outputs: Outputs: half of W's rows where a program computes gate and up.
        inputs: Width of x.
    """
    if inputs > 2 * CHUNK and rows <= 2:
        return GemvConfig(8 if rows == 1 else 4, 8)
    if rows == 1 or outputs < 2048:
        return GemvConfig(4, 4)
    return GemvConfig(16 if outputs > MANY_OUTPUTS else 8, 4)


def gemv(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, gated: bool = False, pdl: bool = False
) -> Tensor:
    """``x · Wᵀ (+ b)`` for 1 … 16 rows, or ``silu(gate) · up`` of it where W holds both.

    Sums are float32, rounded once at the end. Reference: ``F.linear`` and ``TorchOps.mlp_gate_up``.

    Args:
        x: ``[rows, in_features]``, the last dimension contiguous; 1 <= rows <= 16.
        weight: ``[out, in_features]`` contiguous, x's dtype; gate's rows, then up's, if ``gated``.
        bias: ``[out]`` or None.
        gated: Halve the outputs by SwiGLU's gate.
        pdl: Launch programmatically, see :mod:`m4_flash.kernels.launch`.

    Returns:
        ``[rows, out]``, or ``[rows, out / 2]`` if ``gated``; contiguous.
    """
    rows, inputs = x.shape
    outputs = len(weight) // 2 if gated else len(weight)
    assert 1 <= rows <= MAX_ROWS, rows
    assert weight.shape[1] == inputs, (weight.shape, x.shape)
    assert weight.is_contiguous()
    assert x.stride(-1) == 1
    out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    options = {"GATED": gated, "BIAS": bias is not None, "PDL": pdl, **launch_options(pdl)}
    given_bias = weight if bias is None else bias  # stands in for what the kernel never reads
    if holds_whole_rows(rows, len(weight)):
        config = few_rows_config(rows, outputs, inputs)
        _few_rows_kernel[(triton.cdiv(outputs, config.block_n),)](
            x, weight, given_bias, out, outputs, x.stride(0),
            ROWS=rows, K=inputs, CHUNK=min(CHUNK, triton.next_power_of_2(inputs)),
            BLOCK_N=config.block_n, num_warps=config.num_warps, **options,
        )  # fmt: skip
        return out
    block_n, block_k = 16, min(max(triton.next_power_of_2(inputs), 16), 128 if gated else 256)
    _dot_kernel[(triton.cdiv(outputs, block_n),)](
        x, weight, given_bias, out, rows, outputs, x.stride(0),
        K=inputs, BLOCK_M=16, BLOCK_N=block_n, BLOCK_K=block_k,
        num_warps=2, num_stages=4, **options,
    )  # fmt: skip
    return out
