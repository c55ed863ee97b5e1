"""Under M5's scheduler: equal traces of both indexes, outputs of no cache, M3's blocks without."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from common.request import Sequence
from common.trace import Trace
from m2_batching.request_queue import FCFSQueue, PriorityQueue
from m3_paged.kv_cache_manager import KVCacheManager as PagedManager
from m3_paged.tests.fake_runner import token_for
from m6_prefix.hash_index import HashIndex
from m6_prefix.kv_cache_manager import KVCacheManager
from m6_prefix.tests.helpers import (
    Bench,
    sequence_of,
)
from m6_prefix.tree_index import TreeIndex

Wish = tuple[int, int, int, int, int]
wishes = st.lists(
    st.tuples(
        st.integers(0, 9),  # shared tokens
        st.integers(1, 5),  # own tokens
        st.integers(1, 3),  # samples
        st.integers(1, 6),  # output tokens
        st.integers(0, 2),  # priority
    ),
    min_size=1,
    max_size=7,
)


def arrivals(wish: Wish, number: int, priorities: bool) -> list[Sequence]:
    """The samples of one request."""
    shared, own, n, max_tokens, priority = wish
    tokens = [*range(shared), *[100 + number % 2] * own]
    return [
        sequence_of(
            10 * number + i,
            tokens,
            n=n,
            index=i,
            max_tokens=max_tokens,
            priority=priority if priorities else 0,
        )
        for i in range(n)
    ]


def bench_of(manager: KVCacheManager | PagedManager, budget: int, priorities: bool) -> Bench:
    """Few seats, and priorities that age fast."""
    queue = PriorityQueue(2) if priorities else FCFSQueue()
    return Bench(manager, seqs=4, budget=budget, queue=queue)


def served(
    manager: KVCacheManager, wishes: list[Wish], every: int, budget: int, priorities: bool
) -> tuple[Trace, list[list[int]]]:
    """A request every few steps, to the end; the trace and all outputs."""
    bench = bench_of(manager, budget, priorities)
    everybody = []
    for number, wish in enumerate(wishes):
        sequences = arrivals(wish, number, priorities)
        everybody += sequences
        bench.add(*sequences)
        for _ in range(every):
            bench.step()
    bench.run()
    bench.step()
    assert manager.pool.num_free == manager.pool.num_blocks
    bench.trace.validate()
    for sequence in everybody:
        alone = Sequence(-1, sequence.request, sequence.index)
        for token in sequence.output_token_ids:
            assert token == token_for(alone)
            alone.append(token, 0.0)
    return bench.trace, [sequence.output_token_ids for sequence in everybody]


@settings(max_examples=60, deadline=None)
@given(
    wishes=wishes,
    size=st.integers(1, 4),
    spare=st.integers(0, 8),
    every=st.integers(0, 3),
    budget=st.integers(1, 16),
    priorities=st.booleans(),
    cap=st.none() | st.integers(0, 9),
)
def test_both_indexes_give_the_same_valid_trace_and_the_outputs_of_no_cache(
    wishes: list[Wish],
    size: int,
    spare: int,
    every: int,
    budget: int,
    priorities: bool,
    cap: int | None,
) -> None:
    """The fake runner checks every read, the trace's replay every event."""
    blocks = -(-(9 + 5 + 6) // size) + spare
    flat, tree, off = (
        served(manager, wishes, every, budget, priorities)
        for manager in (
            KVCacheManager(blocks, size, index=HashIndex(), max_cached_blocks=cap),
            KVCacheManager(blocks, size, index=TreeIndex(), max_cached_blocks=cap),
            KVCacheManager(blocks, size, enable_prefix_caching=False),
        )
    )
    assert flat[0] == tree[0]
    assert flat[1] == tree[1] == off[1]


@settings(max_examples=60, deadline=None)
@given(
    wishes=wishes,
    size=st.integers(1, 4),
    spare=st.integers(0, 8),
    every=st.integers(0, 3),
    budget=st.integers(1, 16),
    priorities=st.booleans(),
)
def test_switched_off_it_is_m3s_manager(
    wishes: list[Wish], size: int, spare: int, every: int, budget: int, priorities: bool
) -> None:
    """The same plans, blocks and events, step by step."""
    blocks = -(-(9 + 5 + 6) // size) + spare
    off = KVCacheManager(blocks, size, enable_prefix_caching=False)
    paged = PagedManager(blocks, size)
    ours, theirs = (bench_of(manager, budget, priorities) for manager in (off, paged))
    for number, wish in enumerate(wishes):
        for bench in (ours, theirs):
            bench.add(*arrivals(wish, number, priorities))
        for _ in range(every):
            ours.step()
            theirs.step()
            assert off.pool.free_ids == paged.pool.free_ids
    ours.run()
    theirs.run()
    assert ours.trace == theirs.trace
    assert off.pool.free_ids == paged.pool.free_ids
