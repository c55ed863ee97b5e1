"""What is admitted and forked, as exact plans; what the cache is told; what a step costs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from common.request import Sequence, SequenceStatus
from common.step_record import BlockEvent
from m2_batching.plan import BlockCopy, ScheduledSequence, SchedulerOutput
from m2_batching.request_queue import FCFSQueue, PriorityQueue
from m2_batching.tests.helpers import (
    Counted,
    count_comparisons,
    count_operations,
    ids,
    make_sequence,
    stub_result,
)
from m3_paged.tests.fake_runner import samples
from m5_chunked.tests.helpers import Bench, HitManager, rows


class TestAdmission:
    def test_who_finishes_leaves_seat_and_blocks_to_the_next_step(self) -> None:
        bench = Bench(1)
        bench.add(make_sequence(0, 4, max_tokens=1))
        bench.add(make_sequence(1, 4))
        bench.step()
        plan = bench.scheduler.schedule()
        assert (plan.finished, ids(plan.new), plan.new[0].new_block_ids) == ((0,), [1], (0,))
        assert bench.scheduler.drain_events() == (
            BlockEvent("alloc", 0, 0),
            BlockEvent("free", 0, 0),
            BlockEvent("alloc", 0, 1),
        )

    def test_the_first_that_does_not_fit_ends_it(self) -> None:
        bench = Bench(4)
        for i, length in enumerate((8, 12, 1)):
            bench.add(make_sequence(i, length, max_tokens=2))
        assert ids(bench.step().new) == [0]
        assert ids(bench.scheduler.waiting) == [1, 2]

    def test_the_whole_prompt_must_fit_before_its_first_chunk_runs(self) -> None:
        """Three blocks are free, a chunk wants one, the prompt four: it would lose its chunks."""
        bench = Bench(5, budget=5)
        bench.add(make_sequence(0, 5, max_tokens=4))
        bench.add(make_sequence(1, 13, max_tokens=1))
        assert bench.steps(4) == [[(0, 0, 5, 1)], [(0, 5, 1, 1)], [(0, 6, 1, 1)], [(0, 7, 1, 1)]]
        assert bench.steps(3) == [[(1, 0, 5, 0)], [(1, 5, 5, 0)], [(1, 10, 3, 1)]]
        assert bench.scheduler.num_preemptions == 0

    def test_only_the_blocks_of_the_chunk_are_taken(self) -> None:
        bench = Bench(5, budget=5)
        bench.add(make_sequence(0, 20))
        assert [(bench.step(), bench.num_free)[1] for _ in range(4)] == [3, 2, 1, 0]

    def test_the_last_token_takes_no_block(self) -> None:
        """A sequence of k·bs + 1 tokens in all never computes the last one."""
        bench = Bench(1, budget=2)
        a = make_sequence(0, 3, max_tokens=2)
        bench.add(a)
        assert bench.run() == 3
        assert a.num_tokens == 5


class TestParallelSamples:
    def test_the_prompt_is_computed_once_in_chunks_but_for_its_last_token(self) -> None:
        """A prompt of 7 under a budget of 4: 4 + 2 once, the seventh by each."""
        bench = Bench(8, budget=4)
        a, b, c = samples(0, 3, 7)
        bench.add(a, b, c)
        assert bench.step() == SchedulerOutput(
            new=(ScheduledSequence(a, 0, 4, 7, (0,), num_sampled=0),)
        )
        assert bench.step() == SchedulerOutput(
            advanced=(ScheduledSequence(a, 4, 2, 7, (1,), 1, num_sampled=0),)
        )
        assert [s.num_output_tokens for s in (a, b, c)] == [0, 0, 0]
        assert bench.step() == SchedulerOutput(
            new=(
                ScheduledSequence(b, 6, 1, 7, (0, 3), forked_from=0),
                ScheduledSequence(c, 6, 1, 7, (0, 1), forked_from=0),
            ),
            advanced=(ScheduledSequence(a, 6, 1, 7, (2,), 1),),
            copies=(BlockCopy(1, 2), BlockCopy(1, 3)),
        )
        assert [s.num_output_tokens for s in (a, b, c)] == [1, 1, 1]
        # Position 7 still fits everybody's second block; position 8 opens one each.
        assert [i.new_block_ids for i in bench.step().advanced] == [(), (), ()]
        assert [i.new_block_ids for i in bench.step().advanced] == [(4,), (5,), (6,)]

    def test_they_fork_in_a_step_with_the_chunks_of_others(self) -> None:
        bench = Bench(40, budget=8)
        bench.add(make_sequence(0, 1))
        bench.add(*samples(1, 3, 4))
        bench.add(make_sequence(50, 9))
        assert bench.steps(4) == [
            [(0, 0, 1, 1), (10, 0, 3, 0), (50, 0, 4, 0)],
            [(0, 1, 1, 1), (10, 3, 1, 1), (11, 3, 1, 1), (12, 3, 1, 1), (50, 4, 4, 0)],
            [(0, 2, 1, 1), (10, 4, 1, 1), (11, 4, 1, 1), (12, 4, 1, 1), (50, 8, 1, 1)],
            [(i, start, 1, 1) for i, start in ((0, 3), (10, 5), (11, 5), (12, 5), (50, 9))],
        ]

    @pytest.mark.parametrize(("n", "prompt_len"), [(3, 2), (2, 5), (2, 9), (4, 8)])
    @pytest.mark.parametrize("budget", [4, 5, 1000])
    def test_each_gets_the_tokens_of_a_run_by_itself(
        self, n: int, prompt_len: int, budget: int
    ) -> None:
        bench = Bench(40, budget=budget)
        group = samples(0, n, prompt_len, max_tokens=6)
        bench.add(*group)
        bench.run()
        for sequence in group:
            alone = Bench(40)
            same = make_sequence(0, request=sequence.request, index=sequence.index)
            alone.add(same)
            alone.run()
            assert sequence.token_ids == same.token_ids
        assert bench.num_free == 40

    def test_their_seats_are_reserved_before_the_prompt_is_computed(self) -> None:
        bench = Bench(40, seqs=4)
        bench.add(make_sequence(0))
        bench.add(*samples(1, 3, 4))
        bench.add(make_sequence(30))
        assert ids(bench.step().new) == [0, 10]
        assert ids(bench.step().scheduled) == [0, 10, 11, 12]
        assert ids(bench.scheduler.waiting) == [30]

    def test_a_prompt_of_one_token_has_nothing_to_share(self) -> None:
        bench = Bench(8)
        bench.add(*samples(0, 3, 1))
        assert ids(bench.scheduler.waiting) == [0, 1, 2]
        plan = bench.step()
        assert [(i.seq_id, i.new_block_ids, i.forked_from) for i in plan.new] == [
            (0, (0,), None),
            (1, (1,), None),
            (2, (2,), None),
        ]

    def test_samples_beyond_the_budget_queue_as_sequences_of_their_own(self) -> None:
        """Two tokens a step are two seats: two samples share, the third computes by itself."""
        bench = Bench(8, budget=2)
        bench.add(*samples(0, 3, 3, max_tokens=2))
        assert bench.steps(5) == [
            [(0, 0, 2, 0)],
            [(0, 2, 1, 1), (1, 2, 1, 1)],
            [(0, 3, 1, 1), (1, 3, 1, 1)],
            [(2, 0, 2, 0)],
            [(2, 2, 1, 1)],
        ]
        bench.run()
        assert bench.num_free == 8

    def test_with_a_budget_of_one_nothing_is_shared(self) -> None:
        bench = Bench(8, budget=1)
        bench.add(*samples(0, 2, 2, max_tokens=1))
        plans = [bench.step() for _ in range(4)]
        assert [rows(plan) for plan in plans] == [
            [(0, 0, 1, 0)],
            [(0, 1, 1, 1)],
            [(1, 0, 1, 0)],
            [(1, 1, 1, 1)],
        ]
        assert {item.forked_from for plan in plans for item in plan.scheduled} == {None}

    def test_each_ends_on_its_own(self) -> None:
        bench = Bench(16, budget=4)
        a, b, c = samples(0, 3, 6, max_tokens=5)
        bench.add(a, b, c)
        bench.steps(2)
        bench.stop_now.add(1)
        bench.step()
        assert (b.finish_reason, b.num_output_tokens) == ("stop", 1)
        bench.run()
        assert [s.num_output_tokens for s in (a, b, c)] == [5, 1, 5]
        assert bench.num_free == 16

    def test_no_room_for_a_fork_makes_it_wait_as_a_sequence_of_its_own(self) -> None:
        """Two blocks hold the prompt; nobody has heard of the sample that found no third."""
        bench = Bench(2, budget=4)
        a, b = samples(0, 2, 7, max_tokens=1)
        bench.add(a, b)
        bench.add(make_sequence(50, 1, max_tokens=1))
        bench.steps(2)
        plan = bench.step()
        # One leaves, so the other writes the partial block in place.
        assert (ids(plan.advanced), ids(plan.new), plan.copies) == ([0], [], ())
        assert plan.preempted == ()
        assert (b.status, ids(bench.scheduler.waiting)) == (SequenceStatus.PREEMPTED, [1, 50])
        assert bench.published.take()[-1] == (0, 7)
        assert bench.steps(2) == [[(1, 0, 4, 0)], [(1, 4, 3, 1)]]
        bench.run()
        assert bench.num_free == 2


class TestPublishing:
    """The cache is told once of each slice, when no preemption can take its place any more."""

    def test_running_ones_when_they_are_served_and_new_ones_at_admission(self) -> None:
        bench = Bench(40, budget=8)
        bench.add(make_sequence(0, 2))
        bench.add(make_sequence(1, 14))
        bench.add(make_sequence(2, 3))
        notes = []
        for _ in range(3):
            bench.step()
            notes.append(bench.published.take())
        assert notes == [
            [(0, 2), (1, 6)],
            [(0, 3), (1, 13)],
            [(0, 4), (1, 14), (2, 3)],
        ]

    def test_never_for_a_victim(self) -> None:
        bench = Bench(4)
        for i in range(3):
            bench.add(make_sequence(i, 4))
        bench.step()
        bench.published.take()
        plan = bench.step()
        assert plan.preempted == (2,)
        assert bench.published.take() == [(0, 5), (1, 5)]

    def test_nor_for_one_that_makes_way_to_a_more_important_prompt(self) -> None:
        bench = Bench(4, queue=PriorityQueue())
        bench.add(make_sequence(0, 4, priority=0, max_tokens=9))
        bench.add(make_sequence(1, 7, priority=2))
        bench.step()
        bench.published.take()
        bench.add(make_sequence(2, 8, priority=1))
        plan = bench.step()
        assert (plan.preempted, ids(plan.new)) == ((1,), [2])
        assert bench.published.take() == [(0, 5), (2, 8)]

    def test_a_scheduler_without_a_prefix_cache_tells_nobody(self) -> None:
        bench = Bench(8)
        bench.scheduler._prefix_cache = None
        bench.add(make_sequence(0, 4, max_tokens=2))
        bench.run()
        assert bench.published.take() == []


class TestPrefixHits:
    """M6's manager answers ``match_prefix``; here one that knows blocks 0 and 1."""

    def bench(self, num_blocks: int = 8, **more: object) -> tuple[Bench, HitManager]:
        bench = Bench(num_blocks, hits=(0, 1), **more)  # type: ignore[arg-type]
        manager = bench.manager
        assert isinstance(manager, HitManager)
        return bench, manager

    def test_a_sequence_begins_where_the_hits_end(self) -> None:
        bench, _ = self.bench(budget=3)
        bench.add(make_sequence(0, 13))
        plan = bench.scheduler.schedule()
        assert [(i.start, i.num_tokens, i.new_block_ids) for i in plan.new] == [(8, 3, (0, 1, 2))]
        plan = bench.scheduler.schedule()
        assert rows(plan) == [(0, 11, 2, 1)]

    def test_one_look_up_per_attempt_and_the_same_numbers_when_blocks_are_taken(self) -> None:
        bench, manager = self.bench(budget=9, seqs=2)
        for i in range(3):
            bench.add(make_sequence(i, 12))
        bench.scheduler.schedule()
        assert manager.calls == [
            ("match", 0),
            ("allocate", 0, 8, 4),
            ("publish", 0, 12),
            ("match", 1),
            ("allocate", 1, 8, 4),
            ("publish", 1, 12),
        ]  # a token is left for the third, but no seat: nobody looks it up

    def test_one_look_up_however_many_it_outranks(self) -> None:
        bench, manager = self.bench(num_blocks=9, queue=PriorityQueue())
        for i in range(3):
            bench.add(make_sequence(i, 12, priority=1))
        bench.scheduler.schedule()
        for sequence in bench.scheduler.running:
            sequence.append(0, 0.0)
        manager.calls.clear()
        bench.add(make_sequence(3, 37, priority=0))
        plan = bench.scheduler.schedule()  # not even the whole pool would do
        assert [call for call in manager.calls if call[0] == "match"] == [("match", 3)]
        assert (plan.preempted, ids(plan.advanced), ids(plan.new)) == ((), [0, 1, 2], [])

    def test_victims_go_between_the_look_up_and_the_taking(self) -> None:
        bench, manager = self.bench(num_blocks=4, queue=PriorityQueue())
        low, high = make_sequence(0, 15, priority=1), make_sequence(1, 12, priority=0)
        bench.add(low)
        bench.scheduler.schedule()
        low.append(0, 0.0)
        manager.calls.clear()
        bench.add(high)
        plan = bench.scheduler.schedule()
        assert (plan.preempted, rows(plan)) == ((0,), [(1, 8, 4, 1)])
        assert manager.calls == [
            ("match", 1),
            ("free", 0),
            ("allocate", 1, 8, 4),
            ("publish", 1, 12),
        ]

    @pytest.mark.parametrize(("prompt_len", "fits"), [(12, True), (16, True), (17, False)])
    def test_free_hits_are_not_free_blocks(self, prompt_len: int, fits: bool) -> None:
        """Four blocks are free, two of them are the hits: two more make 16 tokens."""
        bench, manager = self.bench(num_blocks=4)
        bench.add(make_sequence(0, prompt_len))
        assert bool(bench.scheduler.schedule().new) == fits
        manager.check()

    @pytest.mark.parametrize(("prompt_len", "fits"), [(12, True), (13, False)])
    def test_hits_that_somebody_owns_need_no_free_block(self, prompt_len: int, fits: bool) -> None:
        """Three of four blocks are taken, two of them are the hits: one more makes 12 tokens."""
        bench, manager = self.bench(num_blocks=4)
        bench.add(make_sequence(0, 12))
        bench.add(make_sequence(1, prompt_len))
        assert ids(bench.scheduler.schedule().new) == ([0, 1] if fits else [0])
        manager.check()

    def test_hits_that_a_victim_owns_give_nothing(self) -> None:
        """The victim holds four of five blocks, two of them hits: three are left besides them."""
        for prompt_len, victims in ((20, (0,)), (21, ())):
            bench, _ = self.bench(num_blocks=5, queue=PriorityQueue())
            low = make_sequence(0, 15, priority=1)
            bench.add(low)
            bench.scheduler.schedule()
            low.append(0, 0.0)
            bench.add(make_sequence(1, prompt_len, priority=0))
            assert bench.scheduler.schedule().preempted == victims

    def test_a_failed_attempt_leaves_no_trace(self) -> None:
        bench, manager = self.bench(num_blocks=4)
        a = make_sequence(0, 17)
        bench.add(a)
        bench.scheduler.schedule()
        assert (a.num_computed_tokens, a.status) == (0, SequenceStatus.WAITING)
        assert (manager.calls, bench.num_free) == ([("match", 0)], 4)
        assert ids(bench.scheduler.waiting) == [0]

    def test_samples_whose_prompt_is_cached_but_for_one_token_begin_by_themselves(self) -> None:
        """Nothing is left to compute once, so nothing is forked."""
        bench, _ = self.bench(num_blocks=9, seqs=4)
        bench.add(*samples(0, 3, 9))
        bench.add(make_sequence(50, 10))
        plan = bench.scheduler.schedule()
        assert rows(plan) == [(0, 8, 1, 1), (1, 8, 1, 1), (2, 8, 1, 1), (50, 8, 2, 1)]
        assert [item.forked_from for item in plan.new] == [None] * 4
        assert ids(plan.new) == [0, 1, 2, 50]

    def test_with_two_tokens_left_the_first_computes_one_and_they_fork(self) -> None:
        bench, _ = self.bench()
        bench.add(*samples(0, 2, 10))
        assert rows(bench.scheduler.schedule()) == [(0, 8, 1, 0)]
        assert rows(bench.scheduler.schedule()) == [(0, 9, 1, 1), (1, 9, 1, 1)]


