"""Who is admitted next: order, places kept, lazy removal, and what each operation costs."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from common.request import Sequence
from m2_batching.request_queue import FCFSQueue, PriorityQueue, RequestQueue, make_queue
from m2_batching.tests.helpers import (
    Counted,
    count_comparisons,
    count_operations,
    ids,
    make_sequence,
)


def drain(queue: RequestQueue) -> list[int]:
    return [queue.pop().seq_id for _ in range(len(queue))]


@pytest.mark.parametrize("make", [FCFSQueue, PriorityQueue])
class TestBoth:
    def test_equals_leave_in_the_order_of_arrival(self, make: type[Any]) -> None:
        queue = make()
        for i in (0, 1, 2):
            queue.push(make_sequence(i))
            queue.tick()
        assert (queue.peek().seq_id, len(queue)) == (0, 3)
        assert ids(queue) == [0, 1, 2]
        assert len(queue) == 3
        assert drain(queue) == [0, 1, 2]
        assert len(queue) == 0

    def test_a_preempted_sequence_goes_ahead_of_all_who_came_later(self, make: type[Any]) -> None:
        queue = make()
        sequences = [make_sequence(i) for i in range(4)]
        for sequence in sequences[:3]:
            queue.push(sequence)
        first, second = queue.pop(), queue.pop()
        for _ in range(1000):
            queue.tick()
        queue.push(sequences[3])
        queue.push_front(second)  # the last victim is put back last, and stands first
        queue.push_front(first)
        assert drain(queue) == [0, 1, 2, 3]

    def test_discard_takes_from_anywhere_and_leaves_strangers_alone(self, make: type[Any]) -> None:
        queue = make()
        sequences = [make_sequence(i) for i in range(5)]
        for sequence in sequences:
            queue.push(sequence)
        for i in (2, 0, 4, 0):
            queue.discard(sequences[i])
        queue.discard(make_sequence(9))
        assert (len(queue), ids(queue), queue.peek().seq_id) == (2, [1, 3], 1)
        assert drain(queue) == [1, 3]


def test_fcfs_knows_no_priority() -> None:
    queue = FCFSQueue()
    for i, priority in enumerate((5, 0, -3)):
        queue.push(make_sequence(i, priority=priority))
    assert drain(queue) == [0, 1, 2]


def test_the_policy_names_the_queue() -> None:
    assert isinstance(make_queue("fcfs"), FCFSQueue)
    assert isinstance(make_queue("priority"), PriorityQueue)


class TestAgeing:
    @given(
        arrivals=st.lists(st.tuples(st.integers(-4, 4), st.integers(0, 9)), max_size=12),
        ageing=st.integers(1, 8),
        later=st.integers(0, 50),
    )
    def test_the_order_is_that_of_the_aged_priorities_at_any_time(
        self, arrivals: list[tuple[int, int]], ageing: int, later: int
    ) -> None:
        """The key never changes, and yet sorts by ``priority − waited / ageing`` at each step."""
        queue = PriorityQueue(ageing)
        at, now = {}, 0
        for i, (priority, gap) in enumerate(arrivals):
            for _ in range(gap):
                queue.tick()
            now += gap
            queue.push(make_sequence(i, priority=priority))
            at[i] = now
        before = ids(queue)
        for _ in range(later):
            queue.tick()
        now += later
        aged = {i: arrivals[i][0] * ageing - (now - at[i]) for i in at}  # times ageing: exact
        assert before == ids(queue) == sorted(aged, key=lambda i: (aged[i], i))
        assert drain(queue) == before

    def test_a_point_of_priority_is_worth_ageing_steps(self) -> None:
        """Priority 2 at step 0 yields to priority 0 up to step 2 · 5, and to nobody later."""
        for arrival, expected in ((9, [1, 0]), (10, [0, 1]), (11, [0, 1])):
            queue = PriorityQueue(ageing_steps=5)
            queue.push(make_sequence(0, priority=2))
            for _ in range(arrival):
                queue.tick()
            queue.push(make_sequence(1, priority=0))
            assert drain(queue) == expected

    def test_a_forked_sequence_arrives_when_it_is_first_put_back(self) -> None:
        queue = PriorityQueue(ageing_steps=4)
        queue.push(make_sequence(5))
        queue.tick()
        forked = make_sequence(1)
        queue.push_front(forked)
        queue.tick()
        queue.push(make_sequence(6))
        assert ids(queue) == [5, 1, 6]
        assert queue.pop().seq_id == 5
        assert queue.pop() is forked
        queue.push_front(forked)  # from now on it has a place to keep
        assert drain(queue) == [1, 6]

    def test_who_has_ended_is_forgotten(self) -> None:
        """Nothing is kept of a sequence that was discarded, waiting or not."""
        queue = PriorityQueue()
        waiting, running = make_sequence(0), make_sequence(1)
        for sequence in (running, waiting):
            queue.push(sequence)
        assert queue.pop() is waiting
        queue.push_front(waiting)
        queue.discard(queue.pop())
        queue.discard(running)
        with pytest.raises(IndexError):
            queue.peek()
        assert not queue._keys
        assert not queue._heap


class QueueMachine(RuleBasedStateMachine):
    """Any mix of operations, against a list that is sorted anew each time."""

    def __init__(self) -> None:
        super().__init__()
        self.step = self.next_id = 0
        self.out: list[Sequence] = []
        self.model: list[Sequence] = []
        self.arrival: dict[int, int] = {}

    @initialize(ageing=st.none() | st.integers(1, 5))
    def start(self, ageing: int | None) -> None:
        self.ageing = ageing
        self.queue: RequestQueue = FCFSQueue() if ageing is None else PriorityQueue(ageing)

    def sort(self) -> None:
        if self.ageing is not None:
            age = self.ageing
            self.model.sort(
                key=lambda s: (s.request.priority * age + self.arrival[s.seq_id], s.seq_id)
            )

    @rule(priority=st.integers(-2, 3))
    def push(self, priority: int) -> None:
        sequence = make_sequence(self.next_id, priority=priority)
        self.next_id += 1
        self.arrival[sequence.seq_id] = self.step
        self.queue.push(sequence)
        self.model.append(sequence)
        self.sort()

    @precondition(lambda self: self.model)
    @rule()
    def pop(self) -> None:
        expected = self.model.pop(0)
        assert self.queue.peek() is expected
        assert self.queue.pop() is expected
        self.out.append(expected)

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def push_front(self, data: st.DataObject) -> None:
        sequence = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        self.queue.push_front(sequence)
        self.model.insert(0, sequence)
        self.sort()

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        self.queue.discard(self.model.pop(data.draw(st.integers(0, len(self.model) - 1))))

    @rule()
    def tick(self) -> None:
        self.queue.tick()
        self.step += 1

    @invariant()
    def same(self) -> None:
        assert ids(self.queue) == ids(self.model)
        assert len(self.queue) == len(self.model)


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


class TestCost:
    @staticmethod
    def filled(size: int) -> PriorityQueue:
        queue = PriorityQueue()
        for i in range(size):
            queue.push(make_sequence(i, priority=Counted((i * 7919) % 100)))
        return queue

    @pytest.mark.parametrize("size", [100, 10_000])
    def test_priority_operations_compare_log_n_times(self, size: int) -> None:
        queue = self.filled(size)
        victim = make_sequence(size, priority=Counted(50))

        def work() -> None:
            queue.push(victim)
            queue.tick()
            queue.push_front(queue.pop())
            queue.discard(victim)
            queue.peek()

        # Two pushes climb and one pop sinks and climbs; a pair of tuples takes two comparisons.
        assert count_comparisons(work) <= 2 * 4 * math.log2(size)

    def test_discarded_entries_are_dropped_once(self) -> None:
        queue = self.filled(1000)
        order = list(queue)

        def discard_all_but_the_last() -> None:
            for sequence in order[:999]:
                queue.discard(sequence)

        assert count_comparisons(discard_all_but_the_last) == 0
        first = count_comparisons(queue.peek)
        assert first <= 999 * 2 * 2 * math.log2(1000)
        assert count_comparisons(queue.peek) == 0
        assert queue.pop() is order[-1]

    @pytest.mark.parametrize("make", [FCFSQueue, PriorityQueue])
    def test_instructions_do_not_depend_on_how_many_wait(self, make: type[Any]) -> None:
        def cost(size: int) -> int:
            queue = make()
            sequences = [make_sequence(i) for i in range(size)]
            for sequence in sequences:
                queue.push(sequence)

            def work() -> None:
                queue.push(make_sequence(size))
                queue.push_front(queue.pop())
                queue.discard(sequences[size // 2])
                queue.tick()
                queue.peek()
                len(queue)

            return count_operations(work)

        assert cost(10_000) == cost(100) > 0
