"""Writes the trace of a step engine: queues before the step, the plan, what came of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from common.request import Sequence
from common.step_record import Admission, BlockEvent, Finish, ScheduledSlice
from common.trace import Trace, TraceInfo
from m2_batching.plan import ScheduledSequence, SchedulerOutput, StepResult


class TracedScheduler(Protocol):
    """What a trace reads off a scheduler."""

    @property
    def waiting(self) -> Iterable[Sequence]:
        """Those who wait, in order."""
        ...

    @property
    def running(self) -> Iterable[Sequence]:
        """Those who run, in order."""
        ...

    def drain_events(self) -> tuple[BlockEvent, ...]:
        """Memory events since the last call."""
        ...


@dataclass
class _Before:
    """The queues before a step was planned, and what happened to the memory since."""

    waiting: tuple[int, ...] = ()
    running: tuple[int, ...] = ()
    events: list[BlockEvent] = field(default_factory=list)


class StepTracer:
    """Collects what a step was before it ran, and records it when its ids are known.

    Attributes:
        trace: The trace being written.
    """

    def __init__(self, info: TraceInfo) -> None:
        """Start an empty trace."""
        self.trace = Trace(info)
        self._aborted: list[Finish] = []
        self._before = _Before()
        self._launched: deque[_Before] = deque()
        self._carried: list[BlockEvent] = []
        self._skipped: tuple[int, ...] = ()

    def on_add(self, sequence: Sequence) -> None:
        """A sequence has arrived."""
        self.trace.add_sequence(sequence)

    def on_abort(self, sequence: Sequence) -> None:
        """A sequence ended between two steps; it belongs to the later one."""
        self._aborted.append(Finish(sequence.seq_id, "abort"))

    def before(self, scheduler: TracedScheduler) -> None:
        """Note the queues, before ``schedule()``."""
        waiting = tuple(s.seq_id for s in scheduler.waiting)
        running = tuple(s.seq_id for s in scheduler.running)
        self._before = _Before(waiting, running, self._take_carried())

    def launched(self, scheduler: TracedScheduler) -> None:
        """Keep the notes of a step that is in flight while the next one is planned.

        What happens to the memory from here on happens after this step was planned. A loop that
        waits for each step need not call this.
        """
        self._before.events += scheduler.drain_events()
        self._launched.append(self._before)

    def skipped(self, preempted: tuple[int, ...]) -> None:
        """A step was planned that computes nothing; :meth:`idle` records whom it preempted."""
        self._skipped = preempted

    def forget(self) -> None:
        """No launched step will end: what planning them did to the memory is all that is kept."""
        for before in self._launched:
            self._carried += before.events
        self._launched.clear()

    def after(
        self,
        scheduler: TracedScheduler,
        plan: SchedulerOutput,
        result: StepResult,
        touched: Iterable[Sequence],
        elapsed_ms: float,
    ) -> None:
        """Record the oldest step in flight. Counters of the slices are those before it.

        What its results freed is recorded with the step that was planned last: then the blocks
        were taken before these were given back.
        """
        before = self._launched.popleft() if self._launched else self._before
        last = self._launched[-1] if self._launched else before
        last.events += scheduler.drain_events()
        done = [_finish(sequence) for sequence in touched if sequence.is_finished]
        self.trace.record(
            waiting=before.waiting,
            running=before.running,
            admitted=tuple(
                Admission(item.seq_id, item.start, item.forked_from) for item in plan.new
            ),
            preempted=plan.preempted,
            slices=tuple(_slice(item, result) for item in plan.scheduled),
            finished=(*self._take_aborted(), *done),
            block_events=tuple(before.events),
            num_padding_tokens=result.num_padding_tokens,
            elapsed_ms=elapsed_ms,
        )

    def failed(self, scheduler: TracedScheduler) -> None:
        """Record a step that ran out of memory: whoever ran before it was preempted."""
        self.trace.record(
            waiting=self._before.waiting,
            running=self._before.running,
            preempted=self._before.running,
            finished=self._take_aborted(),
            block_events=scheduler.drain_events(),
        )

    def idle(self, scheduler: TracedScheduler) -> None:
        """Record what happens without a computed token: aborts, and a step that only preempted."""
        preempted, self._skipped = self._skipped, ()
        if preempted:
            waiting, running = self._before.waiting, self._before.running
        else:
            waiting = tuple(s.seq_id for s in scheduler.waiting)
            running = tuple(s.seq_id for s in scheduler.running)
        if preempted or self._aborted:
            self.trace.record(
                waiting=waiting,
                running=running,
                preempted=preempted,
                finished=self._take_aborted(),
                block_events=(*self._take_carried(), *scheduler.drain_events()),
            )

    def _take_carried(self) -> list[BlockEvent]:
        carried, self._carried = self._carried, []
        return carried

    def _take_aborted(self) -> tuple[Finish, ...]:
        aborted, self._aborted = tuple(self._aborted), []
        return aborted


def _slice(item: ScheduledSequence, result: StepResult) -> ScheduledSlice:
    token = result.token_ids.get(item.seq_id)
    sampled = () if token is None else (token,)
    return ScheduledSlice.of(
        item.sequence,
        start=item.start,
        num_tokens=item.num_tokens,
        num_known_tokens=item.num_known_tokens,
        token_ids=sampled,
    )


def _finish(sequence: Sequence) -> Finish:
    reason = sequence.finish_reason
    assert reason is not None
    return Finish(sequence.seq_id, reason)
