"""Block tables: exact counts, copy on write, and nothing changed where something is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.request import Sequence
from common.step_record import BlockEvent
from m2_batching.plan import BlockCopy
from m2_batching.tests.helpers import make_sequence
from m3_paged.kv_cache_manager import KVCacheManager

SIZE = 4


def grown(manager: KVCacheManager, seq_id: int, num_tokens: int) -> Sequence:
    """A sequence that has computed ``num_tokens``."""
    sequence = make_sequence(seq_id, num_tokens)
    assert manager.allocate_slots(sequence, num_tokens) == []
    sequence.num_computed_tokens = num_tokens
    return sequence


def forked(manager: KVCacheManager, parent: Sequence, seq_id: int) -> Sequence:
    child = make_sequence(seq_id, parent.num_prompt_tokens)
    manager.fork(parent, child)
    child.num_computed_tokens = parent.num_computed_tokens
    return child


class TestCounts:
    @pytest.mark.parametrize(
        ("num_tokens", "blocks"), [(1, 1), (3, 1), (4, 1), (5, 2), (7, 2), (8, 2), (9, 3)]
    )
    def test_a_prompt_takes_exactly_what_it_fills(self, num_tokens: int, blocks: int) -> None:
        manager = KVCacheManager(8, SIZE)
        sequence = grown(manager, 0, num_tokens)
        assert manager.num_blocks(sequence) == manager.blocks_for(num_tokens) == blocks
        assert manager.block_ids(sequence) == tuple(range(blocks))

    def test_a_block_is_taken_for_the_token_that_needs_it(self) -> None:
        """Positions k·bs − 1, k·bs and k·bs + 1: only the middle one opens a block."""
        manager = KVCacheManager(8, SIZE)
        sequence = grown(manager, 0, 1)
        lengths = []
        for position in range(1, 10):
            assert manager.allocate_slots(sequence, 1) == []
            sequence.num_computed_tokens = position + 1
            lengths.append(manager.num_blocks(sequence))
        assert lengths == [1, 1, 1, 2, 2, 2, 2, 3, 3]

    @given(steps=st.lists(st.integers(1, 11), min_size=1, max_size=8), size=st.integers(1, 7))
    def test_any_chunks_end_with_the_blocks_of_the_whole(self, steps: list[int], size: int) -> None:
        manager = KVCacheManager(100, size)
        sequence = make_sequence(0, sum(steps))
        for count in steps:
            assert manager.allocate_slots(sequence, count) == []
            sequence.num_computed_tokens += count
            assert manager.num_blocks(sequence) == -(-sequence.num_computed_tokens // size)
        manager.check()

    def test_nothing_is_known_before_m6(self) -> None:
        assert KVCacheManager(4, SIZE).match_prefix(make_sequence(0)) == 0

    def test_a_stranger_has_no_blocks(self) -> None:
        manager, sequence = KVCacheManager(4, SIZE), make_sequence(0)
        assert (manager.block_ids(sequence), manager.num_blocks(sequence)) == ((), 0)
        manager.free(sequence)
        assert manager.drain_events() == ()

    def test_the_table_from_an_entry_on(self) -> None:
        manager = KVCacheManager(4, SIZE)
        sequence = grown(manager, 0, 11)
        assert [manager.block_ids(sequence, since) for since in (0, 2, 3)] == [(0, 1, 2), (2,), ()]


class TestAllOrNothing:
    def test_a_refusal_changes_nothing(self) -> None:
        manager = KVCacheManager(3, SIZE)
        a = grown(manager, 0, 8)
        manager.drain_events()
        b = make_sequence(1, 5)
        assert manager.allocate_slots(b, 5) is None
        assert manager.num_blocks(b) == 0
        assert manager.allocate_slots(a, 5) is None
        assert manager.block_ids(a) == (0, 1)
        assert manager.pool.free_ids == [2]
        assert manager.drain_events() == ()
        manager.check()
        assert manager.allocate_slots(a, 4) == []

    def test_copies_count_like_new_blocks(self) -> None:
        """Writing into a shared partial block and one more needs two; one is free."""
        manager = KVCacheManager(3, SIZE)
        parent = grown(manager, 0, 7)
        child = forked(manager, parent, 1)
        assert manager.allocate_slots(child, 2) is None
        assert manager.block_ids(child) == (0, 1)
        assert [b.ref_cnt for b in manager.pool.blocks] == [2, 2, 0]
        assert manager.allocate_slots(child, 1) == [BlockCopy(1, 2)]


class TestFork:
    def test_a_child_has_the_same_blocks(self) -> None:
        manager = KVCacheManager(4, SIZE)
        parent = grown(manager, 0, 6)
        child = forked(manager, parent, 1)
        assert manager.block_ids(child) == manager.block_ids(parent) == (0, 1)
        assert [b.ref_cnt for b in manager.pool.blocks] == [2, 2, 0, 0]
        manager.check()
        with pytest.raises(AssertionError, match="sequence 1 has a table"):
            manager.fork(parent, child)

    def test_a_full_shared_block_is_never_copied(self) -> None:
        manager = KVCacheManager(4, SIZE)
        parent = grown(manager, 0, 8)
        child = forked(manager, parent, 1)
        assert manager.allocate_slots(parent, 1) == []
        assert manager.allocate_slots(child, 1) == []
        assert manager.block_ids(parent) == (0, 1, 2)
        assert manager.block_ids(child) == (0, 1, 3)

    def test_every_sharer_but_the_last_copies_the_partial_block(self) -> None:
        manager = KVCacheManager(6, SIZE)
        parent = grown(manager, 0, 6)
        children = [forked(manager, parent, i) for i in (1, 2)]
        assert manager.pool.blocks[1].ref_cnt == 3
        assert manager.allocate_slots(parent, 1) == [BlockCopy(1, 2)]
        assert manager.allocate_slots(children[0], 1) == [BlockCopy(1, 3)]
        assert manager.allocate_slots(children[1], 1) == []  # it writes in place
        tables = [manager.block_ids(s) for s in (parent, *children)]
        assert tables == [(0, 2), (0, 3), (0, 1)]
        manager.check()

    def test_a_sharer_that_leaves_spares_the_last_one_its_copy(self) -> None:
        manager = KVCacheManager(4, SIZE)
        parent = grown(manager, 0, 6)
        child = forked(manager, parent, 1)
        manager.free(parent)
        assert manager.pool.free_ids == [2, 3]
        assert manager.allocate_slots(child, 1) == []
        assert manager.block_ids(child) == (0, 1)

    def test_a_write_over_several_shared_blocks_copies_each(self) -> None:
        manager = KVCacheManager(8, SIZE)
        parent = grown(manager, 0, 12)
        child = forked(manager, parent, 1)
        child.num_computed_tokens = 6
        assert manager.allocate_slots(child, 7) == [BlockCopy(1, 3), BlockCopy(2, 4)]
        assert manager.block_ids(child) == (0, 3, 4, 5)


class TestFree:
    def test_the_first_block_of_a_sequence_is_the_next_one_taken(self) -> None:
        manager = KVCacheManager(6, SIZE)
        a, b = grown(manager, 0, 9), grown(manager, 1, 5)
        manager.free(a)
        assert manager.pool.free_ids == [0, 1, 2, 5]
        manager.free(b)
        assert manager.pool.free_ids == [3, 4, 0, 1, 2, 5]
        manager.free(b)  # it has none any more
        assert manager.pool.num_free == 6

    def test_shared_blocks_stay_with_their_other_owner(self) -> None:
        manager = KVCacheManager(4, SIZE)
        parent = grown(manager, 0, 6)
        child = forked(manager, parent, 1)
        assert manager.allocate_slots(child, 1) == [BlockCopy(1, 2)]
        manager.free(child)
        assert manager.pool.free_ids == [2, 3]
        manager.free(parent)
        assert manager.pool.free_ids == [0, 1, 2, 3]


def test_events_tell_every_change_in_order() -> None:
    manager = KVCacheManager(4, SIZE)
    parent = grown(manager, 0, 6)
    child = forked(manager, parent, 1)
    manager.allocate_slots(child, 1)
    manager.free(parent)
    assert manager.drain_events() == (
        BlockEvent("alloc", 0, 0),
        BlockEvent("alloc", 1, 0),
        BlockEvent("share", 0, 1),
        BlockEvent("share", 1, 1),
        BlockEvent("copy", 2, 1, source=1),
        BlockEvent("free", 1, 0),
        BlockEvent("free", 0, 0),
    )
    assert manager.drain_events() == ()


def test_check_notices_a_count_that_no_table_explains() -> None:
    manager = KVCacheManager(2, SIZE)
    grown(manager, 0, 1)
    manager.pool.share(manager.pool.blocks[0])
    with pytest.raises(AssertionError):
        manager.check()
