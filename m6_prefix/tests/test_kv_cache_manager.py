"""Exact blocks, counts and events of sharing, forks, and a manager that is switched off."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from common.step_record import BlockEvent
from m2_batching.plan import BlockCopy
from m6_prefix.kv_cache_manager import KVCacheManager
from m6_prefix.prefix_index import PrefixIndex
from m6_prefix.tests.helpers import (
    INDEXES,
    SIZE,
    CountingHasher,
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


class TestSharing:
    def test_two_equal_prompts_of_one_step(self, manager: KVCacheManager) -> None:
        """Published at admission: the second finds what the first will compute in this step."""
        a, b = sequence_of(0, range(9)), sequence_of(1, range(9))
        for sequence, hit in ((a, 0), (b, 8)):
            sequence.num_computed_tokens = manager.match_prefix(sequence)
            assert sequence.num_computed_tokens == hit
            assert manager.allocate_slots(sequence, 9 - hit) == []
            manager.publish(sequence, 9)
        assert (manager.block_ids(a), manager.block_ids(b)) == ((0, 1, 2), (0, 1, 3))
        assert counts(manager)[:5] == [2, 2, 1, 1, 0]
        assert manager.drain_events() == (
            BlockEvent("alloc", 0, 0),
            BlockEvent("alloc", 1, 0),
            BlockEvent("alloc", 2, 0),
            BlockEvent("cache", 0, 0),
            BlockEvent("cache", 1, 0),
            BlockEvent("hit", 0, 1),
            BlockEvent("hit", 1, 1),
            BlockEvent("alloc", 3, 1),
        )

    def test_a_block_is_findable_when_it_is_full_and_not_before(
        self, manager: KVCacheManager
    ) -> None:
        a = sequence_of(0, range(12))
        admit(manager, a, 6)
        assert manager.match_prefix(sequence_of(1, range(12))) == 4
        assert manager.allocate_slots(a, 2) == []
        manager.publish(a, 8)
        a.num_computed_tokens = 8
        assert manager.match_prefix(sequence_of(1, range(12))) == 8

    def test_blocks_that_decoding_fills_are_published(self, manager: KVCacheManager) -> None:
        """What makes the second turn of a chat hit the first one's answer."""
        a = sequence_of(0, range(6))
        admit(manager, a)
        advance(manager, a, 6)
        assert manager.match_prefix(sequence_of(1, range(20))) == 4
        advance(manager, a, 7)
        assert manager.match_prefix(sequence_of(1, range(20))) == 8
        leave(manager, a)
        assert manager.match_prefix(sequence_of(1, range(20))) == 8

    def test_a_token_in_flight_names_no_block(self, manager: KVCacheManager) -> None:
        """An overlapped loop computes position 7 before its id is known here."""
        a = sequence_of(0, range(7))
        admit(manager, a)
        assert manager.allocate_slots(a, 1) == []
        manager.publish(a, 8)
        a.num_computed_tokens = 8
        assert manager.match_prefix(sequence_of(1, range(9))) == 4
        a.append(7, 0.0)
        manager.publish(a, 8)
        assert manager.match_prefix(sequence_of(1, range(9))) == 8

    def test_publishing_again_says_nothing_new(self, manager: KVCacheManager) -> None:
        a = sequence_of(0, range(9))
        admit(manager, a)
        manager.drain_events()
        manager.publish(a, 9)
        manager.publish(a, 5)
        assert manager.drain_events() == ()

    def test_hit_then_abort(self, manager: KVCacheManager) -> None:
        a, b = sequence_of(0, range(9)), sequence_of(1, range(12))
        admit(manager, a)
        assert admit(manager, b) == 8
        leave(manager, b)
        assert counts(manager)[:4] == [1, 1, 1, 0]
        leave(manager, a)
        assert counts(manager) == [0] * 10
        # Block 3 was filled by b and findable; block 2 was not full.
        assert manager.pool.free_ids == [2, 4, 5, 6, 7, 8, 9, 3, 1, 0]
        manager.check()

    def test_a_preempted_sequence_hits_its_own_blocks(self, manager: KVCacheManager) -> None:
        a = sequence_of(0, range(6))
        admit(manager, a)
        advance(manager, a, 50, 51, 52)
        assert manager.block_ids(a) == (0, 1, 2)
        leave(manager, a)
        a.append(53, 0.0)
        assert manager.match_prefix(a) == 8
        assert admit(manager, a) == 8
        assert manager.block_ids(a) == (0, 1, 2)

    def test_a_block_that_was_reused_is_not_found(self, manager: KVCacheManager) -> None:
        old = sequence_of(0, range(40))
        admit(manager, old)
        leave(manager, old)
        new = sequence_of(1, range(100, 120))
        admit(manager, new)
        assert manager.block_ids(new) == (9, 8, 7, 6, 5)
        leave(manager, new)
        again = sequence_of(2, range(40))
        assert manager.match_prefix(again) == 20
        assert manager.hit_ids(again) == (0, 1, 2, 3, 4)
        assert manager.match_prefix(sequence_of(3, range(100, 121))) == 20


