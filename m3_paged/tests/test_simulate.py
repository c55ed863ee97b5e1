"""The schedulers without a model, by hand: who holds how many places after each step."""

from __future__ import annotations

import pytest

from common.workload import Workload, fixed
from m3_paged.benchmarks import memory_use, simulate
from m3_paged.benchmarks.simulate import Usage


def requests(*lengths: tuple[int, int]) -> Workload:
    """One request for each length of a prompt and of an output."""
    each = (fixed(1, prompt, output).requests for prompt, output in lengths)
    return Workload("by hand", 0, tuple(request for (request,) in each))


class TestSimulation:
    def test_slots_belong_to_a_sequence_as_a_whole(self) -> None:
        """One slot of 16: the second request waits until the first has finished."""
        scheduler = simulate.slot_scheduler(1, 16, 100)
        simulate.add_all(scheduler, requests((3, 3), (5, 2)))
        assert list(simulate.run(scheduler, lambda _: 16, 16)) == [
            Usage(1, 1, 3, 16, 16),
            Usage(1, 1, 4, 16, 16),
            Usage(0, 1, 0, 0, 16),
            Usage(1, 0, 5, 16, 16),
            Usage(0, 0, 0, 0, 16),
        ]

    def test_blocks_follow_the_tokens(self) -> None:
        """Blocks of 4: three tokens have one, the fifth takes a second; the last step frees."""
        scheduler = simulate.block_scheduler(4, 4, 16, 100, 8)
        simulate.add_all(scheduler, requests((3, 4), (4, 3)))
        blocks = scheduler.manager.num_blocks
        assert list(simulate.run(scheduler, lambda s: 4 * blocks(s), 16)) == [
            Usage(2, 0, 7, 8, 16),
            Usage(2, 0, 9, 12, 16),
            Usage(1, 0, 5, 8, 16),
            Usage(0, 0, 0, 0, 16),
        ]
        assert scheduler.manager.pool.num_free == 4

    def test_the_longest_sequence_ends_it(self) -> None:
        scheduler = simulate.slot_scheduler(1, 8, 100)
        (sequence,) = simulate.add_all(scheduler, requests((5, 100)))
        assert len(list(simulate.run(scheduler, lambda _: 8, 8))) == 3
        assert sequence.num_tokens == 8


def test_waste_by_hand() -> None:
    """Only the first two of four steps count: in the others nobody waits, or nobody runs."""
    steps = [
        Usage(running=2, waiting=1, stored=6, allocated=8, total=20),
        Usage(running=4, waiting=3, stored=15, allocated=20, total=20),
        Usage(running=1, waiting=0, stored=1, allocated=4, total=20),
        Usage(running=0, waiting=1, stored=0, allocated=0, total=20),
    ]
    rows = memory_use._usage_rows("m3_paged", 4, steps, places=20)
    assert {row["metric"]: row["median"] for row in rows} == {
        "stored_of_allocated": 0.75,
        "stored_of_pool": pytest.approx((6 / 20 + 15 / 20) / 2),
        "running": 3,
        "unused_per_sequence": pytest.approx((2 / 2 + 5 / 4) / 2),
        "steps": 4,
    }
    assert all((row["engine"], row["block_size"]) == ("m3_paged", 4) for row in rows)


def test_only_the_contiguous_pool_refuses_what_would_fit() -> None:
    rows = memory_use.fragmentation_rows(2000)
    value = {(row["engine"], row["metric"]): row["median"] for row in rows}
    assert value["m3_paged", "refused_although_free"] == 0
    assert 0 < value["contiguous", "refused_although_free"] < 1
    assert all(0 < value[name, "fitting_requests"] <= 2000 for name in ("m3_paged", "contiguous"))
    assert rows == memory_use.fragmentation_rows(2000), "the same on every machine"


def test_the_first_request_fits_both() -> None:
    rows = memory_use.fragmentation_rows(1)
    assert [row["median"] for row in rows] == [1, 0, 1, 0]
