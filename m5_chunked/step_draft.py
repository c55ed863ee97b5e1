"""A step while it is being planned: what is left of the budget, and who has got some of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from m2_batching.plan import BlockCopy, ScheduledSequence, SchedulerOutput


@dataclass
class StepDraft:
    """What :meth:`m5_chunked.scheduler.Scheduler.schedule` fills.

    Attributes:
        left: Tokens of the budget that nobody has.
        index: Running sequences before it have been served; those from it on may still be victims.
        singles: How many of those from ``index`` on lack a single token; never more than ``left``.
        limit: Largest slice of one sequence; 0 for none.
        admits: Whether waiting sequences may still begin in this step.
        parents: The parent's ``seq_id`` by that of a sample that was forked in this step.
        new: As in :class:`~m2_batching.plan.SchedulerOutput`; so are the following.
        advanced: Sequences that go on.
        preempted: Sequences that lost their blocks.
        copies: Block copies to make first.
    """

    left: int
    index: int = 0
    singles: int = 0
    limit: int = 0
    admits: bool = True
    parents: dict[int, int] = field(default_factory=dict)
    new: list[ScheduledSequence] = field(default_factory=list)
    advanced: list[ScheduledSequence] = field(default_factory=list)
    preempted: list[int] = field(default_factory=list)
    copies: list[BlockCopy] = field(default_factory=list)

    def slice_of(self, missing: int, *, is_counted: bool) -> int:
        """How many tokens the next sequence computes; 0 where it has to wait.

        A chunk leaves a token for each sequence after it that lacks a single one. So a decode never
        waits for a prompt, wherever in the order it stands.

        Args:
            missing: Tokens that the sequence lacks.
            is_counted: Whether ``singles`` counts it, if it lacks a single one.
        """
        kept = self.singles - (is_counted and missing == 1)
        return min(missing, self.left - kept, self.limit or missing)

    def plan(self, finished: tuple[int, ...]) -> SchedulerOutput:
        """The finished draft, with the sequences that ended since the last plan."""
        return SchedulerOutput(
            tuple(self.new),
            tuple(self.advanced),
            tuple(self.preempted),
            finished,
            tuple(self.copies),
        )
