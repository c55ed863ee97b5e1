"""Who loses blocks, to whom, and where they go: preemption, priorities, aborts."""

from __future__ import annotations

import pytest

from common.request import SequenceStatus
from m2_batching.plan import SchedulerOutput
from m2_batching.request_queue import PriorityQueue
from m2_batching.tests.helpers import ids, make_sequence
from m3_paged.tests.fake_runner import samples
from m5_chunked.tests.helpers import Bench, rows


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

    def test_in_the_middle_of_a_prefill_it_starts_again_at_0(self) -> None:
        """Two decodes grow into the blocks that a prompt in chunks was going to take."""
        bench = Bench(7, budget=6)
        a, b = make_sequence(0, 3, max_tokens=10), make_sequence(1, 3, max_tokens=10)
        c = make_sequence(2, 17, max_tokens=1)
        for sequence in (a, b, c):
            bench.add(sequence)
        assert bench.steps(1) == [[(0, 0, 3, 1), (1, 0, 3, 1)]]  # five blocks free, c needs five
        assert bench.steps(3) == [
            [(0, 3, 1, 1), (1, 3, 1, 1), (2, 0, 4, 0)],
            [(0, 4, 1, 1), (1, 4, 1, 1), (2, 4, 4, 0)],
            [(0, 5, 1, 1), (1, 5, 1, 1), (2, 8, 4, 0)],
        ]
        assert bench.num_free == 0
        plan = bench.step()  # its fourth chunk finds no block, and it is the last
        assert (plan.preempted, rows(plan)) == ((2,), [(0, 6, 1, 1), (1, 6, 1, 1)])
        assert (c.status, c.num_computed_tokens, c.num_tokens) == (SequenceStatus.PREEMPTED, 0, 17)
        assert c.num_output_tokens == 0
        while not a.is_finished:
            assert ids(bench.step().scheduled) == [0, 1]
        assert bench.steps(3) == [[(2, 0, 6, 0)], [(2, 6, 6, 0)], [(2, 12, 5, 1)]]
        assert c.is_finished

    def test_nobody_is_admitted_in_a_step_with_a_preemption(self) -> None:
        """The victim leaves two blocks, one too many, and a prompt of one token has to wait."""
        bench = Bench(4)
        a, b = make_sequence(0, 8), make_sequence(1, 8, max_tokens=20)
        bench.add(a)
        bench.add(b)
        bench.step()
        bench.add(make_sequence(2, 1))
        plan = bench.step()
        assert (plan.preempted, rows(plan)) == ((1,), [(0, 8, 1, 1)])
        assert bench.num_free == 1
        assert ids(bench.scheduler.waiting) == [1, 2]

    def test_a_fork_that_is_undone_lets_nobody_begin_either(self) -> None:
        bench = Bench(3)
        bench.add(*samples(0, 3, 9))
        bench.step()
        bench.add(make_sequence(50, 1))
        plan = bench.step()
        assert (ids(plan.scheduled), plan.preempted) == ([0], ())
        assert ids(bench.scheduler.waiting) == [1, 2, 50]

    def test_samples_stand_with_their_parent_before_those_who_came_later(self) -> None:
        """Its fork wants two blocks and one is free: the sequence behind it gives its own."""
        bench = Bench(6)
        bench.add(*samples(0, 2, 9))
        bench.add(make_sequence(50, 12))
        bench.step()
        plan = bench.step()
        assert (plan.preempted, rows(plan)) == ((50,), [(0, 8, 1, 1), (1, 8, 1, 1)])

    def test_several_victims_return_in_their_order(self) -> None:
        bench = Bench(6)
        sequences = [make_sequence(i, n) for i, n in enumerate((4, 4, 3, 3, 3, 3))]
        for sequence in sequences:
            bench.add(sequence)
        bench.step()
        plan = bench.step()
        assert (plan.preempted, ids(plan.advanced)) == ((5, 4), [0, 1, 2, 3])
        assert ids(bench.scheduler.waiting) == [4, 5]

    def test_a_chunk_takes_blocks_from_those_behind_it(self) -> None:
        """All or nothing: the second slice wants two blocks, so two sequences have to go."""
        bench = Bench(6, budget=15, threshold=8)
        for i, length in enumerate((16, 4, 3)):
            bench.add(make_sequence(i, length))
        assert bench.steps(1) == [[(0, 0, 8, 0), (1, 0, 4, 1), (2, 0, 3, 1)]]
        bench.add(make_sequence(3, 4, max_tokens=1))
        plan = bench.step()  # two free blocks for the slice, then none for sequence 1
        assert (plan.preempted, rows(plan)) == ((2,), [(0, 8, 8, 1), (1, 4, 1, 1)])
        plan = bench.step()
        assert (plan.preempted, rows(plan)) == ((1,), [(0, 16, 1, 1)])
        assert ids(bench.scheduler.waiting) == [1, 2, 3]

    def test_tokens_of_a_victim_are_of_no_use_to_those_before_it(self) -> None:
        """They were served before it, with all that they wanted or all that was left."""
        bench = Bench(3, budget=3)
        bench.add(make_sequence(0, 1))
        bench.add(make_sequence(1, 8))
        assert bench.steps(4) == [
            [(0, 0, 1, 1), (1, 0, 2, 0)],
            [(0, 1, 1, 1), (1, 2, 2, 0)],
            [(0, 2, 1, 1), (1, 4, 2, 0)],
            [(0, 3, 1, 1), (1, 6, 2, 1)],
        ]
        plan = bench.step()
        assert (plan.preempted, rows(plan)) == ((1,), [(0, 4, 1, 1)])

    def test_the_most_important_always_goes_on(self) -> None:
        bench = Bench(3, budget=4)
        for i in range(3):
            bench.add(make_sequence(i, 4, max_tokens=8))
        for _ in range(8):
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
        bench = Bench(3, budget=5)
        a = make_sequence(0, 11, max_tokens=2)
        bench.add(a)
        bench.run()
        assert (a.num_tokens, bench.scheduler.num_preemptions) == (13, 0)


