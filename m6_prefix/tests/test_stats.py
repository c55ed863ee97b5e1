"""Tokens queried and hit, blocks evicted: counts computed by hand."""

from __future__ import annotations

import gc

from m6_prefix.kv_cache_manager import KVCacheManager
from m6_prefix.prefix_stats import PrefixCounts
from m6_prefix.tests.helpers import SIZE, Bench, admit, advance, leave, sequence_of


class TestCounts:
    def test_a_rate_of_nothing_is_zero(self) -> None:
        assert PrefixCounts().hit_rate == 0.0

    def test_resumed_sequences_are_no_part_of_the_rate(self) -> None:
        counts = PrefixCounts()
        counts.add_query(10, 4, resumed=False)
        counts.add_query(30, 28, resumed=True)
        assert counts == PrefixCounts(1, 10, 4, 1, 30, 28)
        assert counts.hit_rate == 0.4


class TestWorkloads:
    def test_few_shot(self) -> None:
        """A common prompt of 10 tokens and questions of 5: two whole blocks of four are shared."""
        manager = KVCacheManager(40, SIZE)
        common = list(range(10))
        sequences = [sequence_of(i, [*common, *[100 + i] * 5]) for i in range(5)]
        assert [admit(manager, s) for s in sequences] == [0, 8, 8, 8, 8]
        assert manager.stats() == PrefixCounts(5, 75, 32)
        assert manager.stats().hit_rate == 32 / 75
        assert [manager.stats_of(s).hit_tokens for s in sequences] == [0, 8, 8, 8, 8]
        assert {manager.stats_of(s).queried_tokens for s in sequences} == {15}

    def test_multi_turn(self) -> None:
        """Turns of 6 tokens with answers of 5; a turn finds the whole blocks of all before it.

        Of each answer the last token is never computed: 10, 21 and 32 tokens have K and V.
        """
        manager = KVCacheManager(40, SIZE)
        history: list[int] = []
        hits = []
        for turn in range(4):
            history += [1000 + turn] * 6
            one = sequence_of(turn, history)
            hits.append(admit(manager, one))
            advance(manager, one, *[2000 + turn] * 4)
            leave(manager, one)
            history = [*one.token_ids, 3000 + turn]
        assert hits == [0, 8, 20, 32]
        assert manager.stats() == PrefixCounts(4, 6 + 17 + 28 + 39, 60)

    def test_nothing_shared(self) -> None:
        manager = KVCacheManager(40, SIZE)
        for number in range(4):
            admit(manager, sequence_of(number, [number] * 9))
        assert manager.stats() == PrefixCounts(4, 36, 0)
        assert manager.stats().hit_rate == 0.0


class TestWhoCounts:
    def test_waiting_for_room_is_one_query(self) -> None:
        manager = KVCacheManager(4, SIZE)
        big = sequence_of(0, range(12))
        admit(manager, big)
        waits = sequence_of(1, [*range(8), 50, 51, 52, 53, 54])
        for _ in range(5):
            waits.num_computed_tokens = manager.match_prefix(waits)
            assert manager.allocate_slots(waits, 5) is None
        assert manager.stats().num_queries == 1
        leave(manager, big)
        assert admit(manager, waits) == 8
        assert manager.stats() == PrefixCounts(2, 25, 8, evicted_blocks=1)
        assert manager.stats_of(waits) == PrefixCounts(1, 13, 8, evicted_blocks=1)
        assert manager.stats_of(big) == PrefixCounts(1, 12, 0)

    def test_a_resumed_sequence_is_counted_apart(self) -> None:
        manager = KVCacheManager(8, SIZE)
        a = sequence_of(0, range(6))
        admit(manager, a)
        advance(manager, a, 6, 7, 8)
        leave(manager, a)
        assert admit(manager, a) == 8
        expected = PrefixCounts(1, 6, 0, 1, 9, 8)
        assert manager.stats() == manager.stats_of(a) == expected
        assert manager.stats().hit_rate == 0.0

    def test_a_sample_that_was_forked_never_queried(self) -> None:
        manager = KVCacheManager(8, SIZE)
        parent, child = (sequence_of(i, range(9), n=2, index=i) for i in (0, 1))
        admit(manager, parent, 8)
        manager.fork(parent, child)
        child.num_computed_tokens = 8
        assert manager.stats_of(child) == PrefixCounts()
        leave(manager, child)
        admit(manager, child)
        assert manager.stats() == PrefixCounts(1, 9, 0, 1, 9, 8)

    def test_evictions_belong_to_whoever_takes_the_block(self) -> None:
        manager = KVCacheManager(4, SIZE, max_cached_blocks=3)
        for number in range(3):
            one = sequence_of(number, [number] * 4)
            admit(manager, one)
            leave(manager, one)
        grows = sequence_of(5, [50] * 3)
        admit(manager, grows)
        assert manager.stats_of(grows).evicted_blocks == 0
        advance(manager, grows, 51)  # its block is full: a fourth findable one
        assert manager.stats_of(grows).evicted_blocks == 1
        advance(manager, grows, 52)
        assert manager.stats_of(grows).evicted_blocks == 1, "it took the one that is blank now"
        advance(manager, grows, *[53] * 4)
        assert manager.stats_of(grows).evicted_blocks == 2
        leave(manager, grows)
        manager.reset_prefix_cache()
        assert manager.stats().evicted_blocks == 5

    def test_a_snapshot_does_not_change(self) -> None:
        manager = KVCacheManager(8, SIZE)
        a = sequence_of(0, range(6))
        before, own = manager.stats(), manager.stats_of(a)
        admit(manager, a)
        assert (before, own) == (PrefixCounts(), PrefixCounts())
        manager.stats_of(a).hit_tokens = 99
        assert manager.stats_of(a).hit_tokens == 0

    def test_nothing_is_kept_of_those_who_are_gone(self) -> None:
        manager = KVCacheManager(8, SIZE)
        for number in range(20):
            manager.match_prefix(sequence_of(number, range(9)))  # aborted while it waits
        gc.collect()
        assert len(manager._known._known) == 0


def test_the_trace_and_the_counts_agree() -> None:
    """Admissions carry the hits; the counts add them up."""
    bench = Bench(KVCacheManager(9, SIZE))
    for number in range(6):
        bench.add(sequence_of(number, [*range(10), number, number], max_tokens=4))
    bench.run()
    bench.trace.validate()
    admitted = [item for step in bench.trace for item in step.admitted]
    stats = bench.manager.stats()
    assert bench.scheduler.num_preemptions == stats.num_resumed == len(admitted) - 6
    assert sum(i.num_cached_tokens for i in admitted) == stats.hit_tokens + stats.resumed_hit_tokens
    evictions = [e for step in bench.trace for e in step.block_events if e.kind == "evict"]
    assert len(evictions) == stats.evicted_blocks > 0
    assert stats.num_resumed > 0
    assert (stats.queried_tokens, stats.hit_tokens) == (72, 40)
