"""The free list in its exact order, reference counts, and every misuse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2_batching.tests.helpers import count_operations
from m3_paged.block_pool import BlockPool, DoubleFreeError, FreeBlockQueue, KVCacheBlock


def ids(blocks: list[KVCacheBlock] | None) -> list[int]:
    assert blocks is not None
    return [block.block_id for block in blocks]


class TestFreeList:
    def test_it_starts_in_the_order_of_the_ids(self) -> None:
        pool = BlockPool(5)
        assert (pool.free_ids, pool.num_free, pool.num_blocks) == ([0, 1, 2, 3, 4], 5, 5)

    def test_allocate_takes_at_the_head(self) -> None:
        pool = BlockPool(5)
        assert ids(pool.allocate(2)) == [0, 1]
        assert ids(pool.allocate(1)) == [2]
        assert pool.free_ids == [3, 4]

    def test_freed_blocks_go_to_the_head_the_last_one_first(self) -> None:
        pool = BlockPool(5)
        taken = pool.allocate(4)
        assert taken is not None
        pool.free([taken[1], taken[3]])
        assert pool.free_ids == [3, 1, 4]
        pool.free([taken[0]])
        assert pool.free_ids == [0, 3, 1, 4]
        assert ids(pool.allocate(3)) == [0, 3, 1]

    def test_a_sequence_freed_in_reverse_is_taken_again_in_order(self) -> None:
        pool = BlockPool(5)
        table = pool.allocate(3)
        assert table is not None
        pool.free(reversed(table))
        assert pool.free_ids == [0, 1, 2, 3, 4]

    def test_sharing_a_free_block_takes_it_out_of_the_middle(self) -> None:
        pool = BlockPool(5)
        pool.share(pool.blocks[2])
        assert pool.free_ids == [0, 1, 3, 4]
        pool.share(pool.blocks[4])  # the last
        pool.share(pool.blocks[0])  # the first
        assert pool.free_ids == [1, 3]
        assert ids(pool.allocate(2)) == [1, 3]
        pool.check()

    def test_the_queue_alone_links_and_unlinks(self) -> None:
        blocks = [KVCacheBlock(i) for i in range(3)]
        queue = FreeBlockQueue(blocks[:2])
        queue.append(blocks[2])
        assert ids(list(queue)) == [0, 1, 2]
        queue.remove(blocks[1])
        queue.appendleft(blocks[1])
        assert (ids(list(queue)), queue.num_free) == ([1, 0, 2], 3)
        assert [queue.popleft().block_id for _ in range(3)] == [1, 0, 2]
        assert (list(queue), queue.num_free) == ([], 0)
        assert all(b.prev_free is None and b.next_free is None for b in blocks)

    def test_our_own_mistakes_are_noticed(self) -> None:
        queue = FreeBlockQueue([])
        with pytest.raises(AssertionError, match="no free block"):
            queue.popleft()
        block = KVCacheBlock(7)
        with pytest.raises(
            AssertionError, match=r"KVCacheBlock\(7, ref_cnt=0\) is not in the free"
        ):
            queue.remove(block)
        queue.append(block)
        with pytest.raises(AssertionError, match="is in the free list already"):
            queue.append(block)


class TestAllocation:
    def test_all_or_nothing(self) -> None:
        pool = BlockPool(3)
        assert pool.allocate(4) is None
        assert pool.free_ids == [0, 1, 2]
        assert ids(pool.allocate(3)) == [0, 1, 2]
        assert pool.allocate(1) is None
        assert pool.allocate(0) == []

    def test_a_block_is_free_when_its_last_owner_has_left(self) -> None:
        pool = BlockPool(2)
        (block,) = pool.allocate(1) or []
        pool.share(block)
        pool.share(block)
        assert block.ref_cnt == 3
        pool.free([block, block])
        assert (block.ref_cnt, pool.free_ids) == (1, [1])
        pool.free([block])
        assert (block.ref_cnt, pool.free_ids) == (0, [0, 1])

    def test_a_double_free_is_an_error(self) -> None:
        pool = BlockPool(2)
        (block,) = pool.allocate(1) or []
        pool.free([block])
        with pytest.raises(DoubleFreeError, match="block 0 is free already"):
            pool.free([block])
        assert pool.free_ids == [0, 1]
        with pytest.raises(DoubleFreeError, match="block 1"):
            pool.free([pool.blocks[1]])


class TestCheck:
    def test_a_block_that_is_owned_and_free(self) -> None:
        pool = BlockPool(2)
        pool.blocks[0].ref_cnt = 1
        with pytest.raises(AssertionError):
            pool.check()

    def test_a_block_that_is_lost(self) -> None:
        pool = BlockPool(2)
        (block,) = pool.allocate(1) or []
        block.ref_cnt = 0
        with pytest.raises(AssertionError):
            pool.check()


@given(actions=st.lists(st.tuples(st.sampled_from("asf"), st.integers(0, 9)), max_size=60))
def test_any_mix_equals_a_plain_list(actions: list[tuple[str, int]]) -> None:
    """The model: a Python list as the free list, and a dict of counts."""
    pool = BlockPool(6)
    free, counts = list(range(6)), dict.fromkeys(range(6), 0)
    for action, number in actions:
        block = pool.blocks[number % 6]
        if action == "a":
            taken = pool.allocate(number)
            if number > len(free):
                assert taken is None
                continue
            assert ids(taken) == free[:number]
            counts |= dict.fromkeys(free[:number], 1)
            del free[:number]
        elif action == "s":
            pool.share(block)
            counts[block.block_id] += 1
            if block.block_id in free:
                free.remove(block.block_id)
        elif counts[block.block_id]:
            pool.free([block])
            counts[block.block_id] -= 1
            if not counts[block.block_id]:
                free.insert(0, block.block_id)
        else:
            with pytest.raises(DoubleFreeError):
                pool.free([block])
        assert pool.free_ids == free
        assert {b.block_id: b.ref_cnt for b in pool.blocks} == counts
        pool.check()


def test_every_operation_costs_the_same_in_a_large_pool() -> None:
    def cost(num_blocks: int) -> int:
        pool = BlockPool(num_blocks)
        middle = pool.blocks[num_blocks // 2]

        def work() -> None:
            taken = pool.allocate(3)
            pool.share(middle)
            pool.free([*(taken or []), middle])

        return count_operations(work)

    assert cost(100_000) == cost(10)
