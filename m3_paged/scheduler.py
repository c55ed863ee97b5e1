"""Scheduling over blocks: a sequence takes memory as it grows, and gives it up when there is none.

The policy is M2's (prefill first, everybody else decodes), the memory is not:

* admission asks for the blocks of the prompt, not for ``max_model_len`` places;
* a running sequence asks for a block when it fills its last one. When none is free, the sequence
  that arrived last is preempted: its blocks are freed, its tokens kept, and it computes them again
  when it comes back (recompute; vLLM V1 has no swap either);
* parallel samples share their prompt: sequence 0 computes it without its last token, then the
  others are forked, and each computes that token itself and draws from it. So one scheduled
  sequence yields at most one token, here and in every later stage.
"""

from __future__ import annotations

from common.errors import InvalidRequestError
from common.request import Request, Sequence, SequenceStatus
from common.step_record import BlockEvent
from m2_batching.plan import BlockCopy, ScheduledSequence, SchedulerOutput, StepResult
from m2_batching.request_queue import RequestQueue
from m2_batching.scheduler import OnToken, append_sampled
from m3_paged.kv_cache_manager import KVCacheManager


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
        manager: KVCacheManager,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        on_token: OnToken,
    ) -> None:
        """Start with nobody waiting.

        Args:
            queue: The waiting queue; its order is the policy.
            manager: Gives and takes blocks.
            max_num_seqs: Sequences that may run at the same time.
            max_num_batched_tokens: Prompt tokens of one step. A longer prompt runs alone.
            on_token: Called with each sequence that got a token; finishes it if that was the last.
        """
        self.waiting, self.manager = queue, manager
        self.running: list[Sequence] = []
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.num_preemptions = 0
        self._on_token = on_token
        # Parallel samples that will be forked, by the seq_id of the one that computes the prompt.
        self._siblings: dict[int, list[Sequence]] = {}
        self._finished: list[int] = []

    def add(self, sequences: list[Sequence]) -> None:
        """Take a new request: the first sequence queues, the others will be forked from it."""
        first, *others = sequences
        self.waiting.push(first)
        if first.num_prompt_tokens > 1 and others:
            self._siblings[first.seq_id] = others
        else:  # a prompt of one token has nothing to share
            for sequence in others:
                self.waiting.push(sequence)

    def has_unfinished(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.running) or len(self.waiting) > 0

    def schedule(self) -> SchedulerOutput:
        """Plan one step and advance ``num_computed_tokens`` as if it had run."""
        self.waiting.tick()
        preempted: list[int] = []
        copies: list[BlockCopy] = []
        new, advanced = self._admit(preempted), list[ScheduledSequence]()
        if not new:
            parents = self._fork()
            for item in self._advance(parents, preempted, copies):
                (new if item.forked_from is not None else advanced).append(item)
        for item in (*advanced, *new):
            item.sequence.num_computed_tokens = item.end
        finished, self._finished = tuple(self._finished), []
        return SchedulerOutput(
            tuple(new), tuple(advanced), tuple(preempted), finished, tuple(copies)
        )

    def update(self, plan: SchedulerOutput, result: StepResult, now: float) -> list[Sequence]:
        """Append what was sampled, and free who has finished, in this same step.

        Args:
            plan: The step that ran.
            result: What it sampled.
            now: ``time.perf_counter()`` seconds at which the ids were known.

        Returns:
            Every sequence that got a token, finished ones included.
        """
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
        self._siblings.pop(sequence.seq_id, None)
        if sequence.status is SequenceStatus.RUNNING:
            self.running.remove(sequence)
            self.manager.free(sequence)
        self.waiting.discard(sequence)  # a sample that waits for its fork is in no queue
        self._finished.append(sequence.seq_id)
        sequence.finish(SequenceStatus.FINISHED_ABORTED)

    def drain_events(self) -> tuple[BlockEvent, ...]:
        """Blocks taken, shared and returned since the last call, for the trace."""
        return self.manager.drain_events()

    def _admit(self, preempted: list[int]) -> list[ScheduledSequence]:
        """Take from the queue, in order, while seats, budget and blocks last.

        The first that does not fit ends it: a smaller one behind it would starve it otherwise.
        """
        new: list[ScheduledSequence] = []
        budget = self.max_num_batched_tokens
        while len(self.waiting):
            sequence = self.waiting.peek()
            if sequence.seq_id in preempted:
                break  # it lost its place in this very step
            start = self.manager.match_prefix(sequence)
            # A parent leaves the last token of its prompt to each of its samples.
            is_parent = sequence.seq_id in self._siblings
            count = sequence.num_tokens - start - (1 if is_parent else 0)
            if new and count > budget:
                break
            sequence.num_computed_tokens = start
            self.waiting.pop()  # first, because a victim may be put back ahead of it
            if not self._find_room(sequence, count, preempted, new):
                self.waiting.push_front(sequence)
                break
            budget -= count
            sequence.status = SequenceStatus.RUNNING
            self.running.append(sequence)
            blocks = self.manager.block_ids(sequence)
            new.append(
                ScheduledSequence(
                    sequence,
                    start,
                    count,
                    sequence.num_tokens,
                    blocks,
                    num_sampled=0 if is_parent else 1,
                )
            )
        if new:
            self.running.sort(key=_importance)
        return new

    def _find_room(
        self,
        sequence: Sequence,
        count: int,
        preempted: list[int],
        new: list[ScheduledSequence],
    ) -> bool:
        """Seats and blocks for a waiting sequence, if need be taken from less important ones.

        Nobody is preempted in vain: where all of them together hold too little, they go on.
        """
        victims = self._victims(sequence, count, {item.seq_id for item in new})
        if victims is None:
            return False
        for victim in victims:
            self._preempt(victim)
            preempted.append(victim.seq_id)
        copies = self.manager.allocate_slots(sequence, count)
        assert copies is not None
        return True

    def _victims(self, sequence: Sequence, count: int, begun: set[int]) -> list[Sequence] | None:
        """Who has to go so that ``sequence`` can begin, the least important first.

        Args:
            sequence: It waits.
            count: Tokens it would compute.
            begun: Admitted in this step: their tokens are in the plan, so they keep their places.

        Returns:
            None where even all the less important ones would not be enough.
        """
        seats = 1 + len(self._siblings.get(sequence.seq_id, ())) - self._seats_left()
        pool = self.manager.pool
        blocks = self.manager.blocks_for(sequence.num_computed_tokens + count) - pool.num_free
        victims: list[Sequence] = []
        owners: dict[int, int] = {}  # of a block, among the victims
        for victim in reversed(self.running):
            if seats <= 0 and blocks <= 0:
                break
            if victim.seq_id in begun:
                continue
            if victim.request.priority <= sequence.request.priority:
                break
            victims.append(victim)
            seats -= 1 + len(self._siblings.get(victim.seq_id, ()))
            for block in self.manager.block_ids(victim):
                owners[block] = owners.get(block, 0) + 1
                blocks -= owners[block] == pool.blocks[block].ref_cnt
        return victims if seats <= 0 and blocks <= 0 else None

    def _seats_left(self) -> int:
        """Sequences that may still be admitted; samples to be forked have their seats already."""
        reserved = sum(len(self._siblings.get(s.seq_id, ())) for s in self.running)
        return self.max_num_seqs - len(self.running) - reserved

    def _fork(self) -> dict[int, int]:
        """Start the samples whose prompt is computed but for its last token.

        Returns:
            The parent's ``seq_id`` by the child's.
        """
        parents: dict[int, int] = {}
        if not self._siblings:
            return parents
        for parent in [s for s in self.running if s.seq_id in self._siblings]:
            assert parent.num_computed_tokens == parent.num_tokens - 1
            for child in self._siblings.pop(parent.seq_id):
                self.manager.fork(parent, child)
                child.num_computed_tokens = parent.num_computed_tokens
                child.status = SequenceStatus.RUNNING
                self.running.append(child)
                parents[child.seq_id] = parent.seq_id
        self.running.sort(key=_importance)
        return parents

    def _advance(
        self, parents: dict[int, int], preempted: list[int], copies: list[BlockCopy]
    ) -> list[ScheduledSequence]:
        """One token for every running sequence, preempting from the back when blocks run out.

        Victims are taken from the end and served from the front, so that a victim was never
        scheduled in the same step, and the most important sequence always goes on.
        """
        items: list[ScheduledSequence] = []
        index = 0
        while index < len(self.running):
            sequence = self.running[index]
            changed = self.manager.num_blocks(sequence)
            made = self.manager.allocate_slots(sequence, 1)
            if made is None:
                victim = self.running[-1]
                self._preempt(victim)
                if victim.seq_id not in parents:  # else its fork was undone before it ever ran
                    preempted.append(victim.seq_id)
                continue  # the same sequence again, unless it was the victim
            copies += made
            parent = parents.get(sequence.seq_id)
            if parent is not None:
                changed = 0  # the runner has not seen this table
            elif made:
                changed = sequence.num_computed_tokens // self.manager.block_size
            items.append(
                ScheduledSequence(
                    sequence,
                    sequence.num_computed_tokens,
                    1,
                    sequence.num_tokens,
                    self.manager.block_ids(sequence, changed),
                    changed,
                    forked_from=parent,
                )
            )
            index += 1
        return items

    def _preempt(self, sequence: Sequence) -> None:
        """Take its blocks; what it computed is void, the tokens it generated are not."""
        self.running.remove(sequence)
        self.manager.free(sequence)
        sequence.num_computed_tokens = 0
        sequence.status = SequenceStatus.PREEMPTED
        self.waiting.push_front(sequence)
        self.num_preemptions += 1


def check_seats(request: Request, seats: int) -> None:
    """All parallel samples of a request must be able to run at the same time.

    Raises:
        InvalidRequestError: There are more than ``seats``.
    """
    count = request.sampling_params.n
    if count > seats:
        raise InvalidRequestError(f"n is {count}, more than max_num_seqs ({seats})")


def _importance(sequence: Sequence) -> tuple[int, int]:
    return sequence.request.priority, sequence.seq_id
