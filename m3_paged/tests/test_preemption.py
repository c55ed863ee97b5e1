"""Who loses blocks, to whom, and where they go: preemption, priorities, aborts."""

from __future__ import annotations

import pytest

from common.request import SequenceStatus
from m2_batching.plan import SchedulerOutput
from m2_batching.request_queue import PriorityQueue
from m2_batching.tests.helpers import ids, make_sequence
from m3_paged.tests.fake_runner import Bench, samples


class TestPreemption:
    def test_the_last_that_arrived_gives_its_blocks_and_comes_back_first(self) -> None:
        bench = Bench(4)
        a, b, c = (make_sequence(i, 4) for i in range(3))
        for sequence in (a, b, c):
            bench.add(sequence)
        bench.add(make_sequence(3, 16))
        assert ids(bench.step().new) == [0, 1, 2]
        plan = bench.step()  # three want a second block, one is free
        assert (plan.preempted, ids(plan.advanced)) == ((2,), [0, 1])
        assert [i.new_block_ids for i in plan.advanced] == [(3,), (2,)]
        assert (c.status, c.num_computed_tokens, c.num_tokens) == (SequenceStatus.PREEMPTED, 0, 5)
        assert ids(bench.scheduler.waiting) == [2, 3]
        assert bench.scheduler.num_preemptions == 1

    def test_tokens_that_were_generated_are_computed_again(self) -> None:
        bench = Bench(3)
        a, b = make_sequence(0, 4, max_tokens=5), make_sequence(1, 4, max_tokens=5)
        bench.add(a)
        bench.add(b)
        bench.step()
        assert bench.step().preempted == (1,)
        for _ in range(3):
            assert ids(bench.step().advanced) == [0]
        assert a.is_finished
        plan = bench.step()
        assert [(i.seq_id, i.start, i.num_tokens) for i in plan.new] == [(1, 0, 5)]
        bench.run()
        assert b.num_output_tokens == 5

    def test_several_victims_return_in_their_order(self) -> None:
        bench = Bench(6)
        sequences = [make_sequence(i, n) for i, n in enumerate((4, 4, 3, 3, 3, 3))]
        for sequence in sequences:
            bench.add(sequence)
        bench.step()
        plan = bench.step()
        assert (plan.preempted, ids(plan.advanced)) == ((5, 4), [0, 1, 2, 3])
        assert ids(bench.scheduler.waiting) == [4, 5]

    def test_the_most_important_always_goes_on(self) -> None:
        bench = Bench(3)
        for i in range(3):
            bench.add(make_sequence(i, 4, max_tokens=8))
        bench.step()
        for _ in range(7):
            assert ids(bench.step().scheduled)[0] == 0
        bench.run()

    def test_alone_it_preempts_itself(self) -> None:
        """Only an engine without entry checks comes here; it asks for more than the pool."""
        bench = Bench(1)
        a = make_sequence(0, 4)
        bench.add(a)
        bench.step()
        plan = bench.step()
        assert plan == SchedulerOutput(preempted=(0,))
        assert (a.status, bench.num_free) == (SequenceStatus.PREEMPTED, 1)
        assert ids(bench.scheduler.waiting) == [0]

    def test_alone_with_a_pool_of_its_length_it_ends(self) -> None:
        bench = Bench(3)
        a = make_sequence(0, 11, max_tokens=2)
        bench.add(a)
        bench.run()
        assert (a.num_tokens, bench.scheduler.num_preemptions) == (13, 0)


