"""The second half of a split prefill: parts of the keys become one output, by log-sum-exp.

As in :mod:`m4_flash.kernels.decode`, ``o = Σ 2^(L_i − L) · o_i`` with ``L = log2 Σ 2^L_i``. A
program takes 4 rows of a tile of queries, finds its slice as the first kernel did, and counts the
same parts. Tiles with one part are written already.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from m4_flash.kernels.slices import find_slice, parts_of

ROWS, BLOCK_P = 4, 8
"""Rows of a program and parts that it loads at a time: 16 KB under way for 128 values of a head."""


@triton.jit(do_not_specialize=["num_tokens", "num_seqs", "splits"])
def _merge_slices_kernel(
    part_ptr, lse_ptr, len_ptr, starts_ptr, out_ptr, num_tokens, num_seqs, splits,
    OUT_TOKEN: tl.constexpr, OUT_HEAD: tl.constexpr,
    GROUP: tl.constexpr, NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ROWS: tl.constexpr, BLOCK_P: tl.constexpr,
    SKIP_SINGLE: tl.constexpr,
):  # fmt: skip
    TILE_TOKENS: tl.constexpr = BLOCK_M // GROUP
    kv_head = tl.program_id(0)
    _, start, length, context, tile = find_slice(
        starts_ptr, len_ptr, tl.program_id(1), num_tokens, num_seqs, TILE_TOKENS
    )
    first_position = context - length + tile * TILE_TOKENS
    parts = parts_of((first_position + 1) // BLOCK_N, splits)
    if (tile * TILE_TOKENS >= length) | (context == 0) | (parts == 1):
        return
    if SKIP_SINGLE:  # noqa: SIM102 (decided when compiling; the inner one when running)
        if length == 1:
            return
    rows = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, HEAD_DIM)
    tokens = tile * TILE_TOKENS + rows // GROUP
    heads = kv_head * GROUP + rows % GROUP
    real = (tokens < length) & (rows < TILE_TOKENS * GROUP)
    first_cells = (start + tokens) * NUM_HEADS + heads
    m = tl.full([ROWS], -float("inf"), dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)
    acc = tl.zeros([ROWS, HEAD_DIM], dtype=tl.float32)
    for first in range(0, parts, BLOCK_P):
        part = first + tl.arange(0, BLOCK_P)
        cells = first_cells[:, None] + (part * num_tokens * NUM_HEADS)[None, :]
        known = real[:, None] & (part < parts)[None, :]
        lse = tl.load(lse_ptr + cells, mask=known, other=-float("inf"))
        at = cells[:, :, None] * HEAD_DIM + dims[None, None, :]
        values = tl.load(part_ptr + at, mask=known[:, :, None], other=0.0)
        # A row that is not real has no parts: 0 instead of −inf keeps NaN away.
        new_m = tl.where(real, tl.maximum(m, tl.max(lse, axis=1)), 0.0)
        rescale, weights = tl.exp2(m - new_m), tl.exp2(lse - new_m[:, None])
        acc = acc * rescale[:, None] + tl.sum(weights[:, :, None] * values, axis=1)
        total = total * rescale + tl.sum(weights, axis=1)
        m = new_m
    out_ptr += start.to(tl.int64) * OUT_TOKEN
    outs = out_ptr + tokens[:, None] * OUT_TOKEN + heads[:, None] * OUT_HEAD + dims[None, :]
    out = acc / tl.where(real, total, 1.0)[:, None]
    tl.store(outs, out.to(out_ptr.dtype.element_ty), mask=real[:, None])


def merge_slices(
    parts: Tensor,
    lse: Tensor,
    seq_lens: Tensor,
    cu_seqlens_q: Tensor,
    out: Tensor,
    *,
    group: int,
    tiles: int,
    block_m: int,
    block_n: int,
    skip_single: bool,
) -> None:
    """Merge what the prefill kernel left of tiles with more than one part.

    Args:
        parts: ``[splits, num_tokens, num_heads, head_dim]`` float32, each part's own output.
        lse: ``[splits, num_tokens, num_heads]`` float32, log2 of each part's sum of powers.
        seq_lens: ``[num_seqs]`` int32.
        cu_seqlens_q: ``[num_seqs + 1]`` int32.
        out: ``[num_tokens, num_heads, head_dim]``, written where there is more than one part.
        group: Query heads per KV head.
        tiles: Tiles of queries of the first launch.
        block_m: Rows of its tiles.
        block_n: Keys of its tiles.
        skip_single: Whether it left out slices of one token.
    """
    splits, num_tokens, num_heads, head_dim = parts.shape
    _merge_slices_kernel[(num_heads // group, tiles, triton.cdiv(block_m, ROWS))](
        parts, lse, seq_lens, cu_seqlens_q, out, num_tokens, len(seq_lens), splits,
        OUT_TOKEN=out.stride(0), OUT_HEAD=out.stride(1),
        GROUP=group, NUM_HEADS=num_heads, HEAD_DIM=head_dim,
        BLOCK_M=block_m, BLOCK_N=block_n, ROWS=ROWS, BLOCK_P=BLOCK_P,
        SKIP_SINGLE=skip_single, num_warps=4,
    )  # fmt: skip
