"""Naive attention against PyTorch's, and the cache against recomputation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import OutOfMemoryError
from common.model_config import KVSpec
from m1_basic.attention import CachedAttend, UncachedAttend, naive_attention
from m1_basic.kv_cache import ContiguousKVCache

SPEC = KVSpec(num_layers=2, num_kv_heads=2, head_dim=8, dtype="float32")


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """PyTorch's attention with an explicit bottom-right mask."""
    num_q, num_k = q.shape[0], k.shape[0]
    mask = torch.ones(num_q, num_k, dtype=torch.bool).tril(num_k - num_q)
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), attn_mask=mask, enable_gqa=True
    )
    return out.transpose(0, 1)


@settings(deadline=None)
@given(
    num_q=st.integers(1, 9),
    past=st.integers(0, 9),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_naive_equals_pytorch(num_q: int, past: int, kv_heads: int, group: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(num_q, kv_heads * group, 8, generator=generator)
    k, v = (torch.randn(num_q + past, kv_heads, 8, generator=generator) for _ in "kv")
    torch.testing.assert_close(naive_attention(q, k, v, 8**-0.5), reference(q, k, v))


def test_a_query_sees_no_later_key() -> None:
    q, k, v = torch.randn(4, 2, 8), torch.randn(6, 1, 8), torch.randn(6, 1, 8)
    before = naive_attention(q, k, v, 1.0)
    k[5], v[5] = 1e4, 1e4
    after = naive_attention(q, k, v, 1.0)
    assert torch.equal(before[:3], after[:3])
    assert not torch.equal(before[3], after[3])


def test_each_query_head_reads_the_kv_head_of_its_group() -> None:
    # Four query heads over two KV heads: heads 0 and 1 read KV head 0, heads 2 and 3 KV head 1.
    v = torch.zeros(3, 2, 8)
    v[:, 1] = 1.0
    out = naive_attention(torch.randn(1, 4, 8), torch.randn(3, 2, 8), v, 1.0)
    assert out[0, :, 0].tolist() == pytest.approx([0, 0, 1, 1])


def test_cache_returns_views_of_everything_so_far() -> None:
    cache = ContiguousKVCache(SPEC, 6, "cpu")
    first = torch.randn(4, 2, 8)
    k, v = cache.append(1, 0, first, -first)
    assert torch.equal(k, first)
    assert torch.equal(v, -first)
    assert k.data_ptr() == cache.kv[0, 1].data_ptr(), "a view, not a copy"
    last = torch.randn(2, 2, 8)
    k, v = cache.append(1, 4, last, -last)
    assert torch.equal(k, torch.cat((first, last)))
    assert k.shape == (6, 2, 8), "the last slot is usable"
    assert cache.nbytes == SPEC.bytes_per_token * 6


@pytest.mark.parametrize(("start", "count"), [(0, 7), (6, 1), (5, 2), (-1, 1)])
def test_cache_refuses_places_it_does_not_have(start: int, count: int) -> None:
    cache = ContiguousKVCache(SPEC, 6, "cpu")
    with pytest.raises(AssertionError, match="of 6"):
        cache.append(0, start, torch.zeros(count, 2, 8), torch.zeros(count, 2, 8))


def test_a_cache_that_does_not_fit_says_so() -> None:
    with pytest.raises(OutOfMemoryError, match=r"GiB.*max_model_len"):
        ContiguousKVCache(SPEC, 10**15, "cpu")


@pytest.mark.parametrize("chunks", [(9,), (1,) * 9, (4, 5), (8, 1), (1, 8)])
def test_any_split_into_passes_gives_the_same_rows(chunks: tuple[int, ...]) -> None:
    q, k, v = torch.randn(9, 4, 8), torch.randn(9, 2, 8), torch.randn(9, 2, 8)
    whole = UncachedAttend()(0, q, k, v)
    cache, start, rows = ContiguousKVCache(SPEC, 9, "cpu"), 0, []
    for size in chunks:
        part = slice(start, start + size)
        rows.append(CachedAttend(cache, start)(0, q[part], k[part], v[part]))
        start += size
    torch.testing.assert_close(torch.cat(rows), whole)


def test_neither_attend_lets_an_op_store_kv() -> None:
    cache = ContiguousKVCache(SPEC, 4, "cpu")
    assert CachedAttend(cache, 0).kv_sink(0) is None
    assert UncachedAttend().kv_sink(0) is None
