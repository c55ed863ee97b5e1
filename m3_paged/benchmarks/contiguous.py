"""A contiguous first-fit allocator: what a KV pool without block tables would be."""

from __future__ import annotations

from bisect import bisect_left, insort


class ContiguousAllocator:
    """Hands out spans of neighbouring units; neighbours that are freed are joined again.

    Attributes:
        size: Units in all.
        num_free: Units in no span, wherever they are.
    """

    def __init__(self, size: int) -> None:
        """One free span of ``size`` units."""
        self.size = self.num_free = size
        self._free: list[tuple[int, int]] = [(0, size)]  # (start, length), by start
        self._held: dict[int, int] = {}

    def allocate(self, count: int) -> int | None:
        """The start of the first free span of ``count`` units; None where none is long enough."""
        for index, (start, length) in enumerate(self._free):
            if length >= count:
                rest = (start + count, length - count)
                self._free[index : index + 1] = [rest] if rest[1] else []
                self._held[start] = count
                self.num_free -= count
                return start
        return None

    def free(self, start: int) -> None:
        """Return the span that begins at ``start``."""
        count = self._held.pop(start)
        self.num_free += count
        at = bisect_left(self._free, (start, count))
        if at < len(self._free) and start + count == self._free[at][0]:
            count += self._free.pop(at)[1]
        if at and sum(self._free[at - 1]) == start:
            before, length = self._free.pop(at - 1)
            start, count = before, length + count
        insort(self._free, (start, count))

    @property
    def longest_free(self) -> int:
        """Units of the longest free span."""
        return max((length for _, length in self._free), default=0)
