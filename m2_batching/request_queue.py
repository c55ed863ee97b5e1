"""The waiting queue: who is admitted next. Every operation costs O(log n) or less.

Both queues put a preempted sequence back to where it was taken from, the front of its class.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from typing import Protocol

from common.request import Sequence


class RequestQueue(Protocol):
    """Sequences that wait for memory, in the order in which they will get it."""

    def push(self, sequence: Sequence) -> None:
        """Add a new arrival."""
        ...

    def push_front(self, sequence: Sequence) -> None:
        """Put back one that was preempted or found no room: it has waited its turn already."""
        ...

    def peek(self) -> Sequence:
        """The next one, left in the queue."""
        ...

    def pop(self) -> Sequence:
        """The next one, taken out."""
        ...

    def discard(self, sequence: Sequence) -> None:
        """Forget a sequence that has ended, in the middle of the queue or not in it at all."""
        ...

    def tick(self) -> None:
        """Count one engine step."""
        ...

    def __len__(self) -> int:
        """How many wait."""
        ...

    def __iter__(self) -> Iterator[Sequence]:
        """Those who wait, in order."""
        ...


class FCFSQueue:
    """First come, first served. An ordered dict, because an abort takes from the middle."""

    def __init__(self) -> None:
        self._items: OrderedDict[int, Sequence] = OrderedDict()

    def push(self, sequence: Sequence) -> None:
        """Add at the back."""
        self._items[sequence.seq_id] = sequence

    def push_front(self, sequence: Sequence) -> None:
        """Add at the front."""
        self._items[sequence.seq_id] = sequence
        self._items.move_to_end(sequence.seq_id, last=False)

    def peek(self) -> Sequence:
        """The first."""
        return next(iter(self._items.values()))

    def pop(self) -> Sequence:
        """Take the first."""
        return self._items.popitem(last=False)[1]

    def discard(self, sequence: Sequence) -> None:
        """Take one out of the middle."""
        self._items.pop(sequence.seq_id, None)

    def tick(self) -> None:
        """Age changes nothing here: the oldest is first already."""

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._items.values())


class PriorityQueue:
    """Smallest ``Request.priority`` first, and everybody's priority improves while they wait.

    With ageing, the priority at step t is ``priority − (t − arrival) / ageing_steps``. All who wait
    age at the same rate, so their order never changes: it is the order of ``priority ·
    ageing_steps + arrival``, a fixed number. A heap can hold it, and nobody's key is ever updated.
    Steps, not seconds, so that the same requests give the same trace.
    """

    def __init__(self, ageing_steps: int = 64) -> None:
        """Start at step 0.

        Args:
            ageing_steps: Steps of waiting that are worth one point of priority. A request of
                priority p waits at most about ``p · ageing_steps`` arrivals' worth of steps longer
                than one of priority 0.
        """
        assert ageing_steps >= 1
        self.ageing_steps = ageing_steps
        self._step = 0
        self._heap: list[tuple[int, int]] = []
        self._items: dict[int, Sequence] = {}
        self._keys: dict[int, int] = {}

    def push(self, sequence: Sequence) -> None:
        """Add with today's step as its arrival."""
        self._keys[sequence.seq_id] = sequence.request.priority * self.ageing_steps + self._step
        self.push_front(sequence)

    def push_front(self, sequence: Sequence) -> None:
        """Put back with the arrival it had: ahead of all who came later with its priority.

        A forked sequence was never pushed; it counts as arriving now.
        """
        now = sequence.request.priority * self.ageing_steps + self._step
        key = self._keys.setdefault(sequence.seq_id, now)
        self._items[sequence.seq_id] = sequence
        heapq.heappush(self._heap, (key, sequence.seq_id))

    def peek(self) -> Sequence:
        """The one with the smallest key; among equals, the first that arrived."""
        self._drop_removed()
        return self._items[self._heap[0][1]]

    def pop(self) -> Sequence:
        """Take that one."""
        self._drop_removed()
        return self._items.pop(heapq.heappop(self._heap)[1])

    def discard(self, sequence: Sequence) -> None:
        """Forget it and its arrival; its heap entry is dropped when it reaches the top."""
        self._items.pop(sequence.seq_id, None)
        self._keys.pop(sequence.seq_id, None)

    def tick(self) -> None:
        """One more step has passed for all who wait."""
        self._step += 1

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Sequence]:
        entries = sorted(entry for entry in self._heap if entry[1] in self._items)
        return (self._items[seq_id] for _, seq_id in entries)

    def _drop_removed(self) -> None:
        while self._heap and self._heap[0][1] not in self._items:
            heapq.heappop(self._heap)


def make_queue(policy: str) -> RequestQueue:
    """The queue of a policy, ``fcfs`` or ``priority``."""
    return PriorityQueue() if policy == "priority" else FCFSQueue()
