"""Chunked prefill: one token budget per step, shared by everybody who lacks tokens.

There is no prefill step and no decode step any more. A sequence lacks the tokens between
``num_computed_tokens`` and ``num_tokens``, and a step computes some of them. A decoding sequence
lacks one. A prompt lacks many: where the budget does not hold them all it gets a chunk, and goes on
in the next step beside the decodes (Sarathi-Serve, Agrawal et al. 2024; vLLM 0.33.0,
``v1/core/sched/scheduler.py``, ``schedule``)::

    budget 8        step 1         step 2         step 3
    A decodes       a              a              a
    B decodes       b              b              b
    C, prompt 14    c c c c c c    c c c c c c    c c ● its first token
    D, prompt 6                                   d d d d

Sequences are served in the order of their importance: by priority, then by arrival. Running ones
are served from the front, victims of preemption are taken from the back, and one that was served is
never a victim. So no token of the budget is ever given back, and what the cache was told
(``publish``) stays true. Waiting sequences begin after the running ones; only under the priority
policy one that outranks a running sequence comes before it, and may take its blocks and its seat.
"""

from __future__ import annotations

import sys

from common.request import Sequence, SequenceStatus
from common.step_record import BlockEvent
from m2_batching.plan import ScheduledSequence, SchedulerOutput, StepResult
from m2_batching.request_queue import RequestQueue
from m2_batching.scheduler import OnToken, append_sampled
from m5_chunked.cache_interface import CacheManager, PrefixCache
from m5_chunked.in_flight import InFlight
from m5_chunked.seats import Seats
from m5_chunked.step_draft import StepDraft
from m5_chunked.victims import find_victims


