"""Batches for the attention kernels, interpreted here and compiled on a GPU, with a reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from m1_basic.attention import naive_attention

ORACLE_ROWS = 256


@dataclass
class AttentionCase:
    """One step of ragged slices; every place that holds no token is NaN.

    Attributes:
        q: ``[num_tokens, num_heads, head_dim]``; rows of padding tokens are NaN.
        k: ``[num_tokens, num_kv_heads, head_dim]``, the slices' own keys; NaN in padding.
        v: Same shape as ``k``.
        k_cache: ``[num_blocks, block_size, num_kv_heads, head_dim]``.
        v_cache: Same shape as ``k_cache``.
        block_tables: ``[num_seqs, max_blocks]`` int32; entries behind a sequence's own name a block
            of NaN.
        seq_lens: ``[num_seqs]`` int32, 0 for padding.
        cu_seqlens_q: ``[num_seqs + 1]`` int32.
        expected: ``[num_tokens, num_heads, head_dim]`` float32, 0 in padding.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    k_cache: Tensor
    v_cache: Tensor
    block_tables: Tensor
    seq_lens: Tensor
    cu_seqlens_q: Tensor
    expected: Tensor

    @property
    def scale(self) -> float:
        """``1 / sqrt(head_dim)``."""
        return float(self.q.shape[-1] ** -0.5)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What a step may change in place, in one order."""
        return (
            self.q, self.k, self.v, self.k_cache, self.v_cache,
            self.block_tables, self.seq_lens, self.cu_seqlens_q,
        )  # fmt: skip

    def new_out(self) -> Tensor:
        """An output full of NaN, so that a row that nobody writes is noticed."""
        return torch.full_like(self.q, float("nan"))


def attention_case(
    slices: Sequence[tuple[int, int]],
    *,
    kv_heads: int = 1,
    group: int = 2,
    head_dim: int = 16,
    block_size: int = 16,
    padding_seqs: int = 0,
    padding_tokens: int = 0,
    num_blocks: int | None = None,
    max_blocks: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> AttentionCase:
    """Random q, k and v; the pool's last blocks are dealt in random order, the very last never.

    Args:
        slices: ``(context, new)`` of each sequence: tokens with the slice, tokens of the slice.
        kv_heads: KV heads.
        group: Query heads per KV head.
        head_dim: Width of a head.
        block_size: Tokens per block.
        padding_seqs: Sequences without tokens behind the real ones.
        padding_tokens: Tokens that no sequence owns behind the real ones.
        num_blocks: Size of the pool (default: what is needed and one).
        max_blocks: Width of the tables (default: two more than needed).
        dtype: Element type.
        device: Where the tensors are.
        seed: Of everything random.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(dtype)

    counts = [-(-context // block_size) for context, _ in slices]
    needed = sum(counts)
    num_blocks = num_blocks or needed + 1
    unused = num_blocks - 1
    shuffled = torch.randperm(needed, generator=torch.Generator().manual_seed(seed))
    order = (unused - needed + shuffled).tolist()
    kv = torch.full(
        (2, num_blocks, block_size, kv_heads, head_dim), torch.nan, dtype=dtype, device=device
    )
    num_seqs = len(slices) + padding_seqs
    width = max_blocks or max(counts, default=0) + 2
    tables = torch.full((num_seqs, width), unused, dtype=torch.int32)
    q, k, v, expected = [], [], [], []
    for row, ((context, new), count) in enumerate(zip(slices, counts, strict=True)):
        blocks = [order.pop() for _ in range(count)]
        tables[row, :count] = torch.tensor(blocks)
        keys, values = random(context, kv_heads, head_dim), random(context, kv_heads, head_dim)
        for cache, tokens in zip(kv, (keys, values), strict=True):
            flat = cache.new_full((count * block_size, kv_heads, head_dim), torch.nan)
            flat[:context] = tokens
            cache[blocks] = flat.unflatten(0, (count, block_size))
        q.append(random(new, kv_heads * group, head_dim))
        k.append(keys[context - new :])
        v.append(values[context - new :])
        expected.append(oracle(q[-1], keys, values))
    empty = torch.full((padding_tokens, kv_heads, head_dim), torch.nan, dtype=dtype, device=device)
    wide = empty.repeat(1, group, 1)
    lengths = [context for context, _ in slices] + [0] * padding_seqs
    news = [0, *(new for _, new in slices)] + [0] * padding_seqs
    return AttentionCase(
        torch.cat([*q, wide]), torch.cat([*k, empty]), torch.cat([*v, empty]), kv[0], kv[1],
        tables.to(device), torch.tensor(lengths, dtype=torch.int32).to(device),
        torch.tensor(news).cumsum(0).int().to(device),
        torch.cat([*expected, torch.zeros_like(wide, dtype=torch.float32)]),
    )  # fmt: skip


def oracle(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """M1's attention in float32, some rows of q at a time: whole, it needs quadratic memory.

    Args:
        q: ``[new, num_heads, head_dim]``, the last tokens of the context.
        k: ``[context, num_kv_heads, head_dim]``.
        v: Same shape as ``k``.

    Returns:
        ``[new, num_heads, head_dim]`` float32.
    """
    cached, scale = len(k) - len(q), q.shape[-1] ** -0.5
    out = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    for begin in range(0, len(q), ORACLE_ROWS):
        end = min(begin + ORACLE_ROWS, len(q))
        keys, values = (x[: cached + end].float() for x in (k, v))
        out[begin:end] = naive_attention(q[begin:end].float(), keys, values, scale)
    return out


class LaunchSpy:
    """Stands for a kernel and records what it is launched with, tensors as their shapes."""

    def __init__(self) -> None:
        self.launches: list[tuple[object, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> LaunchSpy:
        self._grid = grid
        return self

    def __call__(self, *args: object, **kwargs: object) -> None:
        seen = [tuple(x.shape) if isinstance(x, Tensor) else x for x in args]
        self.launches.append((self._grid, *seen, *sorted(kwargs.items())))
