"""Which block is taken next, and what is forgotten for it: exact orders."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.step_record import BlockEvent
from m2_batching.tests.helpers import count_operations
from m3_paged.block_pool import DoubleFreeError, KVCacheBlock
from m6_prefix.block_pool import BlockPool
from m6_prefix.hash_index import HashIndex
from m6_prefix.kv_cache_manager import KVCacheManager
from m6_prefix.prefix_index import PrefixIndex
from m6_prefix.tests.helpers import INDEXES, SIZE, admit, advance, leave, prefix_of, sequence_of


def evicted(manager: KVCacheManager) -> list[int]:
    """Blocks that lost their content since the last call, in order."""
    return [event.block for event in manager.drain_events() if event.kind == "evict"]


@pytest.fixture(params=INDEXES)
def index(request: pytest.FixtureRequest) -> PrefixIndex:
    made: PrefixIndex = request.param()
    return made


class TestOrder:
    def test_the_example_of_vllms_tests(self, index: PrefixIndex) -> None:
        """Two requests share three full blocks and end: (tests/v1/core/test_prefix_caching.py)."""
        manager = KVCacheManager(11, 16, index=index)
        null = sequence_of(9, [0])  # stands where vLLM keeps its null block
        admit(manager, null)
        common = list(range(1, 49))
        first = sequence_of(0, [*common, *[100] * 7])
        second = sequence_of(1, [*common, *[200] * 5])
        assert admit(manager, first) == 0
        assert manager.block_ids(first) == (1, 2, 3, 4)
        assert admit(manager, second) == 48
        assert manager.block_ids(second) == (1, 2, 3, 5)
        leave(manager, first)
        leave(manager, second)
        assert manager.pool.free_ids == [5, 4, 6, 7, 8, 9, 10, 3, 2, 1]

        third = sequence_of(2, [*common, *[300] * 6])
        assert admit(manager, third) == 48
        assert manager.block_ids(third) == (1, 2, 3, 5)
        leave(manager, third)
        # A prompt that needs the whole pool takes the blank ones and then evicts, tail first.
        manager.drain_events()
        fourth = sequence_of(3, list(range(1000, 1160)))
        assert admit(manager, fourth) == 0
        assert manager.block_ids(fourth) == (5, 4, 6, 7, 8, 9, 10, 3, 2, 1)
        assert evicted(manager) == [3, 2, 1]

    def test_the_tail_of_the_sequence_that_ended_first_goes_first(self, index: PrefixIndex) -> None:
        manager = KVCacheManager(6, SIZE, index=index)
        a, b = sequence_of(0, range(12)), sequence_of(1, range(100, 112))
        admit(manager, a)
        admit(manager, b)
        leave(manager, b)
        leave(manager, a)
        assert manager.pool.free_ids == [5, 4, 3, 2, 1, 0]
        admit(manager, sequence_of(2, range(200, 208)))
        assert evicted(manager) == [5, 4]
        assert manager.match_prefix(sequence_of(3, [*range(100, 112), 0])) == 4
        assert manager.match_prefix(sequence_of(4, [*range(12), 0])) == 12

    def test_a_hit_makes_a_block_recent(self, index: PrefixIndex) -> None:
        manager = KVCacheManager(4, SIZE, index=index)
        for number in range(4):
            one = sequence_of(number, [number] * 4)
            admit(manager, one)
            leave(manager, one)
        assert manager.pool.free_ids == [0, 1, 2, 3]
        again = sequence_of(4, [0, 0, 0, 0, 7])
        assert admit(manager, again) == 4
        assert manager.block_ids(again) == (0, 1)
        leave(manager, again)
        assert manager.pool.free_ids == [1, 2, 3, 0]

    def test_blank_blocks_go_before_any_content(self, index: PrefixIndex) -> None:
        manager = KVCacheManager(4, SIZE, index=index)
        a = sequence_of(0, range(7))
        admit(manager, a)
        leave(manager, a)
        assert manager.pool.free_ids == [1, 2, 3, 0]
        admit(manager, sequence_of(1, range(100, 112)))
        assert evicted(manager) == []
        assert manager.match_prefix(sequence_of(2, range(7))) == 4

    def test_a_copy_outlives_the_first_one(self, index: PrefixIndex) -> None:
        """Eight tokens each: the second computes its last block itself, and it is kept twice."""
        manager = KVCacheManager(4, SIZE, index=index)
        a, b = sequence_of(0, range(8)), sequence_of(1, range(8))
        admit(manager, a)
        admit(manager, b)
        assert (manager.block_ids(a), manager.block_ids(b)) == ((0, 1), (0, 2))
        leave(manager, a)
        leave(manager, b)
        assert manager.pool.free_ids == [3, 1, 2, 0]
        admit(manager, sequence_of(2, range(100, 108)))
        assert evicted(manager) == [1]
        c = sequence_of(3, range(9))
        assert manager.match_prefix(c) == 8
        assert manager.hit_ids(c) == (0, 2)

    def test_content_in_use_is_never_evicted(self, index: PrefixIndex) -> None:
        manager = KVCacheManager(3, SIZE, index=index)
        a = sequence_of(0, range(8))
        admit(manager, a)
        for number in range(1, 5):
            one = sequence_of(number, [number] * 4)
            admit(manager, one)
            leave(manager, one)
        assert manager.pool.num_evicted == 3
        assert manager.match_prefix(sequence_of(9, [*range(8), 0])) == 8


class TestCap:
    def filled(self, index: PrefixIndex, cap: int | None) -> KVCacheManager:
        """Three prompts of one block have come and gone: blocks 0, 1, 2 in that order."""
        manager = KVCacheManager(5, SIZE, index=index, max_cached_blocks=cap)
        sequences = [sequence_of(number, [number] * 4) for number in range(3)]
        for sequence in sequences:
            admit(manager, sequence)
        for sequence in sequences:
            leave(manager, sequence)
        return manager

    @pytest.mark.parametrize(
        ("cap", "gone"), [(None, []), (9, []), (4, []), (3, [0]), (2, [0, 1]), (1, [0, 1, 2])]
    )
    def test_the_least_recently_used_free_blocks_lose_their_content(
        self, index: PrefixIndex, cap: int | None, gone: list[int]
    ) -> None:
        manager = self.filled(index, cap)
        manager.drain_events()
        admit(manager, sequence_of(3, [3] * 4))
        assert evicted(manager) == gone
        assert len(index) == 4 - len(gone)
        # They stay where they stood: behind the blank ones, before all that is still findable.
        assert manager.pool.free_ids == [4, 0, 1, 2]
        manager.check()

    def test_blocks_in_use_count_and_stay(self, index: PrefixIndex) -> None:
        manager = KVCacheManager(4, SIZE, index=index, max_cached_blocks=1)
        a = sequence_of(0, range(12))
        admit(manager, a)
        assert (len(index), manager.pool.num_evicted) == (3, 0)
        assert manager.match_prefix(sequence_of(1, [*range(12), 0])) == 12

    def test_a_free_never_evicts_but_the_next_match_sees_the_cap(self, index: PrefixIndex) -> None:
        manager = KVCacheManager(4, SIZE, index=index, max_cached_blocks=1)
        a = sequence_of(0, range(12))
        admit(manager, a)
        leave(manager, a)
        assert manager.pool.num_evicted == 0
        assert manager.match_prefix(sequence_of(1, [*range(12), 0])) == 4
        assert evicted(manager) == [2, 1]
        assert manager.pool.free_ids == [3, 2, 1, 0]

    def test_a_cap_of_zero_caches_for_those_who_run_together(self, index: PrefixIndex) -> None:
        manager = KVCacheManager(6, SIZE, index=index, max_cached_blocks=0)
        a, b, c = (sequence_of(i, range(9)) for i in range(3))
        assert admit(manager, a) == 0
        assert admit(manager, b) == 8
        leave(manager, a)
        leave(manager, b)
        assert admit(manager, c) == 0


class TestReset:
    def test_everything_is_forgotten_in_the_order_of_eviction(self, index: PrefixIndex) -> None:
        manager = KVCacheManager(4, SIZE, index=index)
        a = sequence_of(0, range(9))
        admit(manager, a)
        assert not manager.reset_prefix_cache(), "it is in use"
        assert manager.match_prefix(sequence_of(1, range(9))) == 8
        leave(manager, a)
        manager.drain_events()
        assert manager.reset_prefix_cache()
        assert evicted(manager) == [1, 0]
        assert (len(index), manager.pool.free_ids) == (0, [2, 3, 1, 0])
        assert manager.match_prefix(sequence_of(1, range(9))) == 0
        assert manager.reset_prefix_cache(), "nothing to do"

    def test_sequences_that_published_nothing_do_not_prevent_it(self, index: PrefixIndex) -> None:
        manager = KVCacheManager(4, SIZE, index=index)
        a, b = sequence_of(0, range(4)), sequence_of(1, range(3))
        admit(manager, a)
        admit(manager, b)
        leave(manager, a)
        assert manager.reset_prefix_cache()
        manager.check()


class TestPool:
    def test_misuse_is_an_error(self) -> None:
        pool = BlockPool(2, HashIndex())
        with pytest.raises(DoubleFreeError, match="block 1 is free already"):
            pool.free([pool.blocks[1]])
        with pytest.raises(AssertionError, match="has no owner to fill it"):
            pool.cache(pool.blocks[0], None, prefix_of(range(4)), 0)
        pool.allocate(1)
        pool.cache(pool.blocks[0], None, prefix_of(range(4)), 0)
        with pytest.raises(AssertionError, match="the index belongs to another pool"):
            BlockPool(2, pool.index)

    def test_check_notices_a_block_in_the_wrong_queue(self) -> None:
        pool = BlockPool(2, HashIndex())
        pool.index.insert(0, None, prefix_of(range(4)), 0)
        with pytest.raises(AssertionError):
            pool.check()

    def test_all_or_nothing(self) -> None:
        pool = BlockPool(3, HashIndex())
        taken = pool.allocate(2)
        assert taken is not None
        pool.cache(taken[0], None, prefix_of(range(4)), 0)
        pool.free(taken[:1])
        assert pool.allocate(3) is None
        assert (pool.free_ids, pool.num_evicted, len(pool.index)) == ([2, 0], 0, 1)
        assert pool.allocate(0) == []

    @pytest.mark.parametrize("make", INDEXES)
    def test_every_operation_costs_the_same_in_a_large_pool(
        self, make: Callable[[], PrefixIndex]
    ) -> None:
        def cost(num_blocks: int) -> int:
            pool = BlockPool(num_blocks, make(), max_cached_blocks=num_blocks - 4)
            blocks = pool.allocate(num_blocks) or []
            for number, block in enumerate(blocks):
                pool.cache(block, None, prefix_of([number] * 4), 0)
            pool.free(reversed(blocks))
            middle = pool.blocks[num_blocks // 2]

            def work() -> None:
                pool.trim()
                pool.share(middle)
                taken = pool.allocate(6)
                pool.free([*(taken or []), middle])

            return count_operations(work)

        assert cost(20_000) == cost(20)


class OneList:
    """vLLM's pool as plain lists: one free list, blocks with content at its end."""

    def __init__(self, num_blocks: int) -> None:
        self.free, self.counts = list(range(num_blocks)), [0] * num_blocks
        self.content: set[int] = set()
        self.evicted: list[int] = []

    def allocate(self, count: int) -> list[int]:
        taken, self.free = self.free[:count], self.free[count:]
        for block in taken:
            self.counts[block] = 1
            if block in self.content:
                self.content.remove(block)
                self.evicted.append(block)
        return taken

    def share(self, block: int) -> None:
        if not self.counts[block]:
            self.free.remove(block)
        self.counts[block] += 1

    def release(self, block: int) -> None:
        self.counts[block] -= 1
        if not self.counts[block]:
            self.free.insert(len(self.free) if block in self.content else 0, block)


