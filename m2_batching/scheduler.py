"""Iteration-level scheduling (Orca, Yu et al. 2022): the batch is decided anew for every step.

A sequence joins as soon as there is a slot and leaves in the step in which it finishes; nobody
waits for the longest of a group. Two rules make this stage's policy:

* **prefill first**: while there is a free slot and someone waits, the step admits and computes
  prompts, and running sequences pause. M5 measures what that costs them, and changes it;
* **every running sequence advances** in every other step.

State of a sequence::

    WAITING ──admit──▶ RUNNING ──EOS, stop, length──▶ FINISHED_*
        ▲                 │  ▲
        └──── PREEMPTED ◀─┘  └ (each step)
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from common.block_log import BlockLog
from common.request import Sequence, SequenceStatus
from common.step_record import BlockEvent
from m2_batching.plan import ScheduledSequence, SchedulerOutput, StepResult
from m2_batching.request_queue import RequestQueue

OnToken = Callable[[Sequence], None]


def append_sampled(
    plan: SchedulerOutput, result: StepResult, now: float, on_token: OnToken
) -> list[Sequence]:
    """Append each sampled id to its sequence and ask whether it was the last.

    A sequence that has ended meanwhile drops its id. One that was preempted keeps it: the id was
    sampled from all that the sequence had.

    Returns:
        Every sequence that got a token, in the order of the plan, finished ones included.
    """
    touched = []
    for item in plan.scheduled:
        sequence = item.sequence
        token = result.token_ids.get(item.seq_id)
        if token is None or sequence.is_finished:
            continue
        sequence.append(token, now)
        if item.seq_id in result.logprobs:
            sequence.logprobs.append(result.logprobs[item.seq_id])
        on_token(sequence)
        touched.append(sequence)
    return touched


class SlotPool:
    """Numbers of the free slots, smallest first, so that used slots stay dense at the front.

    Attributes:
        size: Slots in all.
        log: What happened since it was last drained, for the trace.
    """

    def __init__(self, size: int, log: BlockLog | None = None) -> None:
        """All slots are free.

        Args:
            size: How many there are, at least 1.
            log: Where events go; a new one where None.
        """
        assert size >= 1
        self.size = size
        self.log = BlockLog() if log is None else log
        self._free = list(range(size))
        self._slot_of: dict[int, int] = {}

    def take(self, seq_id: int) -> int:
        """Give ``seq_id`` the smallest free slot; there must be one."""
        slot = heapq.heappop(self._free)
        assert seq_id not in self._slot_of, f"sequence {seq_id} has a slot"
        self._slot_of[seq_id] = slot
        self.log.add("alloc", [slot], seq_id)
        return slot

    def release(self, seq_id: int) -> None:
        """Take the slot of ``seq_id`` back."""
        slot = self._slot_of.pop(seq_id)
        heapq.heappush(self._free, slot)
        self.log.add("free", [slot], seq_id)

    def drain_events(self) -> tuple[BlockEvent, ...]:
        """What happened since the last call."""
        return self.log.drain()

    @property
    def num_free(self) -> int:
        """How many are free."""
        return len(self._free)


class Scheduler:
    """Decides, step by step, which sequences compute how many tokens."""

    def __init__(
        self,
        queue: RequestQueue,
        num_slots: int,
        max_num_batched_tokens: int,
        on_token: OnToken,
        *,
        keep_events: bool = True,
    ) -> None:
        """Start with nobody waiting.

        Args:
            queue: The waiting queue; its order is the policy.
            num_slots: Sequences that can run at the same time.
            max_num_batched_tokens: Tokens of one prefill step, padding included. A longer prompt
                runs in a step of its own.
            on_token: Called with each sequence that got a token; finishes it if that was the last.
            keep_events: Whether :meth:`drain_events` is asked for them.
        """
        self.waiting = queue
        self.running: list[Sequence] = []
        self.slots = SlotPool(num_slots, BlockLog(is_kept=keep_events))
        self.max_num_batched_tokens = max_num_batched_tokens
        self._on_token = on_token
        self._finished: list[int] = []

    def add(self, sequences: list[Sequence]) -> None:
        """Take the sequences of a new request into the waiting queue."""
        for sequence in sequences:
            self.waiting.push(sequence)

    def has_unfinished(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.running) or len(self.waiting) > 0

    def schedule(self) -> SchedulerOutput:
        """Plan one step and advance ``num_computed_tokens`` as if it had run."""
        self.waiting.tick()
        preempted: list[int] = []
        new = self._admit(preempted)
        advanced = () if new else tuple(map(ScheduledSequence.all_missing, self.running))
        for item in new:
            item.sequence.status = SequenceStatus.RUNNING
            self.running.append(item.sequence)
        for item in (*advanced, *new):
            item.sequence.num_computed_tokens = item.end
        finished, self._finished = tuple(self._finished), []
        return SchedulerOutput(tuple(new), advanced, tuple(preempted), finished)

    def update(self, plan: SchedulerOutput, result: StepResult, now: float) -> list[Sequence]:
        """Append what was sampled, and remove who has finished, in this same step.

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
            self.slots.release(sequence.seq_id)
            self._finished.append(sequence.seq_id)
        if done:
            self.running = [s for s in self.running if not s.is_finished]
        return touched

    def abort(self, sequence: Sequence) -> None:
        """End a sequence in whatever state it is; a finished one stays as it is."""
        if sequence.is_finished:
            return
        if sequence.status is SequenceStatus.RUNNING:
            self.running.remove(sequence)
            self.slots.release(sequence.seq_id)
        self.waiting.discard(sequence)
        self._finished.append(sequence.seq_id)
        sequence.finish(SequenceStatus.FINISHED_ABORTED)

    def drain_events(self) -> tuple[BlockEvent, ...]:
        """Slots taken and returned since the last call; nothing without ``keep_events``."""
        return self.slots.drain_events()

    def shrink(self, num_slots: int) -> tuple[int, ...]:
        """Give all memory back and go on with fewer slots: the device had less than was thought.

        Everybody is preempted, and comes back in the same order.

        Returns:
            ``seq_id`` of those who were running.
        """
        preempted = tuple(sequence.seq_id for sequence in self.running)
        for sequence in reversed(list(self.running)):
            self._preempt(sequence)
        self.slots = SlotPool(num_slots, self.slots.log)
        return preempted

    def _admit(self, preempted: list[int]) -> list[ScheduledSequence]:
        """Take from the queue while there are slots and the padded batch stays in its budget."""
        new: list[ScheduledSequence] = []
        longest = 0
        while len(self.waiting):
            sequence = self.waiting.peek()
            if sequence.seq_id in preempted:
                break  # it lost its place in this very step
            longest = max(longest, sequence.num_tokens)
            if new and longest * (len(new) + 1) > self.max_num_batched_tokens:
                break
            self.waiting.pop()  # first, because a victim may be put back ahead of it
            if not self.slots.num_free and not self._make_room(sequence, preempted):
                self.waiting.push_front(sequence)
                break
            sequence.num_computed_tokens = 0
            slot = self.slots.take(sequence.seq_id)
            new.append(ScheduledSequence.all_missing(sequence, (slot,)))
        return new

    def _make_room(self, sequence: Sequence, preempted: list[int]) -> bool:
        """Preempt the least important running sequence, if it is less important than this one.

        Among equals the last that was admitted goes: it has the least to compute again. The
        comparison uses plain priorities, without age, so that two sequences never take each
        other's place in turns.
        """
        victim = max(
            self.running,
            key=lambda s: (s.request.priority, s.seq_id),
            default=None,
        )
        if victim is None or victim.request.priority <= sequence.request.priority:
            return False
        preempted.append(victim.seq_id)
        self._preempt(victim)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Take its slot; what it computed is void, the tokens it generated are not."""
        self.running.remove(sequence)
        self.slots.release(sequence.seq_id)
        sequence.num_computed_tokens = 0
        sequence.status = SequenceStatus.PREEMPTED
        self.waiting.push_front(sequence)
