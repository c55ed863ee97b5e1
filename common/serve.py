"""Drive an engine through a workload: all at once, or as the requests arrive.

The clock of a request starts when it is due, not when a busy engine gets round to it, so the
latencies are those of an open system: an engine that falls behind sees its TTFT grow.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from common.errors import FoloError
from common.outputs import RequestOutput
from common.request import SamplingParams
from common.workload import Workload


class ServeError(FoloError, RuntimeError):
    """An engine did not answer every request of a workload."""


class GeneratingEngine(Protocol):
    """What every engine from M1 on has."""

    def generate(
        self, prompts: list[list[int]], sampling_params: list[SamplingParams], /
    ) -> list[RequestOutput]:
        """Answer all prompts, in order."""
        ...


@runtime_checkable
class SteppingEngine(Protocol):
    """What every engine from M2 on has as well."""

    def add_request(self, prompt: list[int], sampling_params: SamplingParams, /) -> str:
        """Queue one request; returns its id."""
        ...

    def step(self, *, only_finished: bool = False) -> Sequence[RequestOutput]:
        """Run one step; returns the requests that moved, or of them only the finished ones."""
        ...

    def has_unfinished_requests(self) -> bool:
        """Whether another step has anything to do."""
        ...


def run_batch(engine: GeneratingEngine, workload: Workload) -> list[RequestOutput]:
    """Give all requests to ``generate`` at once; arrivals are ignored."""
    return engine.generate(workload.prompts, workload.sampling_params)


def serve(
    engine: GeneratingEngine | SteppingEngine,
    workload: Workload,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> list[RequestOutput]:
    """Serve requests at their arrival times, in real time.

    An engine with ``add_request`` and ``step`` takes each request between two steps. An engine
    that only generates (M1) answers one after the other, and later requests queue.

    Args:
        engine: The engine.
        workload: Requests with arrivals.
        clock: The clock that the engine's metrics use.
        sleep: Waits that many seconds.

    Returns:
        One output per request, in the workload's order; ``metrics.arrival_time`` is the time at
        which the request was due.

    Raises:
        ServeError: A stepping engine reports no unfinished request, but not all were answered.
    """
    if isinstance(engine, SteppingEngine):
        return _serve_steps(engine, workload, clock, sleep)
    start, outputs = clock(), []
    for item in workload.requests:
        due = start + item.arrival
        _wait(due, clock, sleep)
        (output,) = engine.generate([list(item.prompt_token_ids)], [item.sampling_params])
        outputs.append(_arrived(output, due))
    return outputs


def _serve_steps(
    engine: SteppingEngine,
    workload: Workload,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> list[RequestOutput]:
    start, pending = clock(), deque(workload.requests)
    ids: list[str] = []
    done: dict[str, RequestOutput] = {}
    while pending or engine.has_unfinished_requests():
        while pending and start + pending[0].arrival <= clock():
            item = pending.popleft()
            ids.append(engine.add_request(list(item.prompt_token_ids), item.sampling_params))
        if engine.has_unfinished_requests():
            finished = engine.step(only_finished=True)
            done.update({output.request_id: output for output in finished})
        elif pending:
            _wait(start + pending[0].arrival, clock, sleep)
    missing = [number for number, request_id in enumerate(ids) if request_id not in done]
    if missing:
        raise ServeError(f"{len(missing)} requests were not answered, the first is {missing[0]}")
    return [
        _arrived(done[request_id], start + item.arrival)
        for request_id, item in zip(ids, workload.requests, strict=True)
    ]


def _wait(until: float, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
    while (left := until - clock()) > 0:
        sleep(left)


def _arrived(output: RequestOutput, due: float) -> RequestOutput:
    metrics = dataclasses.replace(output.metrics, arrival_time=due)
    return dataclasses.replace(output, metrics=metrics)