class Unread(FCFSQueue):
    """A queue that nobody may read through."""

    def __iter__(self) -> Iterator[Sequence]:
        raise AssertionError("a step looks at everybody who waits")


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_a_step_costs_the_same_whatever_the_number_waiting(policy: str) -> None:
    """255 decodes and a prompt in chunks, seats full: 10,000 waiting at most 1.5 × of 100."""

    def cost(waiting: int) -> tuple[int, int]:
        queue = Unread() if policy == "fcfs" else PriorityQueue()
        bench = Bench(256 * 2 + 100, seqs=256, budget=300, queue=queue)
        for i in range(255):
            bench.add(make_sequence(i, 1, priority=Counted(0)))
        running_step(bench)
        bench.add(make_sequence(255, 400, priority=Counted(0)))
        for i in range(256, 256 + waiting):
            bench.add(make_sequence(i, 4, priority=Counted(i % 3)))
        scheduler = bench.scheduler
        running_step(bench)
        assert len(scheduler.running) == 256
        assert len(scheduler.waiting) == waiting

        def work() -> None:
            running_step(bench)  # a chunk of 45
            scheduler.abort(scheduler.running[3])
            running_step(bench)  # one leaves; the chunk has the budget, nobody begins
            scheduler.abort(scheduler.running[-1])
            running_step(bench)  # two are admitted
            running_step(bench)

        done = count_operations(work)
        assert len(scheduler.waiting) == waiting - 2
        for sequence in scheduler.running[:100]:
            scheduler.abort(sequence)
        return done, count_comparisons(work)

    few, many = cost(100), cost(10_000)
    assert few[0] > 256
    assert many[0] <= 1.5 * few[0]
    assert many[1] <= 1.5 * few[1] + 100 * 4 * 14, "beyond what a heap of 10,000 costs"


def running_step(bench: Bench) -> None:
    """A step without the fake runner, which is no part of the cost."""
    plan = bench.scheduler.schedule()
    bench.scheduler.update(plan, stub_result(plan), 0.0)
