"""Scheduler and cache manager under any mix of arrivals, aborts and ends, checked at each step."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from common.request import Sequence, SequenceStatus
from m2_batching.plan import SchedulerOutput
from m2_batching.request_queue import FCFSQueue, PriorityQueue
from m2_batching.tests.helpers import (
    Counted,
    count_comparisons,
    count_operations,
    ids,
    make_request,
    make_sequence,
    stub_result,
)
from m3_paged.tests.fake_runner import Bench, token_for

MAX_PROMPT, MAX_TOKENS = 9, 6


class Machine(RuleBasedStateMachine):
    """Arrivals with n samples, steps, aborts, early ends; a pool that one request can fill.

    What the fake runner checks besides: every sequence reads its own K and V at every position.
    """

    policy = "fcfs"

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[list[Sequence]] = []
        self.next_id = 0

    @initialize(
        size=st.integers(1, 5),
        spare=st.integers(0, 6),
        seqs=st.integers(1, 5),
        budget=st.integers(1, 24),
        ageing=st.integers(1, 6),
    )
    def start(self, size: int, spare: int, seqs: int, budget: int, ageing: int) -> None:
        blocks = -(-(MAX_PROMPT + MAX_TOKENS) // size) + spare
        queue = FCFSQueue() if self.policy == "fcfs" else PriorityQueue(ageing)
        self.bench = Bench(blocks, size, seqs=seqs, budget=budget, queue=queue)
        self.seqs, self.budget = seqs, budget

    @rule(
        n=st.integers(1, 3),
        prompt_len=st.integers(1, MAX_PROMPT),
        max_tokens=st.integers(1, MAX_TOKENS),
        priority=st.integers(0, 3),
    )
    def add(self, n: int, prompt_len: int, max_tokens: int, priority: int) -> None:
        number = len(self.requests)
        request = make_request(
            number, prompt_len, priority if self.policy == "priority" else 0, max_tokens
        )
        samples = []
        for index in range(min(n, self.seqs)):
            samples.append(make_sequence(self.next_id, request=request, index=index))
            self.next_id += 1
        self.requests.append(samples)
        self.bench.add(*samples)

    @rule()
    def step(self) -> None:
        scheduler = self.bench.scheduler
        before = {s.seq_id: s.request.priority for s in scheduler.running}
        tokens = {s.seq_id: s.num_output_tokens for s in self.sequences}
        plan = self.bench.step()
        self.check_plan(plan, before)
        for item in plan.scheduled:
            sequence = item.sequence
            assert sequence.num_output_tokens == tokens[item.seq_id] + item.num_sampled
            assert item.num_sampled == (item.end == item.num_known_tokens)

    def check_plan(self, plan: SchedulerOutput, before: dict[int, int]) -> None:
        scheduled = ids(plan.scheduled)
        assert len(set(scheduled)) == len(scheduled)
        assert not set(plan.preempted) & set(scheduled), "a victim is computed all the same"
        assert set(plan.preempted) <= set(before)
        assert set(ids(plan.advanced)) <= set(before)
        fresh = [item for item in plan.new if item.forked_from is None]
        if fresh:
            assert not plan.advanced, "prefill first"
            prompt_tokens = sum(item.num_tokens for item in fresh)
            assert len(fresh) == 1 or prompt_tokens <= self.budget
        else:
            assert set(ids(plan.advanced)) == set(before) - set(plan.preempted)
        for victim in plan.preempted:
            importance = (before[victim], victim)
            if fresh:
                assert min(i.sequence.request.priority for i in fresh) < before[victim]
            else:
                for item in plan.scheduled:
                    assert (item.sequence.request.priority, item.seq_id) < importance
        targets = [copy.target for copy in plan.copies]
        assert len(set(targets)) == len(targets)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        for sequence in data.draw(st.sampled_from(self.requests)):
            self.bench.scheduler.abort(sequence)

    @precondition(lambda self: self.bench.scheduler.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        """The next token of one running sequence is its EOS."""
        self.bench.stop_now.add(data.draw(st.sampled_from(self.bench.scheduler.running)).seq_id)

    @property
    def sequences(self) -> list[Sequence]:
        return [sequence for samples in self.requests for sequence in samples]

    @property
    def forks_to_come(self) -> set[int]:
        """Samples that wait for their parent's prompt, in no queue."""
        return {s.seq_id for group in self.bench.scheduler._siblings.values() for s in group}

    @invariant()
    def books_agree(self) -> None:
        scheduler, manager = self.bench.scheduler, self.bench.manager
        manager.check()
        running, waiting = ids(scheduler.running), ids(scheduler.waiting)
        forks = self.forks_to_come
        places = [*running, *waiting, *forks]
        unfinished = [s.seq_id for s in self.sequences if not s.is_finished]
        assert sorted(places) == sorted(unfinished), "lost, or in two places"
        assert len(running) <= self.seqs
        for sequence in self.sequences:
            holds = manager.num_blocks(sequence)
            if sequence.status is SequenceStatus.RUNNING:
                assert holds == manager.blocks_for(sequence.num_computed_tokens)
            else:
                assert holds == 0
        order = [(s.request.priority, s.seq_id) for s in scheduler.running]
        assert order == sorted(order)
        if self.policy == "fcfs" and running and waiting:
            assert max(running) < min(waiting)

    def teardown(self) -> None:
        """Nobody starves, every block comes back, and every token is the one of a solo run."""
        if not hasattr(self, "bench"):
            return
        left = [s for s in self.sequences if not s.is_finished]
        tokens = sum(s.sampling_params.max_tokens - s.num_output_tokens for s in left)
        # A step yields a token or computes a parent's prompt; only a priority repeats the latter.
        parents = len(self.requests) * (1 if self.policy == "fcfs" else 4)
        self.bench.run(limit=tokens + parents)
        assert self.bench.num_free == self.bench.manager.pool.num_blocks
        assert self.bench.scheduler._seats_left() == self.seqs
        for sequence in self.sequences:
            assert sequence.is_finished
            alone = make_sequence(-1, request=sequence.request, index=sequence.index)
            for token in sequence.output_token_ids:
                assert token == token_for(alone)
                alone.append(token, 0.0)
        queue = self.bench.scheduler.waiting
        if isinstance(queue, PriorityQueue):
            assert not queue._keys, "the queue remembers someone who has ended"
        self.bench.step()
        assert not self.bench.runner.tables, "the runner keeps a table of someone who has ended"


