"""Every decision of M3's scheduler, as exact plans: blocks, forks, preemptions, aborts."""

from __future__ import annotations

import pytest

from common.request import Sequence, SequenceStatus
from common.step_record import BlockEvent
from m2_batching.plan import BlockCopy, ScheduledSequence, SchedulerOutput
from m2_batching.request_queue import PriorityQueue
from m2_batching.tests.helpers import ids, make_request, make_sequence
from m3_paged.tests.fake_runner import Bench


def samples(
    number: int, n: int, prompt_len: int, max_tokens: int = 100, **more: int
) -> list[Sequence]:
    """The ``n`` sequences of request ``number``, with ids from ``10 · number`` on."""
    request = make_request(number, prompt_len, more.get("priority", 0), max_tokens)
    return [make_sequence(10 * number + i, request=request, index=i) for i in range(n)]


class TestBlocks:
    @pytest.mark.parametrize(("prompt_len", "blocks"), [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
    def test_admission_takes_the_blocks_of_the_prompt(self, prompt_len: int, blocks: int) -> None:
        bench = Bench(4)
        bench.add(make_sequence(0, prompt_len))
        plan = bench.step()
        assert plan.new[0].new_block_ids == tuple(range(blocks))
        assert bench.num_free == 4 - blocks

    def test_prefill_then_decode_then_finish_as_exact_plans(self) -> None:
        """A prompt of 3 with blocks of 4: position 3 still fits, position 4 opens a block."""
        bench = Bench(3)
        a = make_sequence(0, 3, max_tokens=3)
        bench.add(a)
        plans = [bench.step() for _ in range(4)]
        assert plans[0] == SchedulerOutput(new=(ScheduledSequence(a, 0, 3, 3, (0,)),))
        assert plans[1] == SchedulerOutput(advanced=(ScheduledSequence(a, 3, 1, 4, (), 1),))
        assert plans[2] == SchedulerOutput(advanced=(ScheduledSequence(a, 4, 1, 5, (1,), 1),))
        assert plans[3] == SchedulerOutput(finished=(0,))
        assert bench.num_free == 3

    def test_the_last_token_takes_no_block(self) -> None:
        """A sequence of k·bs + 1 tokens in all never computes the last one."""
        bench = Bench(1)
        a = make_sequence(0, 3, max_tokens=2)
        bench.add(a)
        assert bench.run() == 2
        assert a.num_tokens == 5

    def test_blocks_that_are_freed_are_taken_in_the_next_plan(self) -> None:
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


class TestAdmission:
    @pytest.mark.parametrize(
        ("lengths", "budget", "expected"),
        [
            ([4, 4, 4], 12, [[0, 1, 2]]),
            ([4, 4, 4], 11, [[0, 1], [2]]),
            ([2, 6, 2], 10, [[0, 1, 2]]),  # tokens, not rectangles
            ([9, 1, 1], 8, [[0], [1, 2]]),  # longer than the budget: alone
            ([1, 9, 1], 8, [[0], [1], [2]]),
        ],
    )
    def test_prompts_of_a_step_stay_within_the_budget(
        self, lengths: list[int], budget: int, expected: list[list[int]]
    ) -> None:
        bench = Bench(20, budget=budget)
        for i, length in enumerate(lengths):
            bench.add(make_sequence(i, length))
        assert [ids(bench.step().new) for _ in expected] == expected
        assert ids(bench.step().advanced) == [0, 1, 2]

    def test_the_first_that_does_not_fit_ends_it(self) -> None:
        bench = Bench(4)
        for i, length in enumerate((8, 12, 1)):
            bench.add(make_sequence(i, length, max_tokens=2))
        assert ids(bench.step().new) == [0]
        assert ids(bench.scheduler.waiting) == [1, 2]

    def test_running_never_exceeds_the_seats(self) -> None:
        bench = Bench(40, seqs=3)
        for i in range(9):
            bench.add(make_sequence(i, 2, max_tokens=3 + i))
        while bench.scheduler.has_unfinished():
            before = ids(bench.scheduler.running)
            plan = bench.step()
            assert len(bench.scheduler.running) <= 3
            assert plan.new or ids(plan.advanced) == before

    def test_n_places_are_reserved_before_the_prompt_is_computed(self) -> None:
        bench = Bench(40, seqs=4)
        bench.add(make_sequence(0))
        bench.add(*samples(1, 3, 4))
        bench.add(make_sequence(30))
        assert ids(bench.step().new) == [0, 10]
        assert ids(bench.step().scheduled) == [0, 10, 11, 12]
        assert ids(bench.scheduler.waiting) == [30]

    def test_too_few_places_for_all_samples_admit_none(self) -> None:
        bench = Bench(40, seqs=3)
        bench.add(make_sequence(0, max_tokens=2))
        bench.add(*samples(1, 3, 4, max_tokens=2))
        assert ids(bench.step().new) == [0]
        bench.step()
        assert ids(bench.step().new) == [10]
        bench.run()
        assert bench.num_free == 40


class TestParallelSamples:
    def test_the_prompt_is_computed_once_but_for_its_last_token(self) -> None:
        """A prompt of 7: six tokens once, the seventh by each; two of three copy the block."""
        bench = Bench(8)
        a, b, c = samples(0, 3, 7)
        bench.add(a, b, c)
        assert bench.step() == SchedulerOutput(
            new=(ScheduledSequence(a, 0, 6, 7, (0, 1), num_sampled=0),)
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
        assert a.token_ids[-1] != b.token_ids[-1]
        # Position 7 still fits everybody's second block; position 8 opens one each.
        assert [i.new_block_ids for i in bench.step().advanced] == [(), (), ()]
        assert [i.new_block_ids for i in bench.step().advanced] == [(4,), (5,), (6,)]

    @pytest.mark.parametrize("prompt_len", [5, 9])
    def test_a_prompt_of_full_blocks_and_one_token_needs_no_copy(self, prompt_len: int) -> None:
        bench = Bench(16)
        bench.add(*samples(0, 3, prompt_len))
        full = prompt_len // 4
        assert bench.step().new[0].new_block_ids == tuple(range(full))
        plan = bench.step()
        assert plan.copies == ()
        assert [i.new_block_ids for i in plan.advanced] == [(full,)]
        shared = tuple(range(full))
        assert [i.new_block_ids for i in plan.new] == [(*shared, full + 1), (*shared, full + 2)]

    def test_a_prompt_of_full_blocks_copies_the_last(self) -> None:
        bench = Bench(16)
        bench.add(*samples(0, 2, 8))
        bench.step()
        plan = bench.step()
        assert plan.copies == (BlockCopy(1, 2),)
        assert [(i.table_start, i.new_block_ids) for i in plan.advanced] == [(1, (2,))]

    def test_a_prompt_of_one_token_has_nothing_to_share(self) -> None:
        bench = Bench(8)
        bench.add(*samples(0, 3, 1))
        plan = bench.step()
        assert [(i.seq_id, i.new_block_ids, i.forked_from) for i in plan.new] == [
            (0, (0,), None),
            (1, (1,), None),
            (2, (2,), None),
        ]

    def test_each_ends_on_its_own(self) -> None:
        bench = Bench(16)
        a, b, c = samples(0, 3, 6, max_tokens=5)
        bench.add(a, b, c)
        bench.step()
        bench.stop_now.add(1)
        bench.step()
        assert (b.finish_reason, b.num_output_tokens) == ("stop", 1)
        bench.run()
        assert [s.num_output_tokens for s in (a, b, c)] == [5, 1, 5]
        assert bench.num_free == 16

    def test_no_room_for_a_fork_makes_it_wait_as_a_sequence_of_its_own(self) -> None:
        """Two blocks hold the prompt; nobody has heard of the sample that found no third."""
        bench = Bench(2)
        a, b = samples(0, 2, 7, max_tokens=1)
        bench.add(a, b)
        bench.step()
        plan = bench.step()
        # One leaves, so the other writes the partial block in place.
        assert (ids(plan.advanced), ids(plan.new), plan.copies) == ([0], [], ())
        assert plan.preempted == ()
        assert (b.status, ids(bench.scheduler.waiting)) == (SequenceStatus.PREEMPTED, [1])
        plan = bench.step()
        assert [(i.seq_id, i.start, i.num_tokens) for i in plan.new] == [(1, 0, 7)]
        assert bench.num_free == 2

    def test_a_parent_that_is_preempted_before_the_fork_begins_again(self) -> None:
        bench = Bench(2, queue=PriorityQueue())
        bench.add(*samples(1, 2, 7, max_tokens=1, priority=1))
        bench.step()
        bench.add(make_sequence(5, 5, max_tokens=1))
        plan = bench.step()
        assert (plan.preempted, ids(plan.new)) == ((10,), [5])
        plan = bench.step()
        assert [(i.seq_id, i.num_tokens, i.num_sampled) for i in plan.new] == [(10, 6, 0)]
        bench.run()
        assert bench.num_free == 2


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
