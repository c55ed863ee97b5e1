"""Block events on their way from a cache manager to the trace."""

from __future__ import annotations

from collections.abc import Iterable

from common.step_record import BlockEvent, BlockEventKind


class BlockLog:
    """What happened to blocks since the last drain.

    Only a trace drains it. Without one nothing is kept: the events would never leave, and making
    one per block of a long prompt takes longer than giving the blocks away.

    Attributes:
        is_kept: Whether somebody will drain it.
    """

    def __init__(self, *, is_kept: bool = True) -> None:
        """Nothing has happened."""
        self.is_kept = is_kept
        self._events: list[BlockEvent] = []

    def add(self, kind: BlockEventKind, block_ids: Iterable[int], seq_id: int | None) -> None:
        """The same thing happened to some blocks, in this order.

        Args:
            kind: What happened; a copy has :meth:`add_copy`.
            block_ids: To whom.
            seq_id: The owner concerned; None for ``evict``.
        """
        if self.is_kept:
            self._events += [BlockEvent(kind, block_id, seq_id) for block_id in block_ids]

    def add_copy(self, block_id: int, seq_id: int, source: int) -> None:
        """A block took the place of ``source`` in a table, with its content."""
        if self.is_kept:
            self._events.append(BlockEvent("copy", block_id, seq_id, source))

    def drain(self) -> tuple[BlockEvent, ...]:
        """All of it, in order; then it is empty."""
        events, self._events = tuple(self._events), []
        return events
