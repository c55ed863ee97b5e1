"""Flash decode: one query per sequence against a long context, split among programs.

A decoding query reads its whole context once, so what counts is bytes in flight. One program per
sequence and KV head leaves most of a GPU idle where sequences are few, and waits for the longest
one where they are many. So a context is cut into parts that run in parallel, and a second kernel
merges them by their log-sum-exp (Dao et al. 2023, Flash-Decoding)::

    part i:  o_i = softmax(s_i) · V_i,   L_i = log2 Σ 2^s_i        over its own keys
    merge:   L = log2 Σ 2^L_i,           o = Σ 2^(L_i − L) · o_i

A captured graph fixes the launch, so its size must not depend on lengths. It has ``num_seqs ·
splits`` *places* per KV head, and the programs deal them out on the device: all agree on a share
of tiles, and a sequence gets one place per share of its length::

    tiles      40  3  2  3          16 places, share = ceil(48 / (16 − 4)) = 4
    parts      10  1  1  1          13 places taken, 3 end at once

Every sequence rounds up by less than one place, hence ``places − num_seqs`` in the share. One
sequence of 16k tokens among 255 short ones is cut into many parts, and the short ones into one
each, which is written directly and needs no merge.

The query heads of a KV head are the rows of one tile, padded to 16 for ``tl.dot``: each key is
loaded once per group.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from m4_flash.kernels.launch import chain, launch_options
from m4_flash.kernels.online_softmax import (
    LOG2_E,
    accumulate,
    load_blocks,
    load_tile,
    page_rows,
    upcast,
)
from m4_flash.kernels.tuning import DecodeConfig, decode_config

PROGRAMS_PER_SM = 2
"""Enough bytes in flight to keep an SM's share of the memory bus busy."""
FULL_BATCH = 128
"""From this batch size on, places beyond one per sequence are only for those longer than most."""
MAX_SPLITS = 256


@triton.jit
def _contexts(seqs, len_ptr, starts_ptr, num_seqs):
    """Context of each sequence; 0 where its slice is not one token, which is not ours."""
    known = seqs < num_seqs
    lengths = tl.load(len_ptr + seqs, mask=known, other=0)
    if starts_ptr is not None:
        begins = tl.load(starts_ptr + seqs, mask=known, other=0)
        ends = tl.load(starts_ptr + seqs + 1, mask=known, other=0)
        lengths = tl.where(ends - begins == 1, lengths, 0)
    return lengths


@triton.jit
def deal(len_ptr, starts_ptr, num_seqs, places, BLOCK_N: tl.constexpr, MAX_SEQS: tl.constexpr):
    """Parts of each sequence, ``[MAX_SEQS]`` int32, at most ``places`` together."""
    seqs = tl.arange(0, MAX_SEQS)
    tiles = tl.cdiv(_contexts(seqs, len_ptr, starts_ptr, num_seqs), BLOCK_N)
    share = tl.cdiv(tl.sum(tiles, axis=0), places - num_seqs)
    return seqs, tl.cdiv(tiles, tl.maximum(share, 1))


