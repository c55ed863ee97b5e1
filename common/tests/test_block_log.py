"""What happened to blocks, in order, for as long as somebody reads it."""

from __future__ import annotations

from common.block_log import BlockLog
from common.step_record import BlockEvent


def test_events_come_out_once_and_in_order() -> None:
    log = BlockLog()
    log.add("alloc", [7, 3], 0)
    log.add("free", [], 0)
    log.add_copy(5, 1, source=3)
    log.add("evict", [2], None)
    assert log.drain() == (
        BlockEvent("alloc", 7, 0),
        BlockEvent("alloc", 3, 0),
        BlockEvent("copy", 5, 1, 3),
        BlockEvent("evict", 2),
    )
    assert log.drain() == ()


def test_without_a_reader_nothing_is_kept() -> None:
    log = BlockLog(is_kept=False)
    log.add("alloc", [7, 3], 0)
    log.add_copy(5, 1, source=3)
    assert log.drain() == ()
