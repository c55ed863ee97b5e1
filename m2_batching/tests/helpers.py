"""Sequences, a driver without a model, and operation counts, for the tests of M2 and M3."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

from common.outputs import RequestOutput
from common.request import Request, SamplingParams, Sequence
from common.stopping import check_stop
from m2_batching.plan import SchedulerOutput, StepResult

TOKEN = 7
"""What the stub in the runner's place samples."""


def make_sequence(
    seq_id: int,
    prompt_len: int = 4,
    *,
    priority: int = 0,
    max_tokens: int = 100,
    index: int = 0,
    request: Request | None = None,
) -> Sequence:
    """A waiting sequence of its own request, unless one is given."""
    return Sequence(
        seq_id, request or make_request(seq_id, prompt_len, priority, max_tokens), index
    )


def make_request(
    number: int, prompt_len: int = 4, priority: int = 0, max_tokens: int = 100
) -> Request:
    """A request whose prompt is ``number · 1000, number · 1000 + 1, …``."""
    prompt = tuple(number * 1000 + i for i in range(prompt_len))
    return Request(f"r{number}", prompt, SamplingParams(max_tokens=max_tokens), priority=priority)


class AnyScheduler(Protocol):
    """The scheduler of M2 or M3."""

    def schedule(self) -> SchedulerOutput: ...

    def update(self, plan: SchedulerOutput, result: StepResult, now: float) -> list[Sequence]: ...


def stop_by_length(sequence: Sequence) -> None:
    """``on_token`` of an engine without EOS and without a context limit."""
    check_stop(sequence, (), 10**9)


def stub_result(plan: SchedulerOutput) -> StepResult:
    """What a runner returns, with :data:`TOKEN` for every row that is sampled."""
    return StepResult({item.seq_id: TOKEN for item in plan.scheduled if item.num_sampled})


def step(scheduler: AnyScheduler) -> SchedulerOutput:
    """Schedule, pretend to run, update; returns the plan."""
    plan = scheduler.schedule()
    scheduler.update(plan, stub_result(plan), 0.0)
    return plan


def ids(sequences: Any) -> list[int]:
    """``seq_id`` of sequences or of plan items."""
    return [item.seq_id for item in sequences]


def count_operations(work: Callable[[], object]) -> int:
    """Bytecode instructions that ``work`` executes in Python: a time that no machine changes."""
    count = 0

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    with _tracing(trace):
        work()
    return count


@contextmanager
def _tracing(trace: Any) -> Iterator[None]:
    before = sys.gettrace()  # coverage's own, which goes on afterwards
    gc.disable()  # a collection in between would be counted, with all the callbacks it runs
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
        gc.enable()


class Counted(int):
    """An integer that counts how often it is compared; sums and products stay counted."""

    comparisons = 0

    def __mul__(self, other: int) -> Counted:
        return Counted(int(self) * other)

    def __add__(self, other: int) -> Counted:
        return Counted(int(self) + other)

    def __lt__(self, other: int) -> bool:
        Counted.comparisons += 1
        return int(self) < int(other)

    def __eq__(self, other: object) -> bool:
        Counted.comparisons += 1
        return isinstance(other, int) and int(self) == int(other)

    __hash__ = int.__hash__


def count_comparisons(work: Callable[[], object]) -> int:
    """How many comparisons of :class:`Counted` numbers ``work`` makes."""
    Counted.comparisons = 0
    work()
    return Counted.comparisons


def run_all(engine: Any) -> dict[str, RequestOutput]:
    """Step until nothing is left; the finished outputs by request id."""
    done = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                done[output.request_id] = output
    return done