class TestFork:
    @pytest.mark.parametrize("length", [5, 6, 8, 9])
    def test_samples_share_full_blocks_and_copy_the_last(
        self, manager: KVCacheManager, length: int
    ) -> None:
        """The parent computes all but one token; each sample computes that one itself."""
        prompt = list(range(length))
        parent = sequence_of(0, prompt, n=2)
        child = sequence_of(1, prompt, n=2, index=1)
        admit(manager, parent, length - 1)
        manager.fork(parent, child)
        child.num_computed_tokens = length - 1
        copies = [manager.allocate_slots(s, 1) for s in (parent, child)]
        partial = (length - 1) % SIZE != 0
        last = manager.blocks_for(length) - 1
        assert copies == [[BlockCopy(last, last + 1)] if partial else [], []]
        shared = tuple(range((length - 1) // SIZE))
        assert manager.block_ids(parent)[:-1] == manager.block_ids(child)[:-1] == shared
        assert manager.block_ids(parent)[-1] != manager.block_ids(child)[-1]
        for sequence in (parent, child):
            manager.publish(sequence, length)
            sequence.num_computed_tokens = length
        # Of eight tokens each has filled its own copy of the second block: kept twice.
        assert len(manager.pool.index) == {5: 1, 6: 1, 8: 3, 9: 2}[length]
        manager.check()

    def test_a_findable_block_is_never_written(self, manager: KVCacheManager) -> None:
        """Two hit the same two blocks, then both grow: no copy, and the hits stay as they were."""
        admit(manager, sequence_of(0, range(8)))
        a, b = sequence_of(1, range(9)), sequence_of(2, range(9))
        admit(manager, a)
        admit(manager, b)
        assert manager.block_ids(a)[:2] == manager.block_ids(b)[:2] == (0, 1)
        assert advance(manager, a, *range(20, 30)) == advance(manager, b, *range(30, 40)) == []
        assert counts(manager)[:2] == [3, 3]

    def test_a_child_is_preempted_and_finds_the_shared_blocks(
        self, manager: KVCacheManager
    ) -> None:
        parent, child = (sequence_of(i, range(9), n=2, index=i) for i in (0, 1))
        admit(manager, parent, 8)
        manager.fork(parent, child)
        child.num_computed_tokens = 8
        assert counts(manager)[:3] == [2, 2, 0]
        leave(manager, child)
        assert admit(manager, child) == 8
        assert manager.block_ids(child) == (0, 1, 2)

    def test_a_child_whose_parent_never_published_does_it_itself(
        self, manager: KVCacheManager
    ) -> None:
        parent, child = (sequence_of(i, range(9), n=2, index=i) for i in (0, 1))
        assert manager.allocate_slots(parent, 8) == []
        parent.num_computed_tokens = 8
        manager.fork(parent, child)
        child.num_computed_tokens = 8
        manager.publish(child, 8)
        manager.publish(parent, 8)
        caches = [event for event in manager.drain_events() if event.kind == "cache"]
        assert caches == [BlockEvent("cache", 0, 1), BlockEvent("cache", 1, 1)]

    def test_a_child_is_made_once_and_of_its_parents_tokens(self, manager: KVCacheManager) -> None:
        parent, child = sequence_of(0, range(9)), sequence_of(1, range(9))
        admit(manager, parent, 8)
        manager.fork(parent, child)
        with pytest.raises(AssertionError, match="sequence 1 has a table"):
            manager.fork(parent, child)
        with pytest.raises(AssertionError, match="a child begins with its parent's tokens"):
            manager.fork(parent, sequence_of(2, range(1, 10)))


class TestSwitchedOff:
    def test_nothing_is_found_published_or_counted(self) -> None:
        hasher = CountingHasher()
        manager = KVCacheManager(6, SIZE, enable_prefix_caching=False, hasher=hasher)
        a, b = sequence_of(0, range(9)), sequence_of(1, range(9))
        assert (admit(manager, a), admit(manager, b)) == (0, 0)
        assert {event.kind for event in manager.drain_events()} == {"alloc"}
        leave(manager, a)
        assert manager.pool.free_ids == [0, 1, 2]
        assert (len(manager.pool.index), hasher.num_tokens) == (0, 0)
        assert manager.stats() == manager.stats_of(a)
        assert manager.stats().num_queries == 0


def test_check_notices_a_count_that_no_table_explains(manager: KVCacheManager) -> None:
    admit(manager, sequence_of(0, range(5)))
    manager.pool.share(manager.pool.blocks[0])
    with pytest.raises(AssertionError):
        manager.check()


def test_a_stranger_has_no_blocks(manager: KVCacheManager) -> None:
    one = sequence_of(0, range(5))
    assert (manager.block_ids(one), manager.num_blocks(one), manager.hit_ids(one)) == ((), 0, ())
    manager.free(one)
    assert manager.drain_events() == ()