class TestPriority:
    def test_a_more_important_prompt_takes_blocks_from_the_least_important(self) -> None:
        bench = Bench(4, queue=PriorityQueue())
        for i, priority in enumerate((2, 3, 1)):
            bench.add(make_sequence(i, 1, priority=priority))
            bench.step()
        bench.add(make_sequence(3, 8, priority=0))
        plan = bench.step()
        assert (plan.preempted, ids(plan.new), ids(plan.advanced)) == ((1,), [3], [2, 0])
        assert ids(bench.scheduler.running) == [3, 2, 0]

    def test_it_comes_before_those_it_outranks_and_after_the_others(self) -> None:
        """One block is free: the one more important than the newcomer takes it first."""
        bench = Bench(4, queue=PriorityQueue())
        bench.add(make_sequence(0, 4, priority=0))
        bench.add(make_sequence(1, 6, priority=2, max_tokens=20))
        bench.step()
        bench.add(make_sequence(2, 5, priority=1, max_tokens=1))
        plan = bench.step()
        assert (plan.preempted, rows(plan)) == ((1,), [(0, 4, 1, 1), (2, 0, 5, 1)])

    def test_an_equal_one_waits(self) -> None:
        bench = Bench(1, queue=PriorityQueue())
        bench.add(make_sequence(0, 1, priority=1))
        bench.step()
        bench.add(make_sequence(1, 1, priority=1))
        assert ids(bench.step().advanced) == [0]

    def test_who_began_in_this_step_keeps_its_blocks(self) -> None:
        """It aged to the front of the queue; the next one is more important, but it is too late."""
        bench = Bench(4, queue=PriorityQueue(ageing_steps=1))
        blocker = make_sequence(0, 13, max_tokens=3)
        bench.add(blocker)
        bench.step()
        bench.add(make_sequence(1, 8, priority=1))
        bench.step()
        bench.step()
        assert blocker.is_finished
        bench.add(make_sequence(2, 12, priority=0))
        assert ids(bench.scheduler.waiting) == [1, 2]
        plan = bench.step()
        assert (plan.preempted, ids(plan.new)) == ((), [1])
        plan = bench.step()
        assert (plan.preempted, ids(plan.new)) == ((1,), [2])

    @pytest.mark.parametrize("budget", [1000, 8, 4])
    @pytest.mark.parametrize(
        ("prompt_len", "n", "victims"),
        [(5, 1, (2,)), (8, 1, (2,)), (9, 1, (2, 1)), (13, 1, ()), (2, 3, (2, 1)), (2, 4, ())],
        ids=str,
    )
    def test_nobody_is_preempted_in_vain(
        self, prompt_len: int, n: int, victims: tuple[int, ...], budget: int
    ) -> None:
        """One block and one seat are free; two sequences can give one more of each, no more."""
        bench = Bench(5, seqs=4, budget=budget, queue=PriorityQueue())
        bench.add(make_sequence(0, 5, priority=0, max_tokens=1000))
        bench.steps(1 if budget > 4 else 2)
        for i in (1, 2):
            bench.add(make_sequence(i, 2, priority=2))
            while bench.scheduler.running[-1].seq_id != i:
                bench.step()
        assert bench.num_free == 1
        bench.add(*samples(3, n, prompt_len, priority=1))
        plan = bench.scheduler.schedule()
        assert plan.preempted == victims
        assert ids(plan.new) == ([30] if victims else [])

    def test_a_prompt_in_chunks_makes_room_for_all_of_them_at_once(self) -> None:
        bench = Bench(4, budget=5, queue=PriorityQueue())
        for i in range(3):
            bench.add(make_sequence(i, 1, priority=1))
        bench.step()
        bench.add(make_sequence(3, 9, priority=0, max_tokens=1))
        plan = bench.step()
        assert (plan.preempted, rows(plan)) == ((2, 1), [(0, 1, 1, 1), (3, 0, 4, 0)])
        assert bench.steps(2) == [[(0, 2, 1, 1), (3, 4, 4, 0)], [(0, 3, 1, 1), (3, 8, 1, 1)]]

    def test_a_parent_gives_the_seats_of_its_samples_too(self) -> None:
        bench = Bench(9, seqs=4, budget=4, queue=PriorityQueue())
        bench.add(*samples(1, 3, 7, priority=1, max_tokens=1))
        bench.step()
        bench.add(*samples(0, 3, 4, max_tokens=1))
        plan = bench.step()
        assert (plan.preempted, rows(plan)) == ((10,), [(0, 0, 3, 0)])
        assert bench.steps(2) == [[(0, 3, 1, 1), (1, 3, 1, 1), (2, 3, 1, 1)], [(10, 0, 4, 0)]]
        bench.run()
        assert bench.num_free == 9

    def test_samples_that_were_forked_in_this_step_go_before_their_parent(self) -> None:
        """Nobody but the parent was heard of; the two come back as sequences of their own."""
        bench = Bench(9, seqs=4, queue=PriorityQueue())
        bench.add(*samples(1, 3, 7, priority=1, max_tokens=1))
        bench.step()
        bench.add(*samples(0, 3, 7, max_tokens=1))
        plan = bench.step()
        assert (plan.preempted, rows(plan)) == ((), [(0, 0, 6, 0), (10, 6, 1, 1)])
        assert ids(bench.scheduler.waiting) == [11, 12]
        bench.run()
        assert bench.num_free == 9

    def test_a_parent_that_is_preempted_before_the_fork_begins_again(self) -> None:
        bench = Bench(4, seqs=4, budget=4, queue=PriorityQueue())
        bench.add(*samples(1, 3, 12, priority=1, max_tokens=1))
        bench.step()
        bench.add(make_sequence(5, 13, max_tokens=1))
        plan = bench.step()
        assert (plan.preempted, rows(plan)) == ((10,), [(5, 0, 4, 0)])
        assert ids(bench.scheduler.waiting) == [10]
        assert bench.steps(3) == [[(5, 4, 4, 0)], [(5, 8, 4, 0)], [(5, 12, 1, 1)]]
        assert bench.steps(4) == [
            [(10, 0, 4, 0)],
            [(10, 4, 4, 0)],
            [(10, 8, 3, 0)],
            [(10, 11, 1, 1), (11, 11, 1, 1)],
        ]
        bench.run()
        assert bench.num_free == 4

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
        bench.steps(2)
        assert [bench.manager.block_ids(s) for s in bench.scheduler.running] == [(0, 2), (0, 1)]
        bench.add(make_sequence(50, 13))
        assert bench.scheduler.schedule().preempted == (1, 0)
        one = Bench(3, queue=PriorityQueue())
        one.add(*samples(0, 2, 7, priority=1))
        one.steps(2)
        one.add(make_sequence(50, 13))
        assert one.scheduler.schedule().preempted == ()

    def test_a_victim_that_has_aged_past_its_displacer_is_not_lost(self) -> None:
        bench = Bench(2, queue=PriorityQueue(ageing_steps=1))
        low = make_sequence(0, 1, priority=1, max_tokens=8)
        bench.add(low)
        bench.steps(3)
        bench.add(make_sequence(1, 5, priority=0, max_tokens=1))
        plan = bench.step()
        assert (plan.preempted, ids(plan.new)) == ((0,), [1])
        assert ids(bench.scheduler.waiting) == [0]
        bench.run()
        assert low.num_output_tokens == 8