class PriorityMachine(Machine):
    """The same with priorities that age fast, so that queue order and importance disagree."""

    policy = "priority"


TestFCFS = Machine.TestCase
TestPriority = PriorityMachine.TestCase
TestFCFS.settings = TestPriority.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None
)


class Unread(FCFSQueue):
    """A queue that nobody may read through."""

    def __iter__(self) -> Iterator[Sequence]:
        raise AssertionError("a step looks at everybody who waits")


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_a_step_costs_the_same_whatever_the_number_waiting(policy: str) -> None:
    """256 running, pool and seats full: instructions of 10,000 waiting at most 1.5 × of 100."""

    def cost(waiting: int) -> tuple[int, int]:
        queue = Unread() if policy == "fcfs" else PriorityQueue()
        bench = Bench(256 * 2 + 8, seqs=256, budget=10**6, queue=queue)
        for i in range(256 + waiting):
            bench.add(make_sequence(i, 4, priority=Counted(i % 3)))
        scheduler = bench.scheduler
        running_step(bench)
        assert len(scheduler.running) == 256
        assert len(scheduler.waiting) == waiting

        def work() -> None:
            running_step(bench)  # everybody opens a second block
            scheduler.abort(scheduler.running[3])
            running_step(bench)  # one leaves, one is admitted
            running_step(bench)

        done = count_operations(work)
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
