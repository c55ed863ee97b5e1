"""Why blocks: whatever has happened, free memory is usable. A contiguous pool has no such luck."""

from __future__ import annotations

import random

from m2_batching.tests.helpers import make_sequence
from m3_paged.benchmarks.contiguous import ContiguousAllocator
from m3_paged.kv_cache_manager import KVCacheManager

BLOCKS, OPERATIONS = 400, 10_000


def test_ten_thousand_allocations_and_frees_leave_every_free_block_usable() -> None:
    """The same requests to both; lengths 1 to 40 blocks, ends in random order.

    A request is put to the paged pool whenever enough blocks are free in all, and it is never
    refused. The contiguous pool holds exactly the same requests, those it refused left out, so it
    has at least as much free; and it refuses.
    """
    rng = random.Random(0)
    manager, contiguous = KVCacheManager(BLOCKS, 1), ContiguousAllocator(BLOCKS)
    held: list[tuple[int, int | None]] = []
    refused = 0
    for number in range(OPERATIONS):
        count = rng.randint(1, 40)
        if manager.pool.num_free >= count and rng.random() < 0.6:
            assert manager.allocate_slots(make_sequence(number, count), count) == []
            assert contiguous.num_free >= count
            start = contiguous.allocate(count)
            refused += start is None
            held.append((number, start))
        elif held:
            number, start = held.pop(rng.randrange(len(held)))
            manager.free(make_sequence(number))
            if start is not None:
                contiguous.free(start)
    manager.check()
    free = manager.pool.num_free
    assert free > 0
    assert refused > 100, "requests for which enough was free, but not in one piece"
    assert contiguous.longest_free < contiguous.num_free
    for size in range(1, free + 1):  # whatever fits by count fits
        sequence = make_sequence(-size, size)
        assert manager.allocate_slots(sequence, size) == []
        manager.free(sequence)
    everything = make_sequence(-1, free)
    assert manager.allocate_slots(everything, free) == []
    assert manager.pool.num_free == 0
    assert manager.allocate_slots(make_sequence(-2, 1), 1) is None


class TestContiguous:
    def test_first_fit_and_joining_of_neighbours(self) -> None:
        pool = ContiguousAllocator(10)
        assert [pool.allocate(n) for n in (3, 3, 4)] == [0, 3, 6]
        assert pool.allocate(1) is None
        pool.free(0)
        pool.free(6)
        assert (pool.num_free, pool.longest_free) == (7, 4)
        assert pool.allocate(5) is None, "seven are free, but in two pieces"
        assert pool.allocate(2) == 0
        pool.free(3)
        assert (pool.num_free, pool.longest_free) == (8, 8)
        assert pool.allocate(8) == 2
        assert (pool.num_free, pool.longest_free) == (0, 0)
