"""Every decision of M2's scheduler, as exact plans, and the slots behind them."""

from __future__ import annotations

import pytest

from common.outputs import Logprob
from common.request import Sequence, SequenceStatus
from common.step_record import BlockEvent
from m2_batching.plan import ScheduledSequence, SchedulerOutput, StepResult
from m2_batching.request_queue import FCFSQueue, RequestQueue
from m2_batching.scheduler import Scheduler, SlotPool, append_sampled
from m2_batching.tests.helpers import (
    TOKEN,
    ids,
    make_sequence,
    step,
    stop_by_length,
    stub_result,
)


def scheduler(slots: int, budget: int = 1000, queue: RequestQueue | None = None) -> Scheduler:
    return Scheduler(FCFSQueue() if queue is None else queue, slots, budget, stop_by_length)


class TestSlotPool:
    def test_the_smallest_free_slot_is_taken(self) -> None:
        pool = SlotPool(4)
        assert [pool.take(i) for i in (10, 11, 12)] == [0, 1, 2]
        pool.release(11)
        pool.release(10)
        assert pool.num_free == 3
        assert [pool.take(i) for i in (13, 14, 15)] == [0, 1, 3]
        assert (pool.num_free, pool.size) == (0, 4)

    def test_events_tell_each_change_once(self) -> None:
        pool = SlotPool(2)
        pool.take(5)
        pool.release(5)
        expected = (BlockEvent("alloc", 0, 5), BlockEvent("free", 0, 5))
        assert pool.drain_events() == expected
        assert pool.drain_events() == ()

    def test_a_sequence_has_one_slot(self) -> None:
        pool = SlotPool(2)
        pool.take(5)
        with pytest.raises(AssertionError, match="sequence 5 has a slot"):
            pool.take(5)


class TestPlan:
    def test_a_scheduled_sequence_computes_something_that_it_knows(self) -> None:
        sequence = make_sequence(3, 4)
        with pytest.raises(AssertionError, match="3 computes nothing"):
            ScheduledSequence(sequence, 4, 0, 4)
        with pytest.raises(AssertionError, match="3 computes the unknown"):
            ScheduledSequence(sequence, 0, 5, 4)

    def test_counts_and_order(self) -> None:
        a, b = make_sequence(0, 4), make_sequence(1, 6)
        b.num_computed_tokens = 5
        items = [ScheduledSequence.all_missing(s, (s.seq_id,)) for s in (a, b)]
        assert [(i.start, i.num_tokens, i.end, i.num_known_tokens) for i in items] == [
            (0, 4, 4, 4),
            (5, 1, 6, 6),
        ]
        plan = SchedulerOutput(new=(items[0],), advanced=(items[1],))
        assert ids(plan.scheduled) == [1, 0]
        assert plan.num_tokens == 5


class TestSteps:
    def test_prefill_then_decode_then_finish_as_exact_plans(self) -> None:
        one = scheduler(slots=2)
        a, b = make_sequence(0, 3, max_tokens=2), make_sequence(1, 5, max_tokens=3)
        one.add([a, b])
        plans = [step(one) for _ in range(4)]
        assert plans[0] == SchedulerOutput(
            new=(ScheduledSequence(a, 0, 3, 3, (0,)), ScheduledSequence(b, 0, 5, 5, (1,)))
        )
        assert plans[1] == SchedulerOutput(
            advanced=(ScheduledSequence(a, 3, 1, 4), ScheduledSequence(b, 5, 1, 6))
        )
        assert plans[2] == SchedulerOutput(advanced=(ScheduledSequence(b, 6, 1, 7),), finished=(0,))
        assert plans[3] == SchedulerOutput(finished=(1,))
        assert a.status is b.status is SequenceStatus.FINISHED_LENGTH_CAPPED
        assert not one.has_unfinished()

    def test_schedule_counts_the_step_as_computed(self) -> None:
        one, a = scheduler(slots=1), make_sequence(0, 3)
        one.add([a])
        assert (a.status, one.has_unfinished()) == (SequenceStatus.WAITING, True)
        plan = one.schedule()
        assert (a.status, a.num_computed_tokens, a.num_tokens) == (SequenceStatus.RUNNING, 3, 3)
        assert one.update(plan, stub_result(plan), 1.5) == [a]
        assert (a.num_computed_tokens, a.num_tokens, a.token_times) == (3, 4, [1.5])

    def test_running_sequences_pause_while_prompts_are_computed(self) -> None:
        one = scheduler(slots=3)
        one.add([make_sequence(0)])
        step(one)
        one.add([make_sequence(1), make_sequence(2)])
        plan = step(one)
        assert (ids(plan.new), ids(plan.advanced)) == ([1, 2], [])
        assert ids(step(one).advanced) == [0, 1, 2]

    def test_running_never_exceeds_the_slots_and_everybody_advances(self) -> None:
        one = scheduler(slots=3)
        sequences = [make_sequence(i, max_tokens=5 + i) for i in range(8)]
        one.add(sequences)
        while one.has_unfinished():
            before = list(one.running)
            plan = step(one)
            assert len(one.running) <= 3
            assert plan.new or ids(plan.advanced) == ids(before)
            assert all(item.num_tokens == 1 for item in plan.advanced)
        assert [s.num_output_tokens for s in sequences] == [5 + i for i in range(8)]
        assert one.slots.num_free == 3

    def test_a_slot_that_frees_is_taken_in_the_next_plan(self) -> None:
        """Finish and admit: the plan that hears of the end gives the slot away."""
        one = scheduler(slots=1)
        a, b = make_sequence(0, max_tokens=1), make_sequence(1)
        one.add([a, b])
        step(one)
        assert a.is_finished
        assert ids(one.running) == []
        plan = one.schedule()
        assert (plan.finished, ids(plan.new), plan.new[0].new_block_ids) == ((0,), [1], (0,))
        free, take = BlockEvent("free", 0, 0), BlockEvent("alloc", 0, 1)
        assert one.drain_events() == (BlockEvent("alloc", 0, 0), free, take)

    def test_an_idle_scheduler_plans_nothing(self) -> None:
        one = scheduler(slots=1)
        assert not one.has_unfinished()
        assert one.schedule() == SchedulerOutput()