@given(actions=st.lists(st.tuples(st.sampled_from("asfcc"), st.integers(0, 9)), max_size=60))
def test_two_queues_are_vllms_one_list(actions: list[tuple[str, int]]) -> None:
    gone: list[int] = []
    pool, model = BlockPool(6, HashIndex(), on_evict=gone.append), OneList(6)
    for action, number in actions:
        block: KVCacheBlock = pool.blocks[number % 6]
        if action == "a" and number <= len(model.free):
            assert [b.block_id for b in pool.allocate(number) or []] == model.allocate(number)
        elif action == "s":
            pool.share(block)
            model.share(block.block_id)
        elif action == "f" and block.ref_cnt:
            pool.free([block])
            model.release(block.block_id)
        elif action == "c" and block.ref_cnt and block.block_id not in pool.index:
            pool.cache(block, None, prefix_of([block.block_id] * 4), 0)
            model.content.add(block.block_id)
        assert pool.free_ids == model.free
        assert [b.ref_cnt for b in pool.blocks] == model.counts
        assert (gone, pool.num_evicted) == (model.evicted, len(model.evicted))
        pool.check()


def test_evictions_come_before_what_they_make_room_for() -> None:
    manager = KVCacheManager(2, SIZE)
    a = sequence_of(0, range(4))
    admit(manager, a)
    advance(manager, a, 4)
    leave(manager, a)
    manager.drain_events()
    admit(manager, sequence_of(1, range(100, 108)))
    assert manager.drain_events() == (
        BlockEvent("evict", 0),
        BlockEvent("alloc", 1, 1),
        BlockEvent("alloc", 0, 1),
        BlockEvent("cache", 1, 1),
        BlockEvent("cache", 0, 1),
    )
