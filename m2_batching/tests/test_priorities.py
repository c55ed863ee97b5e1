"""Preemption by priority, and what a step of the scheduler costs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.request import Sequence, SequenceStatus
from m2_batching.request_queue import FCFSQueue, PriorityQueue
from m2_batching.scheduler import Scheduler
from m2_batching.tests.helpers import (
    Counted,
    count_comparisons,
    count_operations,
    ids,
    make_sequence,
    step,
    stop_by_length,
    stub_result,
)


def scheduler(slots: int, ageing: int = 64, budget: int = 1000) -> Scheduler:
    return Scheduler(PriorityQueue(ageing), slots, budget, stop_by_length)


def running(one: Scheduler, *priorities: int) -> list[Sequence]:
    """Sequences 0, 1, … that run with these priorities."""
    sequences = [make_sequence(i, priority=p) for i, p in enumerate(priorities)]
    for sequence in sequences:
        one.add([sequence])
        step(one)
    return sequences


class TestPreemption:
    def test_the_least_important_gives_its_slot_to_a_more_important_one(self) -> None:
        one = scheduler(slots=3)
        a, b, c = running(one, 1, 4, 2)
        one.add([make_sequence(3, priority=0)])
        plan = step(one)
        assert (plan.preempted, ids(plan.new), plan.new[0].new_block_ids) == ((1,), [3], (1,))
        assert (b.status, b.num_computed_tokens) == (SequenceStatus.PREEMPTED, 0)
        assert b.num_output_tokens == 1, "tokens that were generated stay"
        assert ids(one.running) == [a.seq_id, c.seq_id, 3]
        assert ids(one.waiting) == [1]

    def test_among_equals_the_last_that_arrived_goes(self) -> None:
        one = scheduler(slots=3)
        running(one, 1, 1, 1)
        one.add([make_sequence(3, priority=0)])
        assert step(one).preempted == (2,)

    @pytest.mark.parametrize("priority", [1, 2])
    def test_only_the_strictly_less_important_are_preempted(self, priority: int) -> None:
        one = scheduler(slots=2)
        running(one, 1, 1)
        one.add([make_sequence(2, priority=priority)])
        plan = step(one)
        assert (plan.preempted, ids(plan.new), ids(plan.advanced)) == ((), [], [0, 1])
        assert ids(one.waiting) == [2]

    def test_several_at_once(self) -> None:
        one = scheduler(slots=3)
        running(one, 0, 2, 3)
        one.add([make_sequence(3, priority=1), make_sequence(4, priority=1)])
        one.add([make_sequence(5, priority=1)])
        plan = step(one)
        assert (plan.preempted, ids(plan.new)) == ((2, 1), [3, 4])
        assert ids(one.waiting) == [5, 1, 2]

    def test_no_two_sequences_take_each_others_place_in_turns(self) -> None:
        """The victim has waited long and stands ahead in the queue; priorities still decide."""
        one = scheduler(slots=1, ageing=1)
        (low,) = running(one, 1)
        for _ in range(9):
            step(one)
        high = make_sequence(1, priority=0, max_tokens=5)
        one.add([high])
        plan = step(one)
        assert (plan.preempted, ids(plan.new)) == ((0,), [1])
        assert ids(one.waiting) == [0]
        for _ in range(4):
            assert ids(step(one).advanced) == [1]
        assert high.is_finished
        plan = step(one)
        assert (plan.preempted, ids(plan.new)) == ((), [0])
        assert plan.new[0].num_tokens == low.num_prompt_tokens + 10

    def test_it_comes_back_at_its_old_place(self) -> None:
        one = scheduler(slots=1)
        running(one, 1)
        one.add([make_sequence(1, priority=1), make_sequence(2, priority=0, max_tokens=1)])
        assert ids(step(one).new) == [2]
        assert ids(step(one).new) == [0]

    def test_a_victim_that_stands_first_ends_the_admission(self) -> None:
        """It lost its slot in this step; taking another one back would undo the decision."""
        one = scheduler(slots=2, ageing=1)
        running(one, 5, 0)
        for _ in range(9):
            step(one)
        one.add([make_sequence(2, priority=0)])
        plan = step(one)
        assert (plan.preempted, ids(plan.new)) == ((0,), [2])
        assert ids(one.running) == [1, 2]
        assert ids(one.waiting) == [0]

    def test_ageing_brings_a_low_priority_to_its_turn(self) -> None:
        """Important requests arrive every two steps for ever, and an unimportant one still runs."""
        one = scheduler(slots=1, ageing=4)
        one.add([make_sequence(0, priority=0, max_tokens=2)])
        low = make_sequence(1, priority=3)
        one.add([low])
        for i in range(2, 30):
            step(one)
            if low.num_output_tokens:
                break
            one.add([make_sequence(i, priority=0, max_tokens=2)])
        # Requests that arrived in the first 3 · 4 steps are ahead of it, and they take two each.
        assert low.num_output_tokens == 1
        assert i <= 2 * (3 * 4 + 2)


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 6), st.integers(1, 5), st.integers(0, 3)),
        min_size=1,
        max_size=12,
    ),
    slots=st.integers(1, 4),
    ageing=st.integers(1, 6),
    budget=st.integers(1, 20),
)
def test_any_mix_of_priorities_ends_and_keeps_its_promises(
    requests: list[tuple[int, int, int, int]], slots: int, ageing: int, budget: int
) -> None:
    one = scheduler(slots, ageing, budget)
    sequences: list[Sequence] = []
    steps = 0
    for i, (priority, length, tokens, pause) in enumerate(requests):
        sequences.append(make_sequence(i, length, priority=priority, max_tokens=tokens))
        one.add([sequences[-1]])
        for _ in range(pause):
            check_step(one)
    work = sum(s.sampling_params.max_tokens - s.num_output_tokens for s in sequences)
    while one.has_unfinished():
        check_step(one)
        steps += 1
        assert steps <= work, "a step passed in which nobody got a token"
    assert all(s.num_output_tokens == s.sampling_params.max_tokens for s in sequences)
    assert one.slots.num_free == slots
    assert isinstance(one.waiting, PriorityQueue)
    assert not one.waiting._keys, "the queue remembers someone who has ended"


def check_step(one: Scheduler) -> None:
    before = {s.seq_id: s.request.priority for s in one.running}
    unfinished = {s.seq_id for s in [*one.running, *one.waiting]}
    plan = one.schedule()
    assert {s.seq_id for s in [*one.running, *one.waiting]} == unfinished
    assert len(one.running) + len(one.waiting) == len(unfinished), "in two places"
    assert len(one.running) <= one.slots.size
    assert one.slots.num_free == one.slots.size - len(one.running)
    assert not set(plan.preempted) & set(ids(plan.scheduled))
    assert plan.new or set(ids(plan.advanced)) == set(before)
    admitted = [item.sequence.request.priority for item in plan.new]
    for victim in plan.preempted:
        assert min(admitted) < before[victim]
    widest = max((item.num_tokens for item in plan.new), default=0)
    assert len(plan.new) <= 1 or widest * len(plan.new) <= one.max_num_batched_tokens
    one.update(plan, stub_result(plan), 0.0)


class Unread(FCFSQueue):
    """A queue that nobody may read through."""

    def __iter__(self) -> Iterator[Sequence]:
        raise AssertionError("a step looks at everybody who waits")


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_a_step_costs_the_same_whatever_the_number_waiting(policy: str) -> None:
    """256 running; instructions and comparisons of 10,000 waiting at most 1.5 × those of 100."""

    def cost(waiting: int) -> tuple[int, int]:
        queue = Unread() if policy == "fcfs" else PriorityQueue()
        one = Scheduler(queue, 256, 10**6, stop_by_length)
        one.add([make_sequence(i, priority=Counted(i % 3)) for i in range(256 + waiting)])
        step(one)
        assert len(one.running) == 256
        assert len(one.waiting) == waiting

        def work() -> None:
            step(one)  # everybody advances
            one.abort(one.running[0])
            step(one)  # one leaves, one is admitted
            one.abort(one.running[5])
            step(one)

        done = count_operations(work)
        return done, count_comparisons(work)

    few, many = cost(100), cost(10_000)
    assert few[0] > 256
    assert many[0] <= 1.5 * few[0]
    assert many[1] <= 1.5 * few[1] + 2 * 2 * 4 * 14, "beyond what a heap of 10,000 costs"
