"""Too few blocks, and hits between their match and their allocation: exactly what changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from m6_prefix.kv_cache_manager import KVCacheManager
from m6_prefix.prefix_index import PrefixIndex
from m6_prefix.tests.helpers import (
    INDEXES,
    SIZE,
    admit,
    advance,
    leave,
    sequence_of,
)


def counts(manager: KVCacheManager) -> list[int]:
    return [block.ref_cnt for block in manager.pool.blocks]


@pytest.fixture(params=INDEXES)
def make(request: pytest.FixtureRequest) -> Callable[[], PrefixIndex]:
    made: Callable[[], PrefixIndex] = request.param
    return made


@pytest.fixture
def manager(make: Callable[[], PrefixIndex]) -> KVCacheManager:
    return KVCacheManager(10, SIZE, index=make())


class TestRefusal:
    def test_hits_that_nobody_uses_are_no_room(self) -> None:
        """Three free blocks, two of them the hits: one block can be added, not two."""
        manager = KVCacheManager(5, SIZE)
        cached = sequence_of(0, range(8))
        admit(manager, cached)
        leave(manager, cached)
        admit(manager, sequence_of(1, range(100, 107)))
        assert manager.pool.free_ids == [4, 1, 0]
        manager.drain_events()
        long, short = sequence_of(2, range(13)), sequence_of(3, range(12))
        long.num_computed_tokens = manager.match_prefix(long)
        assert long.num_computed_tokens == 8
        assert manager.allocate_slots(long, 5) is None
        assert (manager.block_ids(long), manager.pool.free_ids) == ((), [4, 1, 0])
        assert (manager.drain_events(), manager.stats().num_queries) == ((), 2)
        manager.check()
        short.num_computed_tokens = manager.match_prefix(short)
        assert manager.allocate_slots(short, 4) == []
        assert manager.block_ids(short) == (0, 1, 4)
        assert manager.pool.num_evicted == 0

    def test_hits_in_use_cost_nothing(self) -> None:
        manager = KVCacheManager(3, SIZE)
        admit(manager, sequence_of(0, range(8)))
        again = sequence_of(1, range(12))
        assert admit(manager, again) == 8
        assert manager.block_ids(again) == (0, 1, 2)

    def test_new_blocks_are_never_taken_from_the_hits(self) -> None:
        """The hits are the least recently used: without attaching them first they would go."""
        manager = KVCacheManager(4, SIZE)
        a = sequence_of(0, range(8))
        admit(manager, a)
        leave(manager, a)
        b = sequence_of(1, range(100, 108))
        admit(manager, b)
        leave(manager, b)
        assert manager.pool.free_ids == [1, 0, 3, 2]
        again = sequence_of(2, range(16))
        assert admit(manager, again) == 8
        assert manager.block_ids(again) == (0, 1, 3, 2)

    def test_preemptions_between_match_and_allocation_change_nothing(
        self, manager: KVCacheManager
    ) -> None:
        victim, other = sequence_of(0, range(9)), sequence_of(1, range(100, 127))
        admit(manager, victim)
        admit(manager, other)
        again = sequence_of(2, range(12))
        again.num_computed_tokens = manager.match_prefix(again)
        hits = manager.hit_ids(again)
        leave(manager, victim)
        assert manager.hit_ids(again) == hits == (0, 1)
        assert manager.allocate_slots(again, 4) == []
        assert manager.block_ids(again) == (0, 1, 2)

    def test_a_hit_that_was_evicted_since_is_refused(self, manager: KVCacheManager) -> None:
        """No scheduler of ours allocates in between; one that did would read no stale block."""
        a = sequence_of(0, range(8))
        admit(manager, a)
        leave(manager, a)
        again = sequence_of(1, range(12))
        again.num_computed_tokens = manager.match_prefix(again)
        greedy = sequence_of(2, range(100, 136))
        assert manager.allocate_slots(greedy, 36) == []  # takes block 1, the tail of a
        assert manager.allocate_slots(again, 4) is None
        assert counts(manager) == [0] + [1] * 9
        again.num_computed_tokens = manager.match_prefix(again)
        assert again.num_computed_tokens == 4
        leave(manager, greedy)
        assert manager.allocate_slots(again, 8) == []
        assert manager.block_ids(again)[0] == 0
        manager.check()

    def test_so_is_one_that_a_running_sequence_grew_into(self, manager: KVCacheManager) -> None:
        grows, a, b = (
            sequence_of(0, range(100, 123)),
            sequence_of(1, range(8)),
            sequence_of(2, range(200, 208)),
        )
        for sequence in (grows, a, b):
            admit(manager, sequence)
        leave(manager, a)
        leave(manager, b)
        assert manager.pool.free_ids == [7, 6, 9, 8]
        again = sequence_of(3, range(9))
        again.num_computed_tokens = manager.match_prefix(again)
        assert manager.hit_ids(again) == (6, 7)
        advance(manager, grows, 123, 124)
        assert manager.pool.free_ids == [6, 9, 8], "room enough for the hits and a block"
        assert manager.allocate_slots(again, 1) is None
        assert manager.match_prefix(again) == 4

    def test_an_eviction_elsewhere_only_costs_a_second_look(self, manager: KVCacheManager) -> None:
        a, b = sequence_of(0, range(8)), sequence_of(1, range(100, 108))
        admit(manager, b)
        admit(manager, a)
        leave(manager, b)
        leave(manager, a)
        again = sequence_of(2, range(12))
        again.num_computed_tokens = manager.match_prefix(again)
        greedy = sequence_of(3, range(200, 228))
        assert manager.allocate_slots(greedy, 28) == []
        assert manager.pool.num_evicted == 1
        assert manager.allocate_slots(again, 4) == []
        assert manager.block_ids(again)[:2] == (2, 3)

    def test_a_match_for_one_is_not_anothers(self, manager: KVCacheManager) -> None:
        a, b = sequence_of(0, range(8)), sequence_of(1, range(100, 108))
        admit(manager, a)
        admit(manager, b)
        first, second = sequence_of(2, range(9)), sequence_of(3, range(100, 109))
        first.num_computed_tokens = manager.match_prefix(first)
        second.num_computed_tokens = manager.match_prefix(second)
        assert (manager.hit_ids(first), manager.hit_ids(second)) == ((), (2, 3))
        assert manager.allocate_slots(first, 1) == []
        assert manager.block_ids(first) == (0, 1, 4)
        assert manager.allocate_slots(second, 1) == []
        assert manager.block_ids(second) == (2, 3, 5)

    def test_a_caller_may_use_fewer_blocks_than_were_found(self, manager: KVCacheManager) -> None:
        admit(manager, sequence_of(0, range(12)))
        again = sequence_of(1, range(13))
        assert manager.match_prefix(again) == 12
        again.num_computed_tokens = 4
        assert manager.allocate_slots(again, 9) == []
        assert manager.block_ids(again) == (0, 3, 4, 5)

    def test_nobody_begins_inside_a_block(self, manager: KVCacheManager) -> None:
        admit(manager, sequence_of(0, range(12)))
        again = sequence_of(1, range(13))
        again.num_computed_tokens = manager.match_prefix(again) - 1
        with pytest.raises(AssertionError, match="sequence 1 begins inside a block, at 11"):
            manager.allocate_slots(again, 2)

    def test_nobody_leaves_with_blocks_published_that_it_did_not_compute(
        self, manager: KVCacheManager
    ) -> None:
        a = sequence_of(0, range(8))
        assert manager.allocate_slots(a, 8) == []
        manager.publish(a, 8)
        with pytest.raises(AssertionError, match="leaves with 8 tokens published and 0 computed"):
            manager.free(a)
