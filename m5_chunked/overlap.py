"""The overlapped loop: plan and launch step t + 1, then read step t.

While the device runs step t, the plain loop's host waits, and while the host plans, the device
does. Here they work at the same time::

    host     plan 1 │ launch 1 │ plan 2 │ launch 2 │ read 1 │ plan 3 │ launch 3 │ read 2 │ …
    device                     │ run 1             │ run 2             │ run 3

It works because a plan is made of counts. Step t samples one token for a sequence; which one, step
t + 1 need not know: the id goes from the sampler into the sequence's device row, and from there
into the next step. Three things are late by one step:

* a sequence that ends (EOS, a stop string) has one more token computed, which is dropped;
* its blocks come back one step later;
* a preempted sequence may still get the token that was in flight.

As in vLLM 0.33.0, ``v1/core/sched/async_scheduler.py`` and ``v1/engine/core.py``
(``step_with_batch_queue``).
"""

from __future__ import annotations

from common.request import Sequence
from m2_batching.step_loop import LaunchedStep, LoopHost, StepLoop


def choose_loop(host: LoopHost, overlap: bool | None, device: str) -> StepLoop:
    """The loop that was asked for; overlapped on a GPU where nobody asked.

    A CPU computes a step while it launches it, so that there is nothing to overlap with.
    """
    wanted = device.startswith("cuda") if overlap is None else overlap
    return OverlappedLoop(host) if wanted else StepLoop(host)


class OverlappedLoop(StepLoop):
    """One step is in flight while the next one is planned.

    Its scheduler must count tokens in flight as known: M5's does.
    """

    lookahead = 1

    def __init__(self, host: LoopHost) -> None:
        """Nothing is in flight yet."""
        super().__init__(host)
        self._in_flight: LaunchedStep | None = None

    def step(self) -> list[Sequence]:
        """Launch a step and read the one before; returns the sequences that got a token."""
        launched = self.launch()
        if launched is not None and self.host.tracer is not None:
            self.host.tracer.launched(self.host.scheduler)
        before, self._in_flight = self._in_flight, launched
        touched = self.finish(before) if before is not None else []
        if launched is None or not self.host.scheduler.has_unfinished():
            touched += self._read_last()
            super().drain()
        return touched

    def drain(self) -> None:
        """Read what is in flight: everybody in it has ended, so nobody gets a token."""
        self._read_last()
        super().drain()

    def forget(self) -> None:
        """A step failed: nobody waits for what is in flight any more."""
        self._in_flight = None
        if self.host.tracer is not None:
            self.host.tracer.forget()

    def _read_last(self) -> list[Sequence]:
        before, self._in_flight = self._in_flight, None
        return self.finish(before) if before is not None else []