class TestAbort:
    def test_waiting_decoding_and_finished(self) -> None:
        bench = Bench(5, budget=5)
        a, b = make_sequence(0, 4, max_tokens=9), make_sequence(1, 9)
        c, d = make_sequence(2, 4), make_sequence(3, 1)
        for sequence in (a, b, c):
            bench.add(sequence)
        assert bench.steps(1) == [[(0, 0, 4, 1), (1, 0, 1, 0)]]
        assert bench.steps(2) == [[(0, 4, 1, 1), (1, 1, 4, 0)], [(0, 5, 1, 1), (1, 5, 4, 1)]]
        bench.scheduler.abort(c)
        assert [s.status.value for s in (a, b, c)] == ["running", "running", "finished_aborted"]
        bench.scheduler.abort(a)
        bench.scheduler.abort(b)
        assert (bench.num_free, bench.scheduler.has_unfinished()) == (5, False)
        assert bench.step().finished == (2, 0, 1)
        bench.scheduler.abort(a)
        assert bench.step().finished == ()
        bench.add(d)
        bench.scheduler.abort(d)
        assert not bench.scheduler.has_unfinished()

    @pytest.mark.parametrize("steps", [1, 2, 3])
    def test_in_the_middle_of_its_chunks(self, steps: int) -> None:
        bench = Bench(8, budget=5)
        bench.add(make_sequence(0, 1, max_tokens=9))
        long = make_sequence(1, 17)
        bench.add(long)
        bench.add(make_sequence(2, 4, max_tokens=1))
        bench.steps(steps)
        assert (long.num_computed_tokens, long.num_output_tokens) == (4 * steps, 0)
        bench.scheduler.abort(long)
        plan = bench.step()
        assert plan.finished == (1,)
        assert rows(plan) == [(0, steps, 1, 1), (2, 0, 4, 1)]
        bench.run()
        assert bench.num_free == 8

    def test_while_preempted(self) -> None:
        bench = Bench(2)
        a, b = make_sequence(0, 4, max_tokens=3), make_sequence(1, 4)
        bench.add(a)
        bench.add(b)
        bench.step()
        assert bench.step().preempted == (1,)
        bench.scheduler.abort(b)
        assert len(bench.scheduler.waiting) == 0
        bench.run()
        assert (a.num_output_tokens, b.num_output_tokens, bench.num_free) == (3, 1, 2)

    def test_a_step_in_flight(self) -> None:
        bench = Bench(2)
        a = make_sequence(0)
        bench.add(a)
        plan = bench.scheduler.schedule()
        result = bench.runner.run(plan)
        bench.scheduler.abort(a)
        assert bench.scheduler.update(plan, result, 0.0) == []
        assert (a.num_output_tokens, bench.num_free) == (0, 2)

    @pytest.mark.parametrize("steps", [0, 1, 2, 3, 4], ids="after {} steps".format)
    def test_all_samples_of_a_request(self, steps: int) -> None:
        """Before the parent runs, between its chunks, before the fork, after it, and later."""
        bench = Bench(8, seqs=3, budget=4)
        three = samples(0, 3, 7)
        bench.add(*three)
        bench.steps(steps)
        for sequence in three:
            bench.scheduler.abort(sequence)
        assert (bench.num_free, bench.scheduler.has_unfinished()) == (8, False)
        assert {s.status for s in three} == {SequenceStatus.FINISHED_ABORTED}
        bench.add(*samples(1, 3, 3, max_tokens=1))  # every seat is free again
        plan = bench.step()
        assert (plan.finished, ids(plan.new)) == ((0, 1, 2), [10])
        assert ids(bench.step().scheduled) == [10, 11, 12]

    def test_one_sample_leaves_the_others_their_blocks(self) -> None:
        bench = Bench(8, budget=5)
        a, b, c = samples(0, 3, 7, max_tokens=4)
        bench.add(a, b, c)
        bench.steps(3)
        bench.scheduler.abort(b)
        bench.run()
        assert [s.num_output_tokens for s in (a, b, c)] == [4, 1, 4]
        assert bench.num_free == 8