class TestBudget:
    @pytest.mark.parametrize(
        ("lengths", "budget", "expected"),
        [
            ([4, 4, 4], 12, [[0, 1, 2]]),
            ([4, 4, 4], 11, [[0, 1], [2]]),
            ([2, 6, 2], 12, [[0, 1], [2]]),  # two rows of 6, not 2 + 6
            ([2, 6, 2], 11, [[0], [1], [2]]),
            ([2, 6, 2], 18, [[0, 1, 2]]),
            ([9, 1, 1], 8, [[0], [1, 2]]),  # longer than the budget: alone
            ([1, 9, 1], 8, [[0], [1], [2]]),
        ],
    )
    def test_the_padded_rectangle_stays_within_it(
        self, lengths: list[int], budget: int, expected: list[list[int]]
    ) -> None:
        one = scheduler(slots=3, budget=budget)
        one.add([make_sequence(i, length) for i, length in enumerate(lengths)])
        assert [ids(step(one).new) for _ in expected] == expected
        assert ids(step(one).advanced) == [0, 1, 2]

    def test_decodes_are_not_held_to_it(self) -> None:
        one = scheduler(slots=3, budget=1)
        one.add([make_sequence(i, 1) for i in range(3)])
        for _ in range(3):
            step(one)
        assert ids(step(one).advanced) == [0, 1, 2]


class TestUpdate:
    def test_a_row_that_was_not_sampled_appends_nothing(self) -> None:
        a, b = make_sequence(0), make_sequence(1)
        plan = SchedulerOutput(new=tuple(map(ScheduledSequence.all_missing, (a, b))))
        a.status = b.status = SequenceStatus.RUNNING
        told: list[Sequence] = []
        assert append_sampled(plan, StepResult({1: TOKEN}), 0.0, told.append) == [b] == told
        assert (a.num_output_tokens, b.output_token_ids) == (0, [TOKEN])

    def test_logprobs_go_with_their_token(self) -> None:
        a = make_sequence(0)
        a.status = SequenceStatus.RUNNING
        plan = SchedulerOutput(new=(ScheduledSequence.all_missing(a),))
        entry = {TOKEN: Logprob(-0.5, 1)}
        append_sampled(plan, StepResult({0: TOKEN}, {0: entry}), 0.0, stop_by_length)
        assert a.logprobs == [entry]

    def test_a_sequence_that_was_aborted_meanwhile_drops_its_id(self) -> None:
        one = scheduler(slots=2)
        a, b = make_sequence(0), make_sequence(1)
        one.add([a, b])
        plan = one.schedule()
        one.abort(a)
        assert one.update(plan, stub_result(plan), 0.0) == [b]
        assert a.num_output_tokens == 0
        assert one.slots.num_free == 1


class TestAbort:
    def test_waiting(self) -> None:
        one, a, b = scheduler(slots=1), make_sequence(0), make_sequence(1)
        one.add([a, b])
        one.abort(a)
        assert a.status is SequenceStatus.FINISHED_ABORTED
        assert ids(step(one).new) == [1]

    def test_running(self) -> None:
        one, a, b = scheduler(slots=1), make_sequence(0), make_sequence(1)
        one.add([a, b])
        step(one)
        one.abort(a)
        assert one.slots.num_free == 1
        plan = step(one)
        assert (plan.finished, ids(plan.new)) == ((0,), [1])

    def test_preempted(self) -> None:
        one, a = scheduler(slots=1), make_sequence(0)
        one.add([a])
        step(one)
        one.shrink(1)
        assert a.status is SequenceStatus.PREEMPTED
        one.abort(a)
        assert not one.has_unfinished()
        assert one.slots.num_free == 1

    def test_finished(self) -> None:
        one, a = scheduler(slots=1), make_sequence(0, max_tokens=1)
        one.add([a])
        step(one)
        one.abort(a)
        assert a.status is SequenceStatus.FINISHED_LENGTH_CAPPED
        assert one.schedule().finished == (0,)


class TestShrink:
    def test_everybody_is_preempted_and_comes_back_in_order(self) -> None:
        one = scheduler(slots=4)
        sequences = [make_sequence(i) for i in range(6)]
        one.add(sequences)
        step(one)
        step(one)
        assert one.shrink(2) == (0, 1, 2, 3)
        assert ids(one.waiting) == [0, 1, 2, 3, 4, 5]
        assert ids(one.running) == []
        assert {s.status for s in sequences[:4]} == {SequenceStatus.PREEMPTED}
        plan = one.schedule()
        # Four prompt tokens and the two generated so far, all computed again.
        assert [(i.seq_id, i.start, i.num_tokens) for i in plan.new] == [(0, 0, 6), (1, 0, 6)]
        assert one.slots.size == 2

    def test_the_trace_hears_of_the_slots_given_back(self) -> None:
        one = scheduler(slots=2)
        one.add([make_sequence(0)])
        one.schedule()
        one.shrink(1)
        assert one.drain_events() == (BlockEvent("alloc", 0, 0), BlockEvent("free", 0, 0))
