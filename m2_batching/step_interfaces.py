"""What the loop of :class:`m2_batching.step_engine.StepEngine` needs of its parts.

A stage hands in its own scheduler and runner; the loop knows them by these methods alone.
"""

from __future__ import annotations

from typing import Protocol

from common.request import Sequence
from common.step_record import BlockEvent
from m1_basic.sampler import Sampler
from m2_batching.plan import SchedulerOutput, StepResult
from m2_batching.request_queue import RequestQueue


class StepScheduler(Protocol):
    """What the loop needs of a scheduler."""

    waiting: RequestQueue
    running: list[Sequence]

    def add(self, sequences: list[Sequence]) -> None:
        """Take the sequences of a new request."""
        ...

    def has_unfinished(self) -> bool:
        """Whether a step would do anything."""
        ...

    def schedule(self) -> SchedulerOutput:
        """Plan one step."""
        ...

    def update(self, plan: SchedulerOutput, result: StepResult, now: float) -> list[Sequence]:
        """Append what was sampled; returns the sequences that got a token."""
        ...

    def abort(self, sequence: Sequence) -> None:
        """End a sequence in whatever state it is."""
        ...

    def drain_events(self) -> tuple[BlockEvent, ...]:
        """Memory events since the last call."""
        ...


class StepFlight(Protocol):
    """A launched step."""

    def result(self) -> StepResult:
        """Wait for the sampled ids."""
        ...


class KVMemory(Protocol):
    """The K and V of everybody."""

    @property
    def nbytes(self) -> int:
        """Bytes reserved."""
        ...


class StepRunner(Protocol):
    """What the loop needs of a runner."""

    sampler: Sampler

    @property
    def cache(self) -> KVMemory:
        """Where K and V are."""
        ...

    def launch(self, plan: SchedulerOutput) -> StepFlight:
        """Start one step on the device."""
        ...
