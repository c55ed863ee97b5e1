"""One engine step as data: queues, slices of tokens, block events, outcomes.

Everything is a frozen dataclass of numbers and tuples. What can be derived (queues after the
step, tokens per phase) is a property, so a record cannot contradict itself there. Names are
vLLM's where vLLM has one (0.33.0, ``v1/core/sched/output.py``: tokens scheduled per request,
preempted and finished ids).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from common.request import Sequence

Phase = Literal["prefill", "decode"]
FinishReason = Literal["stop", "length", "abort"]
BlockEventKind = Literal["alloc", "free", "share", "hit", "cache", "evict", "copy"]


def phase_of(start: int, num_known_tokens: int, num_prompt_tokens: int) -> Phase:
    """Name the phase of a slice from the two counters alone.

    A slice decodes when it computes the one known token that is left, and that token is an output.
    Everything else fills a gap: a prompt, a chunk of it, or a recomputation after preemption.

    Args:
        start: ``num_computed_tokens`` before the step.
        num_known_tokens: ``num_tokens`` of the sequence before the step.
        num_prompt_tokens: Length of its prompt.
    """
    last_output = start >= num_prompt_tokens and start + 1 == num_known_tokens
    return "decode" if last_output else "prefill"


@dataclass(frozen=True)
class ScheduledSlice:
    """The tokens of one sequence that one step computes, and what was sampled after them.

    Attributes:
        seq_id: The sequence.
        request_id: The request it answers.
        start: ``num_computed_tokens`` before the step: position of the slice's first token.
        num_tokens: Tokens computed. 0 only for a sequence that was forked in this step and draws
            from its parent's last row.
        num_known_tokens: ``num_tokens`` of the sequence before the step.
        phase: :func:`phase_of` those counters.
        num_sampled: Rows that were sampled; 0 while a prefill is partial.
        token_ids: The sampled ids. Empty although ``num_sampled`` is not, where an overlapped loop
            dropped them (the sequence had ended or was preempted meanwhile).
    """

    seq_id: int
    request_id: str
    start: int
    num_tokens: int
    num_known_tokens: int
    phase: Phase
    num_sampled: int = 0
    token_ids: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        seq: Sequence,
        *,
        start: int,
        num_tokens: int,
        num_known_tokens: int,
        token_ids: tuple[int, ...] = (),
        num_sampled: int | None = None,
    ) -> ScheduledSlice:
        """A slice of ``seq``; counters are those before the step, ``num_sampled`` is derived.

        Args:
            seq: The sequence.
            start: Its ``num_computed_tokens`` before the step.
            num_tokens: Tokens the step computes.
            num_known_tokens: Its ``num_tokens`` before the step.
            token_ids: Ids sampled by the step.
            num_sampled: Rows sampled, where ids were dropped; ``len(token_ids)`` otherwise.
        """
        return cls(
            seq_id=seq.seq_id,
            request_id=seq.request.request_id,
            start=start,
            num_tokens=num_tokens,
            num_known_tokens=num_known_tokens,
            phase=phase_of(start, num_known_tokens, seq.num_prompt_tokens),
            num_sampled=len(token_ids) if num_sampled is None else num_sampled,
            token_ids=tuple(token_ids),
        )


@dataclass(frozen=True)
class Admission:
    """A sequence that left the waiting queue in this step.

    Attributes:
        seq_id: The sequence.
        num_cached_tokens: Leading tokens whose KV it starts with: a prefix hit, or its parent's.
        forked_from: ``seq_id`` of the parent, for parallel samples that share its blocks.
    """

    seq_id: int
    num_cached_tokens: int = 0
    forked_from: int | None = None


@dataclass(frozen=True)
class Finish:
    """A sequence that ended with this step.

    Attributes:
        seq_id: The sequence.
        reason: ``stop``, ``length`` or ``abort``. An abort between two steps belongs to the later.
    """

    seq_id: int
    reason: FinishReason


@dataclass(frozen=True)
class BlockEvent:
    """One change of ownership or content of a KV block (or of a slot, where slots are the unit).

    ============ ==================================================================================
    alloc        a free block joins the end of ``seq_id``'s table
    share        an owned block joins the end of ``seq_id``'s table as well
    hit          a cached block (free or owned) joins the end of ``seq_id``'s table
    copy         copy on write: ``block``, taken from the free ones, holds what ``source`` held; it
                 replaces ``source`` in ``seq_id``'s table, or joins its end where it was not there
    free         ``seq_id`` gives ``block`` up; the last owner's free makes it a free block
    cache        the content of an owned, full block enters the prefix index
    evict        the content of a free block leaves the prefix index (no owner)
    ============ ==================================================================================

    Attributes:
        kind: One of the seven.
        block: The block's id.
        seq_id: The owner concerned; None for ``evict``.
        source: The block copied from, for ``copy`` only.
    """

    kind: BlockEventKind
    block: int
    seq_id: int | None = None
    source: int | None = None


@dataclass(frozen=True)
class StepRecord:
    """One engine step.

    Attributes:
        index: Number of the step, from 0.
        waiting: ``seq_id`` of the waiting queue when the step was scheduled, in order.
        running: ``seq_id`` of the running sequences when the step was scheduled, in order.
        admitted: Sequences that began (or began again) to run.
        preempted: ``seq_id`` of sequences sent back to the waiting queue.
        slices: The batch, in order.
        finished: Sequences that ended.
        block_events: In the order in which they happened since the record before.
        num_padding_tokens: Token positions computed for nothing (rectangular or captured batches).
        elapsed_ms: Wall time; no part of equality or of the canonical form.
    """

    index: int
    waiting: tuple[int, ...] = ()
    running: tuple[int, ...] = ()
    admitted: tuple[Admission, ...] = ()
    preempted: tuple[int, ...] = ()
    slices: tuple[ScheduledSlice, ...] = ()
    finished: tuple[Finish, ...] = ()
    block_events: tuple[BlockEvent, ...] = ()
    num_padding_tokens: int = 0
    elapsed_ms: float | None = field(default=None, compare=False)

    @property
    def num_tokens(self) -> int:
        """Tokens computed in the step, padding left out."""
        return sum(part.num_tokens for part in self.slices)

    @property
    def sampled(self) -> dict[int, tuple[int, ...]]:
        """Sampled ids by ``seq_id``, sequences without any left out."""
        return {part.seq_id: part.token_ids for part in self.slices if part.token_ids}

    @property
    def running_after(self) -> tuple[int, ...]:
        """``seq_id`` still running once the step's own decisions and results are applied."""
        gone = {*self.preempted, *(done.seq_id for done in self.finished)}
        begun = (item.seq_id for item in self.admitted)
        return tuple(seq_id for seq_id in (*self.running, *begun) if seq_id not in gone)

    @property
    def waiting_after(self) -> tuple[int, ...]:
        """``seq_id`` waiting after the step, preempted ones first, as FCFS puts them back."""
        gone = {*(item.seq_id for item in self.admitted), *(done.seq_id for done in self.finished)}
        return tuple(seq_id for seq_id in (*self.preempted, *self.waiting) if seq_id not in gone)

    def tokens_of(self, phase: Phase) -> int:
        """Tokens that the step computed in ``phase``."""
        return sum(part.num_tokens for part in self.slices if part.phase == phase)

    def summary(self) -> str:
        """One line for a terminal or a notebook cell."""
        parts = [
            f"step {self.index}",
            f"waiting {len(self.waiting_after)}",
            f"running {len(self.running_after)}",
            f"prefill {self.tokens_of('prefill')} + decode {self.tokens_of('decode')} tokens",
        ]
        if self.num_padding_tokens:
            parts.append(f"padding {self.num_padding_tokens}")
        if self.preempted:
            parts.append(f"preempted {', '.join(map(str, self.preempted))}")
        if self.finished:
            ended = (f"{done.seq_id} ({done.reason})" for done in self.finished)
            parts.append(f"finished {', '.join(ended)}")
        return " | ".join(parts)