class TestPriority:
    def test_a_more_important_prompt_takes_blocks_from_the_least_important(self) -> None:
        bench = Bench(4, queue=PriorityQueue())
        for i, priority in enumerate((2, 3, 1)):
            bench.add(make_sequence(i, 3, priority=priority))
            bench.step()
        bench.add(make_sequence(3, 8, priority=0))
        plan = bench.step()
        assert (plan.preempted, ids(plan.new)) == ((1,), [3])
        assert ids(bench.scheduler.running) == [3, 2, 0]

    def test_an_equal_one_waits(self) -> None:
        bench = Bench(1, queue=PriorityQueue())
        bench.add(make_sequence(0, 1, priority=1))
        bench.step()
        bench.add(make_sequence(1, 1, priority=1))
        assert ids(bench.step().advanced) == [0]

    def test_who_was_admitted_in_this_step_keeps_its_blocks(self) -> None:
        """It aged to the front of the queue; the next one is more important, but it is too late."""
        bench = Bench(4, queue=PriorityQueue(ageing_steps=1))
        blocker = make_sequence(0, 13, max_tokens=3)
        bench.add(blocker)
        bench.step()
        low = make_sequence(1, 8, priority=1)
        bench.add(low)
        bench.step()
        bench.step()
        assert blocker.is_finished
        bench.add(make_sequence(2, 12, priority=0))
        assert ids(bench.scheduler.waiting) == [1, 2]
        plan = bench.step()
        assert (plan.preempted, ids(plan.new)) == ((), [1])
        plan = bench.step()
        assert (plan.preempted, ids(plan.new)) == ((1,), [2])

    @pytest.mark.parametrize(
        ("prompt_len", "n", "victims"),
        [(5, 1, (2,)), (8, 1, (2,)), (9, 1, (2, 1)), (13, 1, ()), (2, 3, (2, 1)), (2, 4, ())],
        ids=str,
    )
    def test_nobody_is_preempted_in_vain(
        self, prompt_len: int, n: int, victims: tuple[int, ...]
    ) -> None:
        """One block and one seat are free; two sequences can give one more of each, no more."""
        bench = Bench(5, seqs=4, queue=PriorityQueue())
        bench.add(make_sequence(0, 8, priority=0, max_tokens=1000))
        bench.step()
        for i in (1, 2):
            bench.add(make_sequence(i, 2, priority=2))
            bench.step()
        assert bench.num_free == 1
        bench.add(*samples(3, n, prompt_len, priority=1))
        plan = bench.scheduler.schedule()
        assert plan.preempted == victims
        assert ids(plan.new) == ([30] if victims else [])

    def test_a_parent_gives_the_seats_of_its_samples_too(self) -> None:
        bench = Bench(9, seqs=4, queue=PriorityQueue())
        bench.add(*samples(1, 3, 7, priority=1, max_tokens=1))
        bench.step()
        bench.add(*samples(0, 3, 7, max_tokens=1))
        plan = bench.step()
        assert (plan.preempted, ids(plan.new)) == ((10,), [0])
        bench.run()
        assert bench.scheduler._seats_left() == 4

    def test_a_victim_that_would_fit_again_waits_for_the_next_step(self) -> None:
        """Two victims leave more than is needed, and the smaller one stands first by its age."""
        bench = Bench(8, queue=PriorityQueue(ageing_steps=1))
        bench.add(make_sequence(0, 1, priority=2))
        for _ in range(2):
            bench.step()
        bench.add(make_sequence(1, 15, priority=1))
        for _ in range(2):
            bench.step()
        assert bench.num_free == 3
        bench.add(make_sequence(2, 17, priority=0))
        plan = bench.step()
        assert (plan.preempted, ids(plan.new), bench.num_free) == ((0, 1), [2], 3)
        assert ids(bench.scheduler.waiting) == [0, 1]
        assert ids(bench.step().new) == [0]

    def test_a_block_that_two_victims_share_is_counted_once(self) -> None:
        bench = Bench(4, queue=PriorityQueue())
        bench.add(*samples(0, 2, 7, priority=1))
        bench.step()
        bench.step()
        assert [bench.manager.block_ids(s) for s in bench.scheduler.running] == [(0, 2), (0, 1)]
        bench.add(make_sequence(50, 13))
        assert bench.scheduler.schedule().preempted == (1, 0)
        one = Bench(3, queue=PriorityQueue())
        one.add(*samples(0, 2, 7, priority=1))
        one.step()
        one.step()
        one.add(make_sequence(50, 13))
        assert one.scheduler.schedule().preempted == ()

    def test_a_victim_that_has_aged_past_its_displacer_is_not_lost(self) -> None:
        bench = Bench(2, queue=PriorityQueue(ageing_steps=1))
        low = make_sequence(0, 1, priority=1, max_tokens=8)
        bench.add(low)
        for _ in range(3):
            bench.step()
        bench.add(make_sequence(1, 5, priority=0, max_tokens=1))
        plan = bench.step()
        assert (plan.preempted, ids(plan.new)) == ((0,), [1])
        assert ids(bench.scheduler.waiting) == [0]
        bench.run()
        assert low.num_output_tokens == 8


class TestAbort:
    def test_waiting_running_preempted_and_finished(self) -> None:
        bench = Bench(3)
        a, b, c = make_sequence(0, 4, max_tokens=9), make_sequence(1, 4), make_sequence(2, 4)
        for sequence in (a, b, c):
            bench.add(sequence)
        bench.step()
        bench.step()
        assert [s.status.value for s in (a, b, c)] == ["running", "preempted", "preempted"]
        for sequence in (b, a, c):
            bench.scheduler.abort(sequence)
        assert (bench.num_free, bench.scheduler.has_unfinished()) == (3, False)
        assert bench.step().finished == (1, 0, 2)
        bench.scheduler.abort(a)
        assert bench.step().finished == ()
        waiting = make_sequence(4)
        bench.add(waiting)
        bench.scheduler.abort(waiting)
        assert not bench.scheduler.has_unfinished()

    def test_a_step_in_flight(self) -> None:
        bench = Bench(2)
        a = make_sequence(0)
        bench.add(a)
        plan = bench.scheduler.schedule()
        result = bench.runner.run(plan)
        bench.scheduler.abort(a)
        assert bench.scheduler.update(plan, result, 0.0) == []
        assert (a.num_output_tokens, bench.num_free) == (0, 2)

    @pytest.mark.parametrize("steps", [0, 1, 2, 3], ids="after {} steps".format)
    def test_all_samples_of_a_request(self, steps: int) -> None:
        """Before the parent runs, before the fork, in the first step after it, and later."""
        bench = Bench(8)
        three = samples(0, 3, 7)
        bench.add(*three)
        for _ in range(steps):
            bench.step()
        for sequence in three:
            bench.scheduler.abort(sequence)
        assert (bench.num_free, bench.scheduler.has_unfinished()) == (8, False)
        assert {s.status for s in three} == {SequenceStatus.FINISHED_ABORTED}
        assert bench.step().finished == (0, 1, 2)
        bench.manager.check()
        assert bench.scheduler._seats_left() == 8

    def test_one_sample_leaves_the_others_their_blocks(self) -> None:
        bench = Bench(8)
        a, b, c = samples(0, 3, 7, max_tokens=4)
        bench.add(a, b, c)
        bench.step()
        bench.step()
        bench.scheduler.abort(b)
        bench.run()
        assert [s.num_output_tokens for s in (a, b, c)] == [4, 1, 4]
        assert bench.num_free == 8
