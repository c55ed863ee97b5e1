"""The KV store in Triton's interpreter: exactly k and v at their slots, and nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.model.interfaces import KVSink
from common.model.ops import store_kv as reference
from m4_flash.tests.op_cases import assert_stored, heads_case, new_sink

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="kernels are compiled here: test_gpu_ops.py"
)


def store(k: torch.Tensor, v: torch.Tensor, sink: KVSink) -> None:
    from m4_flash.kernels.store import store_kv

    store_kv(k, v, sink)


@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize(("kv_heads", "head_dim"), [(1, 8), (2, 32), (3, 20)])
def test_views_of_a_merged_projection(kv_heads: int, head_dim: int, block_size: int) -> None:
    slots = [17, 0, -1, 3, 16, -1]
    case = heads_case((len(slots),), 4, kv_heads, head_dim)
    sink = new_sink(slots, kv_heads, head_dim, block_size=block_size)
    store(case.k, case.v, sink)
    assert_stored(sink, case.k, case.v)


def test_equals_the_reference() -> None:
    slots = [5, 1, -1, 14]
    case = heads_case((4,), 2, 2, 16)
    ours, theirs = (new_sink(slots, 2, 16) for _ in range(2))
    store(case.k, case.v, ours)
    reference(case.k, case.v, theirs)
    for mine, expected in ((ours.k_cache, theirs.k_cache), (ours.v_cache, theirs.v_cache)):
        torch.testing.assert_close(mine, expected, rtol=0, atol=0, equal_nan=True)


def test_k_and_v_with_strides_of_their_own() -> None:
    k = torch.randn(3, 2, 8)
    v = torch.randn(2, 3, 16)[..., 4:12].transpose(0, 1)
    sink = new_sink([2, 9, 4], 2, 8)
    store(k, v, sink)
    assert_stored(sink, k, v)


def test_padding_may_be_anything() -> None:
    """A graph's padding tokens carry whatever the last step left behind."""
    k, v = torch.full((2, 1, 8), float("nan")), torch.full((2, 1, 8), float("inf"))
    sink = new_sink([-1, -1], 1, 8)
    sink.k_cache.zero_()
    sink.v_cache.zero_()
    store(k, v, sink)
    assert not sink.k_cache.any()
    assert not sink.v_cache.any()


def test_only_padding_and_nothing_at_all() -> None:
    for slots in ([-1, -1, -1], []):
        case = heads_case((len(slots),), 2, 1, 8)
        sink = new_sink(slots, 1, 8)
        store(case.k, case.v, sink)
        assert_stored(sink, case.k, case.v)


def test_a_cache_in_another_dtype() -> None:
    case = heads_case((2,), 2, 1, 8)
    sink = new_sink([3, 6], 1, 8, dtype=torch.float16)
    store(case.k, case.v, sink)
    assert_stored(sink, case.k.half(), case.v.half())


def test_what_it_relies_on() -> None:
    case = heads_case((3,), 2, 1, 8)
    with pytest.raises(AssertionError, match=r"\[2\]\), 3"):
        store(case.k, case.v, new_sink([0, 1], 1, 8))
    sink = new_sink([0, 1, 2], 1, 8)
    apart = KVSink(sink.k_cache, sink.v_cache.contiguous().transpose(0, 1), sink.slot_mapping)
    with pytest.raises(AssertionError):
        store(case.k, case.v, apart)


@settings(max_examples=20, deadline=None)
@given(
    slots=st.lists(st.integers(0, 30), unique=True, max_size=6),
    padding=st.integers(0, 3),
    block_size=st.sampled_from([1, 2, 5, 16]),
    kv_heads=st.integers(1, 3),
    head_dim=st.integers(1, 12),
)
def test_any_slots(
    slots: list[int], padding: int, block_size: int, kv_heads: int, head_dim: int
) -> None:
    slots = [-1] * padding + slots
    generator = torch.Generator().manual_seed(len(slots))
    k = torch.randn(len(slots), kv_heads, head_dim, generator=generator)
    v = torch.randn(len(slots), kv_heads, head_dim, generator=generator)
    sink = new_sink(slots, kv_heads, head_dim, block_size=block_size)
    store(k, v, sink)
    assert_stored(sink, k, v)
