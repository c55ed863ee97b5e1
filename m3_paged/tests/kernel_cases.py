"""Decode batches for the kernel, here in the interpreter and on a GPU, with a float32 reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from m1_basic.attention import naive_attention


@dataclass
class DecodeCase:
    """One decode batch of ragged lengths; every place that holds no token is NaN.

    Attributes:
        q: ``[num_seqs, num_heads, head_dim]``.
        k_cache: ``[num_blocks, block_size, num_kv_heads, head_dim]``.
        v_cache: Same shape as ``k_cache``.
        block_tables: ``[num_seqs, max_blocks]`` int32; entries behind a sequence's own name a block
            of NaN.
        seq_lens: ``[num_seqs]`` int32.
        expected: ``[num_seqs, num_heads, head_dim]`` float32, on the CPU.
    """

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    block_tables: Tensor
    seq_lens: Tensor
    expected: Tensor

    @property
    def scale(self) -> float:
        """``1 / sqrt(head_dim)``."""
        return float(self.q.shape[-1] ** -0.5)


def decode_case(
    lengths: Sequence[int],
    *,
    kv_heads: int = 2,
    group: int = 2,
    head_dim: int = 32,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> DecodeCase:
    """Random q, k and v; blocks are dealt in random order, and the last one is never used."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    counts = [-(-length // block_size) for length in lengths]
    unused = sum(counts)
    order = torch.randperm(unused, generator=generator).tolist()
    kv = torch.full((2, unused + 1, block_size, kv_heads, head_dim), float("nan"), dtype=dtype)
    tables = torch.full((len(lengths), max(counts) + 2), unused, dtype=torch.int32)
    q = random(len(lengths), kv_heads * group, head_dim)
    expected = []
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        blocks = [order.pop() for _ in range(count)]
        tables[row, :count] = torch.tensor(blocks)
        k, v = random(length, kv_heads, head_dim), random(length, kv_heads, head_dim)
        for position in range(length):
            block, place = blocks[position // block_size], position % block_size
            kv[0, block, place], kv[1, block, place] = k[position], v[position]
        alone = naive_attention(q[row : row + 1].float(), k.float(), v.float(), head_dim**-0.5)
        expected.append(alone)
    lens = torch.tensor(lengths, dtype=torch.int32)
    k_cache, v_cache = kv.to(device)
    return DecodeCase(
        q.to(device), k_cache, v_cache, tables.to(device), lens.to(device), torch.cat(expected)
    )
