"""Scheduler and cache manager under any mix of arrivals, aborts and ends, checked at each step."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from common.request import Sequence, SequenceStatus
from m2_batching.plan import SchedulerOutput
from m2_batching.request_queue import FCFSQueue, PriorityQueue
from m2_batching.tests.helpers import ids, make_request, make_sequence
from m3_paged.tests.fake_runner import token_for
from m5_chunked.tests.helpers import Bench

MAX_PROMPT, MAX_TOKENS = 13, 6


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
        threshold=st.integers(0, 6),
        ageing=st.integers(1, 6),
    )
    def start(
        self, size: int, spare: int, seqs: int, budget: int, threshold: int, ageing: int
    ) -> None:
        blocks = -(-(MAX_PROMPT + MAX_TOKENS) // size) + spare
        queue = FCFSQueue() if self.policy == "fcfs" else PriorityQueue(ageing)
        self.bench = Bench(blocks, size, seqs=seqs, budget=budget, threshold=threshold, queue=queue)
        self.seqs, self.budget, self.threshold = seqs, budget, threshold

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
        before = list(scheduler.running)
        decodes = [s.seq_id for s in before if s.num_tokens - s.num_computed_tokens == 1]
        counters = {s.seq_id: (s.num_computed_tokens, s.num_output_tokens) for s in self.sequences}
        alone = len(before) + len(scheduler.waiting) < 2
        work = scheduler.has_unfinished()
        self.bench.published.take()
        plan = self.bench.step()
        assert bool(plan.scheduled) == work, "a step in which nobody advances"
        self.check_budget(plan, before, decodes, alone=alone)
        self.check_preemptions(plan, before)
        for item in plan.scheduled:
            sequence = item.sequence
            computed, output = counters[item.seq_id]
            if item.forked_from is None:
                assert item.start == computed
            assert item.num_sampled == (item.end == item.num_known_tokens)
            assert sequence.num_output_tokens == output + item.num_sampled

    def check_budget(
        self, plan: SchedulerOutput, before: list[Sequence], decodes: list[int], *, alone: bool
    ) -> None:
        """Decodes always, chunks within the budget and the threshold, whoever is first always."""
        scheduled = ids(plan.scheduled)
        assert len(set(scheduled)) == len(scheduled)
        assert plan.num_tokens <= self.budget
        assert set(ids(plan.advanced)) <= set(ids(before))
        assert set(decodes) <= {*scheduled, *plan.preempted}, "a decode waits for a prompt"
        if plan.scheduled:
            contenders = {*before, *(item.sequence for item in plan.scheduled)}
            assert min(contenders, key=importance).seq_id in scheduled
        if self.threshold and not alone:
            assert max(item.num_tokens for item in plan.scheduled) <= self.threshold
        noted = self.bench.published.take()
        assert sorted(noted) == sorted((item.seq_id, item.end) for item in plan.scheduled)

    def check_preemptions(self, plan: SchedulerOutput, before: list[Sequence]) -> None:
        """Victims ran, are less important than all who were served, and gain nothing."""
        assert set(plan.preempted) <= set(ids(before))
        assert not set(plan.preempted) & set(ids(plan.scheduled)), "a victim is computed"
        served = [importance(item.sequence) for item in plan.scheduled]
        fresh = [item.sequence for item in plan.new if item.forked_from is None]
        for victim in (s for s in before if s.seq_id in plan.preempted):
            assert max(served) < importance(victim)
            assert all(s.request.priority < victim.request.priority for s in fresh)
        if self.policy == "fcfs":
            assert not (plan.preempted and fresh), "somebody began in a step with a preemption"
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
        return {s.seq_id for group in self.bench.scheduler._seats._samples.values() for s in group}

    @invariant()
    def books_agree(self) -> None:
        scheduler, manager = self.bench.scheduler, self.bench.manager
        manager.check()
        running, waiting = ids(scheduler.running), ids(scheduler.waiting)
        places = [*running, *waiting, *self.forks_to_come]
        unfinished = [s.seq_id for s in self.sequences if not s.is_finished]
        assert sorted(places) == sorted(unfinished), "lost, or in two places"
        assert len(running) <= min(self.seqs, self.budget)
        for sequence in self.sequences:
            holds = manager.num_blocks(sequence)
            if sequence.status is SequenceStatus.RUNNING:
                assert holds == manager.blocks_for(sequence.num_computed_tokens)
            else:
                assert holds == 0
                assert sequence.is_finished or sequence.num_computed_tokens == 0
        order = [importance(sequence) for sequence in scheduler.running]
        assert order == sorted(order)
        if self.policy == "fcfs" and running and waiting:
            assert max(running) < min(waiting)

    def teardown(self) -> None:
        """Nobody starves, every block comes back, and every token is the one of a solo run."""
        if not hasattr(self, "bench"):
            return
        left = [s for s in self.sequences if not s.is_finished]
        # The first that is left gets a token in every step, even under FCFS with a budget of one.
        # Priorities repeat work: a sequence is preempted at most once for each that outranks it.
        tokens = sum(s.num_prompt_tokens + s.sampling_params.max_tokens for s in left)
        self.bench.run(limit=tokens * (1 if self.policy == "fcfs" else 1 + len(left)))
        assert self.bench.num_free == self.bench.manager.pool.num_blocks
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
        assert not self.forks_to_come


def importance(sequence: Sequence) -> tuple[int, int]:
    """Smaller is served first and preempted last."""
    return sequence.request.priority, sequence.seq_id


class PriorityMachine(Machine):
    """The same with priorities that age fast, so that queue order and importance disagree."""

    policy = "priority"


TestFCFS = Machine.TestCase
TestPriority = PriorityMachine.TestCase
TestFCFS.settings = TestPriority.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None
)


@given(
    budget=st.integers(1, 6),
    blocks=st.integers(6, 12),
    lengths=st.lists(st.tuples(st.integers(1, 16), st.integers(1, 8)), min_size=1, max_size=6),
)
@settings(max_examples=80, deadline=None)
def test_first_come_first_finished_prefill(
    budget: int, blocks: int, lengths: list[tuple[int, int]]
) -> None:
    """Under FCFS nobody gets a first token before one who came earlier, whatever the budget."""
    bench = Bench(blocks, budget=budget, seqs=4)
    sequences = [make_sequence(i, prompt, max_tokens=n) for i, (prompt, n) in enumerate(lengths)]
    for sequence in sequences:
        bench.add(sequence)
    while bench.scheduler.has_unfinished():
        bench.step()
        begun = [sequence.num_output_tokens > 0 for sequence in sequences]
        assert begun == sorted(begun, reverse=True)
    assert [s.num_output_tokens for s in sequences] == [n for _, n in lengths]
