"""What a scheduler tells a runner, and what comes back: plain data, in counts and deltas.

The scheduler never sees a tensor and the runner never sees a queue. A sequence is described once,
when it is (re)admitted; after that a step only says how many more tokens it computes and which
memory it was given. As in vLLM 0.33.0, ``v1/core/sched/output.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from common.outputs import Logprob
from common.request import Sequence


@dataclass(frozen=True)
class BlockCopy:
    """Copy the K and V of one block onto another, in every layer, before the step runs.

    Attributes:
        source: Block to read.
        target: Block to overwrite.
    """

    source: int
    target: int


@dataclass(frozen=True)
class ScheduledSequence:
    """One sequence of a step.

    Attributes:
        sequence: Its ids and parameters; the runner reads them and changes nothing.
        start: Position of the first token to compute (``num_computed_tokens`` before the step).
        num_tokens: Tokens to compute.
        num_known_tokens: Ids the sequence had when it was scheduled.
        new_block_ids: KV blocks (in M2: the one slot) that joined its table for this step.
        table_start: Where in the table they go; entries from there on are replaced. Beyond the
            end for blocks that are merely appended, before it after a copy on write.
        num_sampled: Rows to sample after its last token: 0 for a partial prefill, else 1.
        forked_from: ``seq_id`` of the sequence whose memory it starts with, where there is one.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    num_known_tokens: int
    new_block_ids: tuple[int, ...] = ()
    table_start: int = 0
    num_sampled: int = 1
    forked_from: int | None = None

    def __post_init__(self) -> None:
        """A scheduled sequence computes something it knows."""
        assert self.num_tokens >= 1, f"sequence {self.seq_id} computes nothing"
        assert self.end <= self.num_known_tokens, f"sequence {self.seq_id} computes the unknown"

    @classmethod
    def all_missing(
        cls, sequence: Sequence, new_block_ids: tuple[int, ...] = ()
    ) -> ScheduledSequence:
        """All from ``num_computed_tokens`` to ``num_tokens``: a whole prompt, or one token."""
        start, known = sequence.num_computed_tokens, sequence.num_tokens
        return cls(sequence, start, known - start, known, new_block_ids)

    @property
    def seq_id(self) -> int:
        """The sequence's number."""
        return self.sequence.seq_id

    @property
    def end(self) -> int:
        """Position after the last token to compute."""
        return self.start + self.num_tokens


@dataclass(frozen=True)
class SchedulerOutput:
    """One step.

    Attributes:
        new: Sequences that begin (or begin again) to run.
        advanced: Sequences that were running and go on.
        preempted: Sequences whose memory was taken; their device state is void.
        finished: Sequences that ended since the last plan; their device state can go.
        copies: Block copies to make first.
    """

    new: tuple[ScheduledSequence, ...] = ()
    advanced: tuple[ScheduledSequence, ...] = ()
    preempted: tuple[int, ...] = ()
    finished: tuple[int, ...] = ()
    copies: tuple[BlockCopy, ...] = ()

    @property
    def scheduled(self) -> tuple[ScheduledSequence, ...]:
        """The batch in order: those that were running, then the new ones."""
        return self.advanced + self.new

    @property
    def num_tokens(self) -> int:
        """Tokens the step computes."""
        return sum(item.num_tokens for item in self.scheduled)


@dataclass(frozen=True)
class StepResult:
    """What one step sampled.

    Attributes:
        token_ids: Sampled id by ``seq_id``; a partial prefill is absent.
        logprobs: Candidates by ``seq_id``, for requests that asked.
        num_padding_tokens: Positions computed for nothing.
    """

    token_ids: dict[int, int]
    logprobs: dict[int, dict[int, Logprob]] = field(default_factory=dict)
    num_padding_tokens: int = 0
