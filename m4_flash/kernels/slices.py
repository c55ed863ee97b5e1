"""How a program of the prefill kernels finds its slice, and which keys of it are its own.

A launch knows how many tokens and sequences there are, not how long each is: sequence s starts at
tile ``cu_seqlens_q[s] // tile_tokens + s``, which leaves room for one partial tile each, and a
program finds its sequence by binary search (as vLLM 0.33.0,
``v1/attention/ops/triton_unified_attention.py``). So the launch can be captured in a graph.

A few tokens behind a long past are few tiles, and a tile alone would walk through the whole past.
There the keys are cut into parts, one program each, which :mod:`m4_flash.kernels.merge` puts
together. With two parts of a past of 8 whole tiles of keys::

    keys          | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | diagonal |
    part 0        |███████████████|
    part 1                        |██████████████████████████|

Every part has a tile that all its rows see, so no row's maximum stays −inf.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from m4_flash.kernels.tuning import PrefillConfig, prefill_config

LEAST_TILES = tl.constexpr(4)
"""Tiles of keys in a part at least: fewer are read sooner than they are merged."""
PROGRAMS_PER_SM = 2
MAX_SPLITS = 32


@triton.jit
def find_sequence(starts_ptr, tile, num_seqs, TILE_TOKENS: tl.constexpr):
    """The last s with ``starts[s] // TILE_TOKENS + s <= tile``; ``num_seqs`` behind all tokens."""
    low, high = 0, num_seqs + 1
    while high - low > 1:
        middle = (low + high) // 2
        before = tl.load(starts_ptr + middle) // TILE_TOKENS + middle <= tile
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
    return low


@triton.jit
def find_slice(starts_ptr, len_ptr, tile, num_tokens, num_seqs, TILE_TOKENS: tl.constexpr):
    """Sequence of a tile, its first token, its tokens, its context, and the tile's place in it.

    Tokens behind the last slice count as a sequence ``num_seqs`` without a context. Without
    ``len_ptr`` a context is its slice.
    """
    seq = find_sequence(starts_ptr, tile, num_seqs, TILE_TOKENS)
    start = tl.load(starts_ptr + seq)
    if seq == num_seqs:
        length, context = num_tokens - start, 0
    else:
        length = tl.load(starts_ptr + seq + 1) - start
        if len_ptr is not None:
            context = tl.load(len_ptr + seq)
        else:
            context = length
    return seq, start, length, context, tile - (start // TILE_TOKENS + seq)


@triton.jit
def parts_of(full_tiles, splits):
    """Parts of a tile of queries that sees ``full_tiles`` tiles of keys whole."""
    return tl.minimum(tl.maximum(full_tiles // LEAST_TILES, 1), splits)


def num_programs(num_tokens: int, num_heads: int, num_kv_heads: int, block_m: int) -> int:
    """Programs that have queries: tiles of ``block_m`` rows times KV heads.

    Args:
        num_tokens: Tokens of the step.
        num_heads: Query heads.
        num_kv_heads: KV heads.
        block_m: Rows of a tile.
    """
    rows = num_tokens * (num_heads // num_kv_heads)
    return triton.cdiv(rows, block_m) * num_kv_heads


def num_parts(programs: int, num_sms: int) -> int:
    """Parts of the keys at most, for a launch of so many programs that have queries.

    Args:
        programs: From :func:`num_programs`.
        num_sms: Streaming multiprocessors of the device.
    """
    return min(max(PROGRAMS_PER_SM * num_sms // max(programs, 1), 1), MAX_SPLITS)


@functools.cache
def paged_launch(
    num_tokens: int,
    num_heads: int,
    num_kv_heads: int,
    num_sms: int,
    device: torch.device,
    head_dim: int,
    dtype: torch.dtype,
) -> tuple[PrefillConfig, int]:
    """Tiles and splits of a paged prefill, so that few tokens occupy a device too.

    Depends on shapes alone. A chunk of 32 tokens of Qwen3-0.6B is one tile of 64 rows and 8
    programs, for 132 multiprocessors: its keys are cut into up to 32 parts.

    Args:
        num_tokens: Tokens of the step or of its bucket.
        num_heads: Query heads.
        num_kv_heads: KV heads.
        num_sms: Streaming multiprocessors of the device.
        device: Where the tensors are.
        head_dim: Width of a head.
        dtype: Element type.
    """
    config = prefill_config("prefill_paged", device, head_dim, dtype)
    if num_programs(num_tokens, num_heads, num_kv_heads, config.block_m) >= num_sms:
        return config, 1
    config = prefill_config("prefill_few", device, head_dim, dtype)
    programs = num_programs(num_tokens, num_heads, num_kv_heads, config.block_m)
    return config, num_parts(programs, num_sms)
