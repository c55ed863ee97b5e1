import pytest

from common.block_state import BlockState, BlockStateError
from common.step_record import BlockEvent


def state(*events: BlockEvent, num_blocks: int | None = 4) -> BlockState:
    result = BlockState(num_blocks)
    for event in events:
        result.apply(event)
    return result


alloc = BlockEvent("alloc", 0, 7)
cache = BlockEvent("cache", 0, 7)
free = BlockEvent("free", 0, 7)


def test_last_free_makes_a_free_block() -> None:
    shared = state(alloc, BlockEvent("share", 0, 8))
    assert shared.ref_count(0) == 2
    shared.apply(free)
    assert shared.owners == {0: [8]}
    shared.apply(BlockEvent("free", 0, 8))
    assert shared.owners == {}
    assert shared.tables == {}


def test_a_cached_block_outlives_its_owner_until_evicted() -> None:
    blocks = state(alloc, cache, free)
    assert blocks.cached == {0}
    blocks.apply(BlockEvent("hit", 0, 9))
    assert blocks.tables == {9: [0]}
    blocks.apply(BlockEvent("free", 0, 9))
    blocks.apply(BlockEvent("evict", 0))
    assert blocks.cached == set()


def test_copy_on_write_replaces_the_source_in_its_place() -> None:
    blocks = state(
        alloc,
        BlockEvent("alloc", 1, 7),
        BlockEvent("share", 0, 8),
        BlockEvent("copy", 2, 7, source=0),
    )
    assert blocks.tables == {7: [2, 1], 8: [0]}
    assert blocks.owners == {2: [7], 1: [7], 0: [8]}


def test_copy_at_a_fork_appends() -> None:
    blocks = state(alloc, BlockEvent("copy", 1, 8, source=0))
    assert blocks.tables == {7: [0], 8: [1]}


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([BlockEvent("alloc", 4, 7)], "block 4 is outside the pool of 4"),
        ([BlockEvent("alloc", -1, 7)], "block -1 is outside"),
        ([BlockEvent("alloc", 0)], "alloc of block 0 names no owner"),
        ([BlockEvent("alloc", 0, 7, source=1)], "alloc of block 0: source 1"),
        ([BlockEvent("copy", 0, 7)], "copy of block 0: source None"),
        ([BlockEvent("copy", 0, 7, source=9)], "block 9 is outside"),
        ([BlockEvent("copy", 0, 7, source=1)], "copies block 1, which holds nothing"),
        ([alloc, BlockEvent("alloc", 0, 8)], "block 0 is taken but belongs to [7]"),
        ([alloc, cache, free, alloc], "block 0 is taken while cached, without an evict"),
        ([BlockEvent("share", 0, 7)], "block 0 is shared but has no owner"),
        ([alloc, BlockEvent("share", 0, 7)], "sequence 7 already owns block 0"),
        ([alloc, BlockEvent("hit", 0, 8)], "block 0 is hit but not cached"),
        ([alloc, BlockEvent("free", 0, 8)], "sequence 8 frees block 0, which it does not own"),
        ([alloc, free, free], "sequence 7 frees block 0, which it does not own"),
        ([cache], "block 0 is cached by 7, which does not own it"),
        ([alloc, cache, BlockEvent("evict", 0)], "block 0 is evicted but owned"),
        ([BlockEvent("evict", 0)], "block 0 is evicted but not cached"),
    ],
)
def test_contradictions(events: list[BlockEvent], message: str) -> None:
    with pytest.raises(BlockStateError) as caught:
        state(*events)
    assert message in str(caught.value)


def test_a_pool_of_unknown_size_takes_any_block() -> None:
    assert state(BlockEvent("alloc", 999, 1), num_blocks=None).ref_count(999) == 1
