"""Flash attention over slices of several tokens: prompts, chunks, recomputation.

One program computes a tile of query rows against all keys that they may see, a tile of keys at a
time, and holds no more than a tile of scores (Dao et al. 2022 and 2023, FlashAttention). The query
heads that share a KV head are rows of one tile, so each tile of K and V is loaded once for all of
them. With a group of 2 and BLOCK_M = 8, a tile is four tokens::

                 keys 0 … 3   4 … 7   8 … 11  12 …
    token 6, h0  [ full     | ✓ ✓ ✓ ·
    token 6, h1  [ full     | ✓ ✓ ✓ ·            the diagonal tiles are masked, those on their
    token 7, h0  [ full     | ✓ ✓ ✓ ✓            left are not, those on their right never loaded
    …
    token 9, h1  [ full     | ✓ ✓ ✓ ✓ | ✓ ✓ · ·

A program finds its slice on the device (:mod:`m4_flash.kernels.slices`), so a launch depends on
shapes alone and can be captured in a graph. Where there are fewer tiles of queries than
multiprocessors, tiles get smaller and the keys of a tile are cut into parts for several programs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from m4_flash.kernels.merge import merge_slices
from m4_flash.kernels.online_softmax import (
    LOG2_E,
    accumulate,
    load_blocks,
    load_tile,
    page_rows,
    upcast,
)
from m4_flash.kernels.slices import find_slice, parts_of
from m4_flash.kernels.tuning import PrefillConfig, prefill_config


@triton.jit(do_not_specialize=["num_tokens", "num_seqs", "table_stride", "splits"])
def _prefill_kernel(
    q_ptr, k_ptr, v_ptr, k_tiles, v_tiles, table_ptr, len_ptr, starts_ptr,
    out_ptr, part_ptr, lse_ptr, scale, num_tokens, num_seqs, table_stride, splits,
    Q_TOKEN: tl.constexpr, Q_HEAD: tl.constexpr, OUT_TOKEN: tl.constexpr, OUT_HEAD: tl.constexpr,
    KV_BLOCK: tl.constexpr, K_PLACE: tl.constexpr, K_HEAD: tl.constexpr,
    V_PLACE: tl.constexpr, V_HEAD: tl.constexpr,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PAGED: tl.constexpr, USE_TMA: tl.constexpr, SKIP_SINGLE: tl.constexpr, UPCAST: tl.constexpr,
    SPLIT: tl.constexpr, NUM_HEADS: tl.constexpr,
):  # fmt: skip
    TILE_TOKENS: tl.constexpr = BLOCK_M // GROUP
    kv_head, tile, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    seq, start, length, context, tile = find_slice(
        starts_ptr, len_ptr, tile, num_tokens, num_seqs, TILE_TOKENS
    )
    tiles = tl.cdiv(length, TILE_TOKENS)
    if tile >= tiles:
        return
    if SKIP_SINGLE:  # noqa: SIM102 (decided when compiling; the inner one when running)
        if (length == 1) & (seq < num_seqs):
            return

    tile = tiles - 1 - tile  # the last tokens see the most keys: they start first
    rows = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, HEAD_DIM)
    tokens = tile * TILE_TOKENS + rows // GROUP
    heads = kv_head * GROUP + rows % GROUP
    real = (tokens < length) & (rows < TILE_TOKENS * GROUP)
    out_ptr += start.to(tl.int64) * OUT_TOKEN
    outs = out_ptr + tokens[:, None] * OUT_TOKEN + heads[:, None] * OUT_HEAD + dims[None, :]
    if context == 0:  # padding: nobody reads it, but it must stay finite
        if split > 0:
            return
        zero = tl.zeros([BLOCK_M, HEAD_DIM], dtype=tl.float32)
        tl.store(outs, zero.to(out_ptr.dtype.element_ty), mask=real[:, None])
        return

    q_ptr += start.to(tl.int64) * Q_TOKEN
    q = tl.load(
        q_ptr + tokens[:, None] * Q_TOKEN + heads[:, None] * Q_HEAD + dims[None, :],
        mask=real[:, None], other=0.0,
    )  # fmt: skip
    if UPCAST:
        q = q.to(tl.float32)
    if PAGED:
        table_ptr += seq.to(tl.int64) * table_stride
    else:
        k_ptr += start.to(tl.int64) * K_PLACE
        v_ptr += start.to(tl.int64) * V_PLACE
    k_ptr += kv_head * K_HEAD
    v_ptr += kv_head * V_HEAD

    m = tl.full([BLOCK_M], -float("inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    acc = tl.zeros([BLOCK_M, HEAD_DIM], dtype=tl.float32)
    positions = context - length + tokens  # bottom-right: the slice is the context's end
    first_position = context - length + tile * TILE_TOKENS
    seen = tl.minimum(first_position + TILE_TOKENS, context)  # by the tile's last token
    full = (first_position + 1) // BLOCK_N  # tiles of keys that all rows see
    first_full, last_full, last_key = 0, full, seen
    if SPLIT:
        parts = parts_of(full, splits)
        if split >= parts:
            return
        first_full, last_full = split * full // parts, (split + 1) * full // parts
        last_key = tl.where(split == parts - 1, seen, 0)  # the diagonal is the last part's
    for on_diagonal in tl.static_range(2):
        if on_diagonal:
            begin, end = full * BLOCK_N, last_key
        else:
            begin, end = first_full * BLOCK_N, last_full * BLOCK_N
        if PAGED:
            blocks = load_blocks(table_ptr, begin, seen - 1, BLOCK_SIZE, BLOCK_N)
        for first in tl.range(begin, end, BLOCK_N):
            keys = first + tl.arange(0, BLOCK_N)
            if USE_TMA and not on_diagonal:
                k = k_tiles.load([start + first, kv_head * HEAD_DIM])
                v = v_tiles.load([start + first, kv_head * HEAD_DIM])
                if UPCAST:
                    k, v = k.to(tl.float32), v.to(tl.float32)
            else:
                known = tl.minimum(keys, seen - 1) if on_diagonal else keys
                if PAGED:
                    k_rows = page_rows(blocks, known, KV_BLOCK, K_PLACE, BLOCK_SIZE)
                    v_rows = k_rows
                    blocks = load_blocks(table_ptr, first + BLOCK_N, seen - 1, BLOCK_SIZE, BLOCK_N)
                else:
                    k_rows, v_rows = known.to(tl.int64) * K_PLACE, known.to(tl.int64) * V_PLACE
                k = load_tile(k_ptr + k_rows[:, None] + dims[None, :], UPCAST)
                v = load_tile(v_ptr + v_rows[:, None] + dims[None, :], UPCAST)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee")
            if on_diagonal:
                scores = tl.where(keys[None, :] <= positions[:, None], scores, -float("inf"))
            m, total, acc = accumulate(scores, scale, v, m, total, acc)
    out = acc / total[:, None]
    if SPLIT:  # noqa: SIM102 (decided when compiling; the inner one when running)
        if parts > 1:
            cells = (split * num_tokens + start + tokens) * NUM_HEADS + heads
            part_cells = part_ptr + cells[:, None] * HEAD_DIM + dims[None, :]
            tl.store(part_cells, out, mask=real[:, None])
            tl.store(lse_ptr + cells, m + tl.log2(total), mask=real)
            return
    tl.store(outs, out.to(out_ptr.dtype.element_ty), mask=real[:, None])


def flash_prefill(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    cu_seqlens_q: Tensor,
    scale: float,
    out: Tensor,
    *,
    skip_single: bool = False,
    splits: int = 1,
    config: PrefillConfig | None = None,
) -> None:
    """Causal attention of ragged slices over their blocks; reference: ``naive_attention``.

    The slice of a sequence is the end of its context: query i of L sees ``seq_len − L + i + 1``
    keys. Rows of padding are written with 0: tokens behind ``cu_seqlens_q[-1]``, and slices whose
    ``seq_len`` is 0. Places of the cache that hold no token, and entries of a table behind the
    sequence's own blocks, are never read.

    Args:
        q: ``[num_tokens, num_heads, head_dim]``; head_dim a power of two of at least 16.
        k_cache: ``[num_blocks, block_size, num_kv_heads, head_dim]``; block_size a power of two.
        v_cache: Same shape and strides as ``k_cache``.
        block_tables: ``[num_seqs, max_blocks]`` int32.
        seq_lens: ``[num_seqs]`` int32, context with the slice; 0 for padding.
        cu_seqlens_q: ``[num_seqs + 1]`` int32, ascending from 0.
        scale: ``1 / sqrt(head_dim)``; above 0.
        out: ``[num_tokens, num_heads, head_dim]``, written.
        skip_single: Leave slices of one token to :func:`m4_flash.kernels.decode.flash_decode`.
        splits: Parts of a tile's keys at most, from
            :func:`m4_flash.kernels.slices.paged_launch`; 1 cuts nothing.
        config: Tile sizes; by default those of this device's table.
    """
    assert splits >= 1, f"splits must be at least 1, got {splits}"
    assert k_cache.stride() == v_cache.stride()
    assert block_tables.stride(-1) == 1
    block_size = k_cache.shape[1]
    assert block_size & (block_size - 1) == 0, f"block_size must be a power of two: {block_size}"
    config = config or prefill_config("prefill_paged", q.device, q.shape[-1], q.dtype)
    _launch(
        q, k_cache, v_cache, block_tables, seq_lens, cu_seqlens_q, scale, out, config,
        skip_single=skip_single, splits=splits,
    )  # fmt: skip


def flash_prefill_contiguous(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    scale: float,
    out: Tensor,
    *,
    config: PrefillConfig | None = None,
) -> None:
    """Causal attention within each prompt of a step, from the step's own K and V, without pages.

    For prompts without a cached past. Tokens behind ``cu_seqlens[-1]`` are written with 0.

    Args:
        q: ``[num_tokens, num_heads, head_dim]``; head_dim a power of two of at least 16.
        k: ``[num_tokens, num_kv_heads, head_dim]``; a view of a merged projection will do.
        v: Same shape as ``k``; strides of its own.
        cu_seqlens: ``[num_seqs + 1]`` int32, ascending from 0: queries and keys alike.
        scale: ``1 / sqrt(head_dim)``; above 0.
        out: ``[num_tokens, num_heads, head_dim]``, written.
        config: Tile sizes; by default those of this device's table.
    """
    config = config or prefill_config("prefill_contiguous", q.device, q.shape[-1], q.dtype)
    _launch(q, k, v, None, None, cu_seqlens, scale, out, config, skip_single=False, splits=1)


def _launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_tables: Tensor | None,
    seq_lens: Tensor | None,
    starts: Tensor,
    scale: float,
    out: Tensor,
    config: PrefillConfig,
    *,
    skip_single: bool,
    splits: int,
) -> None:
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads, num_seqs, paged = k.shape[-2], len(starts) - 1, block_tables is not None
    group = num_heads // num_kv_heads
    assert head_dim >= 16, f"head_dim must be at least 16, got {head_dim}"
    assert head_dim & (head_dim - 1) == 0, f"head_dim must be a power of two, got {head_dim}"
    assert q.stride(-1) == k.stride(-1) == v.stride(-1) == out.stride(-1) == 1
    assert starts.is_contiguous()
    assert seq_lens is None or seq_lens.is_contiguous()
    assert scale > 0
    if not num_tokens or not num_seqs:
        return
    block_m = max(config.block_m, triton.next_power_of_2(group))
    use_tma = config.use_tma and not paged and _aligned(k) and _aligned(v)
    tiles = triton.cdiv(num_tokens, block_m // group) + num_seqs
    assert tiles < 2**16, f"{tiles} tiles of {block_m // group} tokens exceed the launch grid"
    parts, lse = None, None
    if splits > 1:
        parts = q.new_empty(splits, *q.shape, dtype=torch.float32)
        lse = q.new_empty(splits, num_tokens, num_heads, dtype=torch.float32)
    _prefill_kernel[(num_kv_heads, tiles, splits)](
        q, k, v, *(_descriptor(x, config.block_n) if use_tma else None for x in (k, v)),
        block_tables, seq_lens, starts, out, parts, lse,
        scale * LOG2_E, num_tokens, num_seqs, block_tables.stride(0) if paged else 0, splits,
        Q_TOKEN=q.stride(0), Q_HEAD=q.stride(1), OUT_TOKEN=out.stride(0), OUT_HEAD=out.stride(1),
        KV_BLOCK=k.stride(0) if paged else 0, K_PLACE=k.stride(-3), K_HEAD=k.stride(-2),
        V_PLACE=v.stride(-3), V_HEAD=v.stride(-2),
        GROUP=group, HEAD_DIM=head_dim, BLOCK_SIZE=k.shape[1] if paged else 1,
        BLOCK_M=block_m, BLOCK_N=config.block_n,
        PAGED=paged, USE_TMA=use_tma, SKIP_SINGLE=skip_single, UPCAST=upcast(q.dtype),
        SPLIT=splits > 1, NUM_HEADS=num_heads,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    if parts is not None and lse is not None and seq_lens is not None:
        merge_slices(
            parts, lse, seq_lens, starts, out,
            group=group, tiles=tiles, block_m=block_m, block_n=config.block_n,
            skip_single=skip_single,
        )  # fmt: skip


def _aligned(x: Tensor) -> bool:
    """Whether the copy engine takes ``[num_tokens, heads, head_dim]``: heads side by side."""
    size = x.element_size()
    flat = x.stride(1) == x.shape[2]
    return flat and x.data_ptr() % 16 == 0 and x.stride(0) * size % 16 == 0


def _descriptor(x: Tensor, block_n: int) -> TensorDescriptor:
    """``[num_tokens, heads · head_dim]`` for the tensor memory accelerator, one head a tile."""
    num_tokens, heads, head_dim = x.shape
    shape, strides = [num_tokens, heads * head_dim], [x.stride(0), 1]
    return TensorDescriptor(x, shape, strides, [block_n, head_dim])
