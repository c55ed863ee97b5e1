"""The order of calls in a step: schedule, launch, wait, update.

A scheduler decides in counts, a runner turns counts into tensors, the results go back. What a loop
adds is only when each of these happens; M5 has another order.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Protocol

from common.request import Sequence
from common.stats import StatsRecorder
from m2_batching.plan import SchedulerOutput
from m2_batching.step_interfaces import StepFlight, StepRunner, StepScheduler
from m2_batching.step_trace import StepTracer


class LoopHost(Protocol):
    """What a loop needs of its engine."""

    @property
    def scheduler(self) -> StepScheduler:
        """Decides each step."""
        ...

    @property
    def runner(self) -> StepRunner:
        """Computes each step."""
        ...

    @property
    def tracer(self) -> StepTracer | None:
        """Records each step, if asked to."""
        ...

    @property
    def recorder(self) -> StatsRecorder:
        """Counts each step."""
        ...

    def on_planned(self, plan: SchedulerOutput) -> None:
        """A step was planned and has not run."""
        ...


@dataclass(frozen=True)
class LaunchedStep:
    """A step on its way.

    Attributes:
        plan: What it computes.
        flight: Its results, now or later.
        begin: ``time.perf_counter()`` seconds when its planning began.
    """

    plan: SchedulerOutput
    flight: StepFlight
    begin: float


class StepLoop:
    """One step after the other; the host waits for the device, and the device for the host.

    Attributes:
        lookahead: Steps that are planned before an earlier one's ids are known.
    """

    lookahead = 0

    def __init__(self, host: LoopHost) -> None:
        """Bind the engine whose parts are called."""
        self.host = host
        self._last_read = 0.0
        self._unsent = SchedulerOutput()

    def step(self) -> list[Sequence]:
        """One step; returns the sequences that got a token."""
        launched = self.launch()
        if launched is not None:
            return self.finish(launched)
        self.drain()
        return []

    def drain(self) -> None:
        """Nothing is left to compute: record what ended without a step."""
        if self.host.tracer is not None:
            self.host.tracer.idle(self.host.scheduler)

    def forget(self) -> None:
        """A step failed: whatever is in flight is void; here nothing ever is between two steps."""

    def launch(self) -> LaunchedStep | None:
        """Plan a step and start it; None where there is nothing to compute."""
        host, begin = self.host, time.perf_counter()
        if host.tracer is not None:
            host.tracer.before(host.scheduler)
        plan = host.scheduler.schedule()
        late, self._unsent = self._unsent, SchedulerOutput()
        told = dataclasses.replace(
            plan,
            preempted=(*late.preempted, *plan.preempted),
            finished=(*late.finished, *plan.finished),
        )
        if not plan.scheduled:
            self._unsent = told  # the runner learns who has gone with the next step
            if host.tracer is not None:
                host.tracer.skipped(plan.preempted)
            return None
        host.on_planned(plan)
        return LaunchedStep(plan, host.runner.launch(told), begin)

    def finish(self, launched: LaunchedStep) -> list[Sequence]:
        """Wait for a step's ids and hand them to the scheduler; returns who got one."""
        host, plan = self.host, launched.plan
        result = launched.flight.result()
        now = time.perf_counter()
        touched = host.scheduler.update(plan, result, now)
        seconds, self._last_read = now - max(launched.begin, self._last_read), now
        is_prefill = bool(plan.new) or plan.num_tokens > len(plan.advanced)
        host.recorder.on_step(
            seconds,
            prefill=is_prefill,
            num_tokens=plan.num_tokens,
            end=now,
            slices=((item.start, item.end) for item in plan.scheduled),
        )
        if host.tracer is not None:
            host.tracer.after(host.scheduler, plan, result, touched, seconds * 1e3)
        return touched
