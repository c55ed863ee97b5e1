"""One step of ragged slices over a paged cache, with a float32 reference and hostile padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.model_config import KVSpec
from m1_basic.attention import naive_attention
from m3_paged.kv_cache import PagedKVCache
from m4_flash.backends.base import AttentionMetadata, AttentionShape, HostLengths

LAYER = 1


@dataclass
class StepCase:
    """K and V are stored; every place of the cache that holds no token is NaN.

    Attributes:
        cache: Two layers; layer 0 is NaN throughout.
        shape: What a backend is asked to serve.
        q: ``[num_tokens, num_heads, head_dim]``.
        k: ``[num_tokens, num_kv_heads, head_dim]``, the step's own keys.
        v: Same shape as ``k``.
        metadata: The step, decodes first.
        expected: ``[real tokens, num_heads, head_dim]`` float32, on the CPU.
    """

    cache: PagedKVCache
    shape: AttentionShape
    q: Tensor
    k: Tensor
    v: Tensor
    metadata: AttentionMetadata
    expected: Tensor


def step_case(
    slices: Sequence[tuple[int, int]],
    *,
    kv_heads: int = 2,
    group: int = 2,
    head_dim: int = 16,
    block_size: int = 4,
    pad_tokens: int = 0,
    pad_seqs: int = 0,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> StepCase:
    """A step of ``(query length, context length)`` slices, those with one query first."""
    assert [q != 1 for q, _ in slices] == sorted(q != 1 for q, _ in slices)
    generator = torch.Generator().manual_seed(seed)

    def random(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator).to(dtype)

    counts = [-(-context // block_size) for _, context in slices]
    unused = sum(counts)
    order = torch.randperm(unused, generator=generator).tolist()
    spec = KVSpec(2, kv_heads, head_dim, str(dtype).removeprefix("torch."))
    cache = PagedKVCache(spec, unused + 1, block_size, device)
    cache.kv.fill_(float("nan"))
    tables = torch.full((len(slices) + pad_seqs, max(counts) + 2), unused, dtype=torch.int32)
    queries, keys, values, slots, expected = [], [], [], list[int](), []
    for row, ((query, context), count) in enumerate(zip(slices, counts, strict=True)):
        blocks = [order.pop() for _ in range(count)]
        tables[row, :count] = torch.tensor(blocks)
        q, k, v = (random(n, h, head_dim) for n, h in _sizes(query, context, kv_heads, group))
        places = [blocks[p // block_size] * block_size + p % block_size for p in range(context)]
        for kind, stored in ((0, k), (1, v)):
            cache.kv[kind, LAYER].flatten(0, 1)[places] = stored.to(device)
        queries.append(q)
        keys.append(k[context - query :])
        values.append(v[context - query :])
        slots += places[context - query :]
        expected.append(naive_attention(q.float(), k.float(), v.float(), head_dim**-0.5))
    starts = torch.tensor([0, *(query for query, _ in slices), *[0] * pad_seqs]).cumsum(0)
    padding = torch.zeros(pad_tokens, kv_heads, head_dim, dtype=dtype)
    metadata = AttentionMetadata(
        slot_mapping=torch.tensor(slots + [-1] * pad_tokens, device=device),
        cu_seqlens_q=starts.int().to(device),
        seq_lens=torch.tensor(
            [context for _, context in slices] + [0] * pad_seqs, dtype=torch.int32, device=device
        ),
        block_tables=tables.to(device),
        max_query_len=max(query for query, _ in slices),
        max_seq_len=max(context for _, context in slices),
        host=HostLengths(tuple(q for q, _ in slices), tuple(c for _, c in slices)),
    )
    heads = kv_heads * group
    return StepCase(
        cache=cache,
        shape=AttentionShape(torch.device(device), dtype, heads, kv_heads, head_dim, block_size),
        q=torch.cat([*queries, padding.repeat(1, group, 1)]).to(device),
        k=torch.cat([*keys, padding]).to(device),
        v=torch.cat([*values, padding]).to(device),
        metadata=metadata,
        expected=torch.cat(expected),
    )


def _sizes(query: int, context: int, kv_heads: int, group: int) -> tuple[tuple[int, int], ...]:
    return (query, kv_heads * group), (context, kv_heads), (context, kv_heads)