@triton.jit(do_not_specialize=["num_seqs", "places", "table_stride"])
def _decode_kernel(
    q_ptr, k_ptr, v_ptr, table_ptr, len_ptr, starts_ptr, out_ptr, part_ptr, lse_ptr,
    scale, num_seqs, places, table_stride,
    Q_TOKEN: tl.constexpr, Q_HEAD: tl.constexpr, OUT_TOKEN: tl.constexpr, OUT_HEAD: tl.constexpr,
    KV_BLOCK: tl.constexpr, KV_PLACE: tl.constexpr, KV_HEAD: tl.constexpr,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, MAX_SEQS: tl.constexpr,
    SPLIT: tl.constexpr, UPCAST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    kv_head, place = tl.program_id(0), tl.program_id(1)
    chain(PDL)
    if SPLIT:
        seqs, parts = deal(len_ptr, starts_ptr, num_seqs, places, BLOCK_N, MAX_SEQS)
        ends = tl.cumsum(parts, axis=0)
        seq = tl.sum((ends <= place).to(tl.int32), axis=0)
        if seq >= num_seqs:  # a place that no sequence needs
            return
        part = place - tl.sum(tl.where(seqs < seq, parts, 0), axis=0)
        num_parts = tl.sum(tl.where(seqs == seq, parts, 0), axis=0)
    else:
        seq, part, num_parts = place, 0, 1
    length = tl.load(len_ptr + seq)
    row = seq
    if starts_ptr is not None:
        row = tl.load(starts_ptr + seq)
        if tl.load(starts_ptr + seq + 1) - row != 1:
            return

    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, HEAD_DIM)
    heads = kv_head * GROUP + rows
    real = (rows < GROUP)[:, None]
    q_ptr += row.to(tl.int64) * Q_TOKEN
    q = tl.load(q_ptr + heads[:, None] * Q_HEAD + dims[None, :], mask=real, other=0.0)
    if UPCAST:
        q = q.to(tl.float32)
    table_ptr += seq.to(tl.int64) * table_stride
    k_ptr += kv_head * KV_HEAD
    v_ptr += kv_head * KV_HEAD

    m = tl.full([ROWS], -float("inf"), dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)
    acc = tl.zeros([ROWS, HEAD_DIM], dtype=tl.float32)
    tiles = tl.cdiv(length, BLOCK_N)
    begin, end = part * tiles // num_parts, (part + 1) * tiles // num_parts
    last = tl.maximum(length, 1) - 1
    blocks = load_blocks(table_ptr, begin * BLOCK_N, last, BLOCK_SIZE, BLOCK_N)
    for first in tl.range(begin * BLOCK_N, end * BLOCK_N, BLOCK_N):
        keys = first + tl.arange(0, BLOCK_N)
        offsets = page_rows(blocks, tl.minimum(keys, last), KV_BLOCK, KV_PLACE, BLOCK_SIZE)
        blocks = load_blocks(table_ptr, first + BLOCK_N, last, BLOCK_SIZE, BLOCK_N)
        k = load_tile(k_ptr + offsets[:, None] + dims[None, :], UPCAST)
        v = load_tile(v_ptr + offsets[:, None] + dims[None, :], UPCAST)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        scores = tl.where(keys[None, :] < length, scores, -float("inf"))
        m, total, acc = accumulate(scores, scale, v, m, total, acc)
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]  # padding has no keys, and gets 0
    if SPLIT:  # noqa: SIM102 (decided when compiling; the inner one when running)
        if num_parts > 1:
            cells = place * NUM_HEADS + heads
            tl.store(part_ptr + cells[:, None] * HEAD_DIM + dims[None, :], acc, mask=real)
            tl.store(lse_ptr + cells, m + tl.log2(total), mask=rows < GROUP)
            return
    out_ptr += row.to(tl.int64) * OUT_TOKEN
    outs = out_ptr + heads[:, None] * OUT_HEAD + dims[None, :]
    tl.store(outs, acc.to(out_ptr.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["num_seqs", "places"])
def _merge_kernel(
    part_ptr, lse_ptr, len_ptr, starts_ptr, out_ptr, num_seqs, places,
    OUT_TOKEN: tl.constexpr, OUT_HEAD: tl.constexpr,
    NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr, MAX_SEQS: tl.constexpr, BLOCK_P: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    head, seq = tl.program_id(0), tl.program_id(1)
    chain(PDL)
    row = seq
    if starts_ptr is not None:
        row = tl.load(starts_ptr + seq)
        if tl.load(starts_ptr + seq + 1) - row != 1:
            return
    seqs, parts = deal(len_ptr, starts_ptr, num_seqs, places, BLOCK_N, MAX_SEQS)
    num_parts = tl.sum(tl.where(seqs == seq, parts, 0), axis=0)
    if num_parts == 1:  # written already
        return
    first = tl.sum(tl.where(seqs < seq, parts, 0), axis=0)
    dims = tl.arange(0, HEAD_DIM)
    m, total = -float("inf"), 0.0
    acc = tl.zeros([HEAD_DIM], dtype=tl.float32)
    for begin in range(0, num_parts, BLOCK_P):
        index = begin + tl.arange(0, BLOCK_P)
        known = index < num_parts
        cells = (first + index) * NUM_HEADS + head
        lse = tl.load(lse_ptr + cells, mask=known, other=-float("inf"))
        values = tl.load(
            part_ptr + cells[:, None] * HEAD_DIM + dims[None, :], mask=known[:, None], other=0.0
        )
        new_m = tl.maximum(m, tl.max(lse, axis=0))
        rescale = tl.exp2(m - new_m)
        weights = tl.exp2(lse - new_m)
        acc = acc * rescale + tl.sum(weights[:, None] * values, axis=0)
        total = total * rescale + tl.sum(weights, axis=0)
        m = new_m
    out = acc / tl.where(total > 0, total, 1.0)  # padding has no parts, and gets 0
    out_ptr += row.to(tl.int64) * OUT_TOKEN + head * OUT_HEAD
    tl.store(out_ptr + dims, out.to(out_ptr.dtype.element_ty))


def num_splits(num_seqs: int, num_kv_heads: int, num_sms: int) -> int:
    """How many places a launch has per sequence and KV head; depends on no length.

    One more than what gives every SM its programs, because the share of a place leaves one per
    sequence for rounding up; 2 at batches that fill the GPU by themselves.

    Args:
        num_seqs: Sequences of the (captured) batch, padding included.
        num_kv_heads: KV heads of the model.
        num_sms: Streaming multiprocessors of the device.
    """
    if num_seqs >= FULL_BATCH:
        return 2
    wanted = PROGRAMS_PER_SM * num_sms // (max(num_seqs, 1) * num_kv_heads)
    return min(max(wanted, 1) + 1, MAX_SPLITS)


def flash_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    cu_seqlens_q: Tensor | None,
    scale: float,
    out: Tensor,
    *,
    splits: int,
    config: DecodeConfig | None = None,
    pdl: bool = False,
) -> None:
    """Attend with one query per sequence over its blocks; reference: ``naive_attention``.

    Sequences whose slice is not exactly one token are left to
    :func:`m4_flash.kernels.prefill.flash_prefill`: their rows are not touched. A row whose
    ``seq_len`` is 0 is padding and is written with 0. Places of the cache that hold no token, and
    entries of a table behind the sequence's own blocks, are never read.

    Args:
        q: ``[num_tokens, num_heads, head_dim]``; head_dim a power of two of at least 16.
        k_cache: ``[num_blocks, block_size, num_kv_heads, head_dim]``; block_size a power of two.
        v_cache: Same shape and strides as ``k_cache``.
        block_tables: ``[num_seqs, max_blocks]`` int32.
        seq_lens: ``[num_seqs]`` int32, context with the new token; 0 for padding.
        cu_seqlens_q: ``[num_seqs + 1]`` int32, or None where sequence s is row s.
        scale: ``1 / sqrt(head_dim)``; above 0.
        out: ``[num_tokens, num_heads, head_dim]``, written.
        splits: Places per sequence, from :func:`num_splits`; 1 cuts nothing.
        config: Tile size; by default that of this device's table.
        pdl: Launch programmatically, see :mod:`m4_flash.kernels.launch`.
    """
    num_heads, head_dim = q.shape[1:]
    num_seqs, (block_size, num_kv_heads) = len(seq_lens), k_cache.shape[1:3]
    group = num_heads // num_kv_heads
    _check(q, k_cache, v_cache, block_tables, out, scale, splits)
    if not num_seqs:
        return
    config = config or decode_config(num_seqs, q.device, head_dim, q.dtype)
    places, parts, lse = num_seqs * splits, None, None
    # Fewer compiled variants: one for a single sequence, then one per power of two from 32 on.
    max_seqs = 1 if num_seqs == 1 else max(triton.next_power_of_2(num_seqs), 32)
    if splits > 1:
        parts = torch.empty(places, num_heads, head_dim, dtype=torch.float32, device=q.device)
        lse = torch.empty(places, num_heads, dtype=torch.float32, device=q.device)
    _decode_kernel[(num_kv_heads, places)](
        q, k_cache, v_cache, block_tables, seq_lens, cu_seqlens_q, out, parts, lse,
        scale * LOG2_E, num_seqs, places, block_tables.stride(0),
        Q_TOKEN=q.stride(0), Q_HEAD=q.stride(1), OUT_TOKEN=out.stride(0), OUT_HEAD=out.stride(1),
        KV_BLOCK=k_cache.stride(0), KV_PLACE=k_cache.stride(1), KV_HEAD=k_cache.stride(2),
        NUM_HEADS=num_heads, GROUP=group, ROWS=max(triton.next_power_of_2(group), 16),
        HEAD_DIM=head_dim, BLOCK_SIZE=block_size, BLOCK_N=config.block_n, MAX_SEQS=max_seqs,
        SPLIT=splits > 1, UPCAST=upcast(q.dtype), PDL=pdl,
        num_warps=config.num_warps, num_stages=config.num_stages, **launch_options(pdl),
    )  # fmt: skip
    if splits > 1:
        block_p = min(max(triton.next_power_of_2(splits), 16), 64)
        _merge_kernel[(num_heads, num_seqs)](
            parts, lse, seq_lens, cu_seqlens_q, out, num_seqs, places,
            OUT_TOKEN=out.stride(0), OUT_HEAD=out.stride(1),
            NUM_HEADS=num_heads, HEAD_DIM=head_dim, BLOCK_N=config.block_n, MAX_SEQS=max_seqs,
            BLOCK_P=block_p, PDL=pdl, num_warps=block_p // 8, **launch_options(pdl),
        )  # fmt: skip


def _check(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    out: Tensor,
    scale: float,
    splits: int,
) -> None:
    head_dim, block_size = q.shape[-1], k_cache.shape[1]
    for name, value, least in (("head_dim", head_dim, 16), ("block_size", block_size, 1)):
        assert value >= least, f"{name} must be at least {least}, got {value}"
        assert value & (value - 1) == 0, f"{name} must be a power of two, got {value}"
    assert k_cache.stride() == v_cache.stride()
    assert q.stride(-1) == k_cache.stride(-1) == out.stride(-1) == block_tables.stride(-1) == 1
    assert scale > 0
    assert splits >= 1, f"splits must be at least 1, got {splits}"