class Scheduler:
    """Decides, step by step, which sequences compute how many tokens, and with which blocks.

    Attributes:
        waiting: Sequences without memory.
        running: Sequences with memory, most important first: by priority, then by arrival.
        num_preemptions: How often a sequence lost its blocks.
    """

    def __init__(
        self,
        queue: RequestQueue,
        manager: CacheManager,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        on_token: OnToken,
        long_prefill_token_threshold: int = 0,
        prefix_cache: PrefixCache | None = None,
        max_model_len: int = sys.maxsize,
    ) -> None:
        """Start with nobody waiting.

        Args:
            queue: The waiting queue; its order is the policy.
            manager: Gives and takes blocks.
            max_num_seqs: Sequences that may run at the same time.
            max_num_batched_tokens: Tokens of one step, prompts and decodes together.
            on_token: Called with each sequence that got a token; finishes it if that was the last.
            long_prefill_token_threshold: Largest slice of one sequence while there are others; 0
                leaves it to the budget.
            prefix_cache: The manager again, if it shares prefixes.
            max_model_len: No sequence gets longer, which the overlapped loop must foresee.
        """
        self.waiting, self.manager = queue, manager
        self.running: list[Sequence] = []
        self.max_num_batched_tokens = max_num_batched_tokens
        self.long_prefill_token_threshold = long_prefill_token_threshold
        self.num_preemptions = 0
        self._on_token, self._prefix_cache = on_token, prefix_cache
        self._seats = Seats(max_num_seqs, max_num_batched_tokens)
        self._in_flight = InFlight(max_model_len)
        self._finished: list[int] = []

    def add(self, sequences: list[Sequence]) -> None:
        """Take a new request; most of its samples wait to be forked from the first."""
        for sequence in self._seats.enter(sequences):
            self.waiting.push(sequence)

    def has_unfinished(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.running) or len(self.waiting) > 0

    def schedule(self) -> SchedulerOutput:
        """Plan one step and advance ``num_computed_tokens`` as if it had run."""
        self.waiting.tick()
        step = StepDraft(self.max_num_batched_tokens)
        self._fork(step)
        if len(self.running) + len(self.waiting) > 1:
            step.limit = self.long_prefill_token_threshold
        step.singles = sum(self._missing(sequence) == 1 for sequence in self.running)
        while step.index < len(self.running):
            if not (self._is_outranked(self.running[step.index]) and self._admit(step)):
                self._serve(self.running[step.index], step)
        while self._admit(step):
            pass
        if step.new:
            self.running.sort(key=_importance)
        for item in (*step.advanced, *step.new):
            item.sequence.num_computed_tokens = item.end
        self._in_flight.launch((*step.advanced, *step.new))
        finished, self._finished = tuple(self._finished), []
        return step.plan(finished)

    def update(self, plan: SchedulerOutput, result: StepResult, now: float) -> list[Sequence]:
        """Append what was sampled, and free who has finished, in this same step.

        Args:
            plan: The step that ran.
            result: What it sampled; nothing for a partial prefill.
            now: ``time.perf_counter()`` seconds at which the ids were known.

        Returns:
            Every sequence that got a token, finished ones included.
        """
        self._in_flight.land(plan.scheduled)
        touched = append_sampled(plan, result, now, self._on_token)
        done = [sequence for sequence in touched if sequence.is_finished]
        for sequence in done:
            self.waiting.discard(sequence)
            self.manager.free(sequence)
            self._finished.append(sequence.seq_id)
        if done:
            self.running = [s for s in self.running if not s.is_finished]
        return touched

    def abort(self, sequence: Sequence) -> None:
        """End a sequence in whatever state it is; a finished one stays as it is.

        A parent must be aborted together with the samples that wait to be forked from it.
        """
        if sequence.is_finished:
            return
        self._seats.samples_of(sequence)
        if sequence.status is SequenceStatus.RUNNING:
            self.running.remove(sequence)
            self.manager.free(sequence)
        self.waiting.discard(sequence)  # a sample that waits for its fork is in no queue
        self._finished.append(sequence.seq_id)
        sequence.finish(SequenceStatus.FINISHED_ABORTED)

    def drain_events(self) -> tuple[BlockEvent, ...]:
        """Blocks taken, shared and returned since the last call, for the trace."""
        return self.manager.drain_events()

    def _known(self, sequence: Sequence) -> int:
        """Ids that a step may compute. Ids still in flight count here, and nowhere else."""
        return self._in_flight.known(sequence)

    def _missing(self, sequence: Sequence) -> int:
        """Tokens that are known and not computed: the whole of this scheduler's arithmetic.

        A parent leaves the last token of its prompt to each of its samples.
        """
        missing = self._in_flight.missing(sequence)
        return missing - 1 if missing and self._seats.is_parent(sequence) else missing

    def _serve(self, sequence: Sequence, step: StepDraft) -> None:
        """Tokens for the next running sequence, preempting from the back if blocks run out.

        The first in the list always gets at least one, for there are no more seats than tokens, and
        it has the pool to itself once all others are preempted. So it comes to its end, and then
        the next one is the first: nobody starves. A chunk behind a chunk may get nothing.
        """
        missing = self._missing(sequence)
        count = step.slice_of(missing, is_counted=True)
        if count > 0 and not self._place(sequence, count, step, new=False):
            self._preempt(self.running[-1], step)
            return  # the same sequence again, unless it was the victim
        step.singles -= missing == 1
        step.index += 1

    def _admit(self, step: StepDraft) -> bool:
        """Let the first in the queue begin, perhaps with a chunk of its prompt.

        If it finds no token, seat or blocks, nobody else begins in this step: a smaller one behind
        it would starve it otherwise. Nor does anybody begin after a preemption: blocks are short.

        Returns:
            Whether it began.
        """
        if not (step.admits and len(self.waiting)):
            return False
        if not self._has_token_and_seat(step):
            step.admits = False
            return False
        sequence = self.waiting.pop()  # first, because a victim may be put back ahead of it
        sequence.num_computed_tokens = self.manager.match_prefix(sequence)
        if self._missing(sequence) == 0:  # its samples can all begin where it does
            for sample in reversed(self._seats.samples_of(sequence)):
                self.waiting.push_front(sample)
        if not self._make_room(sequence, step):
            sequence.num_computed_tokens = 0
            self.waiting.push_front(sequence)
            step.admits = False
            return False
        count = step.slice_of(self._missing(sequence), is_counted=False)
        placed = self._place(sequence, count, step, new=True)
        assert placed, f"sequence {sequence.seq_id} was promised blocks"
        sequence.status = SequenceStatus.RUNNING
        self.running.insert(step.index, sequence)
        step.index += 1
        return True

    def _has_token_and_seat(self, step: StepDraft) -> bool:
        """A first look, before the cache is asked: may anybody begin at all?"""
        if self._seats.left(self.running) > 0:
            return step.left > step.singles
        if step.index == len(self.running):
            return False  # no seat, and no victim that could give one
        # The victim leaves its token together with its seat, if one was kept for it.
        return step.left > step.singles - (self._missing(self.running[-1]) == 1)

    def _make_room(self, sequence: Sequence, step: StepDraft) -> bool:
        """Seats and blocks for a waiting sequence, if need be taken from less important ones.

        Nobody is preempted in vain: where all of them together hold too little, they go on. Room
        for the *whole* prompt must be there, though only the blocks of its first chunk are taken
        now: a prompt that cannot get to its end would lose its chunks again (vLLM's
        ``full_sequence_must_fit``).
        """
        victims = find_victims(
            sequence,
            self._missing(sequence),
            self.running[step.index :],  # none, or all of them outranked
            self.manager,
            hits=self._prefix_cache.hit_ids(sequence) if self._prefix_cache is not None else (),
            seats=self._seats.needed_by(sequence) - self._seats.left(self.running),
            seats_of=self._seats.needed_by,
        )
        for victim in victims or ():
            self._preempt(victim, step)
        return victims is not None

    def _place(self, sequence: Sequence, count: int, step: StepDraft, *, new: bool) -> bool:
        """Take the blocks of the next ``count`` tokens and enter them into the step, or do nothing.

        From here on the sequence's place is final, so its blocks can be published.
        """
        first = self.manager.num_blocks(sequence)
        copies = self.manager.allocate_slots(sequence, count)
        if copies is None:
            return False
        start, known = sequence.num_computed_tokens, self._known(sequence)
        parent = step.parents.get(sequence.seq_id)
        new = new or parent is not None
        if new:
            first = 0  # the runner has not seen this table
        elif copies:
            first = start // self.manager.block_size
        item = ScheduledSequence(
            sequence,
            start,
            count,
            known,
            self.manager.block_ids(sequence, first),
            first,
            num_sampled=int(start + count == known),
            forked_from=parent,
        )
        (step.new if new else step.advanced).append(item)
        step.left -= count
        step.copies += copies
        if self._prefix_cache is not None:
            self._prefix_cache.publish(sequence, item.end)
        return True

    def _is_outranked(self, sequence: Sequence) -> bool:
        """Whether the first in the queue is more important; never so under FCFS.

        Plain priorities, without age, so that two sequences never take each other's place in turns.
        """
        if not len(self.waiting):
            return False
        return self.waiting.peek().request.priority < sequence.request.priority

    def _fork(self, step: StepDraft) -> None:
        """Start the samples whose prompt is computed but for its last token."""
        if not self._seats.has_parents:
            return
        for parent in [s for s in self.running if self._seats.is_parent(s)]:
            if self._missing(parent):
                continue
            for child in self._seats.samples_of(parent):
                self.manager.fork(parent, child)
                child.num_computed_tokens = parent.num_computed_tokens
                child.status = SequenceStatus.RUNNING
                self.running.append(child)
                step.parents[child.seq_id] = parent.seq_id
        if step.parents:
            self.running.sort(key=_importance)

    def _preempt(self, sequence: Sequence, step: StepDraft) -> None:
        """Take its blocks; what it computed is void, the tokens it generated are not.

        A sample whose fork is undone before it ever ran is unknown to the runner.
        """
        step.admits = False
        if sequence.seq_id not in step.parents:
            step.preempted.append(sequence.seq_id)
        step.singles -= self._missing(sequence) == 1
        self.running.remove(sequence)
        self.manager.free(sequence)
        sequence.num_computed_tokens = 0
        sequence.status = SequenceStatus.PREEMPTED
        self.waiting.push_front(sequence)
        self.num_preemptions += 1


def _importance(sequence: Sequence) -> tuple[int, int]:
    return sequence.request.priority, sequence.seq_id
