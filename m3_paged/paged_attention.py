"""Attention over a flat batch whose keys and values lie in blocks.

A step is a list of tokens without padding, the sequences one after another, any mix of lengths::

    tokens            | a a a a a a a | b | c c c |          num_tokens = 11
    query_start_loc   0               7   8       11
    seq_lens            7               40  19               context after this step
    slot_mapping      where the K and V of each token go: block · block_size + place
    block_tables      [3, max_blocks]: which blocks hold each sequence's context

Two implementations of one function: gathering in PyTorch, the reference and the CPU path; and a
Triton kernel that reads blocks in place, for the rows that decode on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.model.interfaces import KVSink
from common.model.ops import store_kv
from m1_basic.attention import naive_attention
from m2_batching.attention import decode_mask, masked_attention
from m3_paged.kv_cache import PagedKVCache


@dataclass(frozen=True)
class PagedMetadata:
    """One step as tensors on the device, shared by all layers.

    Decoding sequences (one token) come first, so that they are one contiguous range.

    Attributes:
        slot_mapping: ``[num_tokens]`` int64, −1 for a token that is not stored.
        block_tables: ``[num_seqs, max_blocks]`` int32, padded with 0.
        seq_lens: ``[num_seqs]`` int32, context of each sequence with its new tokens.
        query_lens: New tokens of each sequence, on the host.
        context_lens: The same as ``seq_lens``, on the host.
        num_decodes: Leading sequences with exactly one new token.
    """

    slot_mapping: Tensor
    block_tables: Tensor
    seq_lens: Tensor
    query_lens: tuple[int, ...]
    context_lens: tuple[int, ...]
    num_decodes: int

    def __post_init__(self) -> None:
        """The parts describe the same step."""
        assert len(self.query_lens) == len(self.context_lens) == len(self.seq_lens)
        assert self.slot_mapping.shape == (sum(self.query_lens),)
        assert all(0 < q <= c for q, c in zip(self.query_lens, self.context_lens, strict=True))
        assert all(q == 1 for q in self.query_lens[: self.num_decodes])


class PagedAttend:
    """Store the step's K and V, then attend: decodes in one call, prefills one by one."""

    def __init__(self, cache: PagedKVCache, metadata: PagedMetadata, *, use_kernel: bool) -> None:
        """Bind one forward pass.

        Args:
            cache: The blocks.
            metadata: The step.
            use_kernel: Read blocks in place with Triton; gather in PyTorch otherwise.
        """
        self.cache, self.metadata, self.use_kernel = cache, metadata, use_kernel

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``[num_tokens, heads, head_dim]``, flat; the whole batch is stored before any attends."""
        store_kv(k, v, self.cache.sink(layer, self.metadata.slot_mapping))
        k_cache, v_cache = self.cache.kv[0, layer], self.cache.kv[1, layer]
        out = torch.empty_like(q)
        attend_blocks(q, k_cache, v_cache, self.metadata, out, use_kernel=self.use_kernel)
        return out

    def kv_sink(self, layer: int) -> KVSink | None:
        """None: K and V are stored by :meth:`__call__`."""
        return None


def attend_blocks(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    metadata: PagedMetadata,
    out: Tensor,
    *,
    use_kernel: bool,
) -> None:
    """Attend for a whole step whose K and V are stored: decodes in one call, others one by one.

    Args:
        q: ``[num_tokens, num_heads, head_dim]``.
        k_cache: ``[num_blocks, block_size, num_kv_heads, head_dim]``.
        v_cache: Same shape as ``k_cache``.
        metadata: The step.
        out: Same shape as ``q``, written.
        use_kernel: Decode with the Triton kernel.
    """
    scale, count = q.shape[-1] ** -0.5, metadata.num_decodes
    if count:
        tables, lens = metadata.block_tables[:count], metadata.seq_lens[:count]
        if use_kernel:
            from m3_paged.kernels import paged_decode

            paged_decode(q[:count], k_cache, v_cache, tables, lens, scale, out[:count])
        else:
            longest = max(metadata.context_lens[:count])
            out[:count] = gathered_decode(q[:count], k_cache, v_cache, tables, lens, longest, scale)
    begin = count
    for row in range(count, len(metadata.query_lens)):
        end = begin + metadata.query_lens[row]
        length = metadata.context_lens[row]
        table = metadata.block_tables[row]
        keys, values = (gather_blocks(x, table, length) for x in (k_cache, v_cache))
        out[begin:end] = naive_attention(q[begin:end], keys, values, scale)
        begin = end


def gather_blocks(cache: Tensor, block_table: Tensor, length: int) -> Tensor:
    """Collect one sequence's keys (or values) from its blocks into one contiguous tensor.

    Args:
        cache: ``[num_blocks, block_size, num_kv_heads, head_dim]``.
        block_table: ``[max_blocks]`` int32.
        length: Tokens of the sequence.

    Returns:
        ``[length, num_kv_heads, head_dim]``, a copy.
    """
    blocks = -(-length // cache.shape[1])
    # On a CPU several times as fast as cache[block_table]: whole blocks are copied.
    return cache.index_select(0, block_table[:blocks]).flatten(0, 1)[:length]


def gathered_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    longest: int,
    scale: float,
) -> Tensor:
    """One query per sequence, by gathering every context into a padded rectangle.

    It moves each key three times (read, write the copy, read the copy), which is what a kernel
    that reads blocks in place saves.

    Args:
        q: ``[num_seqs, num_heads, head_dim]``.
        k_cache: ``[num_blocks, block_size, num_kv_heads, head_dim]``.
        v_cache: Same shape as ``k_cache``.
        block_tables: ``[num_seqs, max_blocks]`` int32.
        seq_lens: ``[num_seqs]`` int32.
        longest: Largest of ``seq_lens``, on the host.
        scale: ``1 / sqrt(head_dim)``.

    Returns:
        ``[num_seqs, num_heads, head_dim]``.
    """
    blocks = -(-longest // k_cache.shape[1])
    tables = block_tables[:, :blocks]
    # [seqs, blocks, block_size, heads, dim] -> [seqs, heads, places, dim]
    keys, values = (
        cache.index_select(0, tables.flatten())
        .view(len(q), -1, *cache.shape[2:])[:, :longest]
        .transpose(1, 2)
        .contiguous()
        for cache in (k_cache, v_cache)
    )
    mask = decode_mask(seq_lens.long(), longest)
    # Places beyond a sequence's end were never written: weight 0 times NaN would be NaN.
    values.masked_fill_(~mask.transpose(1, 2)[:, None], 0.0)
    return masked_attention(q.unsqueeze(1), keys, values, mask, scale).squeeze(1)
