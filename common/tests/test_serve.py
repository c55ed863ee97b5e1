from dataclasses import dataclass, field

import pytest

from common.metrics import serving_metrics
from common.outputs import CompletionOutput, RequestMetrics, RequestOutput
from common.request import SamplingParams
from common.serve import ServeError, run_batch, serve
from common.workload import Workload, WorkloadRequest


@dataclass
class Clock:
    """Time that passes only when somebody sleeps or works."""

    now: float = 100.0
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def finished(request_id: str, prompt: list[int], arrival: float, now: float) -> RequestOutput:
    done = CompletionOutput(0, "", (7,), "length")
    metrics = RequestMetrics(arrival, (now,), now)
    return RequestOutput(request_id, None, tuple(prompt), (done,), True, metrics)


@dataclass
class OneAtATime:
    """Generates only, like M1; every request takes two seconds."""

    clock: Clock
    batches: list[int] = field(default_factory=list)

    def generate(
        self, prompts: list[list[int]], sampling_params: list[SamplingParams], /
    ) -> list[RequestOutput]:
        self.batches.append(len(prompts))
        outputs = []
        for prompt in prompts:
            begin = self.clock.now
            self.clock.now += 2.0
            outputs.append(finished("x", prompt, begin, self.clock.now))
        return outputs


@dataclass
class Stepping:
    """Takes requests between steps, like M2; a step of one second finishes all it holds."""

    clock: Clock
    lose: str | None = None
    added: int = 0
    held: dict[str, tuple[list[int], float]] = field(default_factory=dict)
    steps: list[list[str]] = field(default_factory=list)

    def generate(
        self, prompts: list[list[int]], sampling_params: list[SamplingParams], /
    ) -> list[RequestOutput]:
        raise AssertionError("a stepping engine is stepped")

    def add_request(self, prompt: list[int], sampling_params: SamplingParams, /) -> str:
        name = str(self.added)
        self.added += 1
        self.held[name] = (prompt, self.clock.now)
        return name

    def has_unfinished_requests(self) -> bool:
        return bool(self.held)

    def step(self, *, only_finished: bool = False) -> list[RequestOutput]:
        assert only_finished, "serving reads nobody's output before the end"
        self.clock.now += 1.0
        self.steps.append(list(self.held))
        done = [
            finished(name, prompt, begin, self.clock.now)
            for name, (prompt, begin) in self.held.items()
            if name != self.lose
        ]
        self.held = {}
        return done


def workload(*arrivals: float) -> Workload:
    params = SamplingParams(max_tokens=1)
    requests = (WorkloadRequest((i, i), params, at) for i, at in enumerate(arrivals))
    return Workload("w", 0, tuple(requests))


def ttfts(outputs: list[RequestOutput]) -> list[float | None]:
    return [out.metrics.ttft for out in outputs]


def test_batch_gives_everything_at_once() -> None:
    engine = OneAtATime(Clock())
    outputs = run_batch(engine, workload(0, 5, 9))
    assert engine.batches == [3]
    assert len(outputs) == 3


def test_an_engine_that_only_generates_makes_requests_queue() -> None:
    clock = Clock()
    outputs = serve(OneAtATime(clock), workload(0, 0.5, 10), clock, clock.sleep)
    # The second is due at 0.5, starts at 2 and ends at 4; the third waits for nobody.
    assert ttfts(outputs) == [2.0, 3.5, 2.0]
    assert clock.slept == [6.0]
    assert [out.prompt_token_ids for out in outputs] == [(0, 0), (1, 1), (2, 2)]


def test_a_stepping_engine_takes_requests_between_steps() -> None:
    clock = Clock()
    engine = Stepping(clock)
    outputs = serve(engine, workload(0, 0.25, 0.5, 8), clock, clock.sleep)
    assert engine.steps == [["0"], ["1", "2"], ["3"]]
    # Clocks start when a request is due, although the engine saw 1 and 2 only after its step.
    assert ttfts(outputs) == [1.0, 1.75, 1.5, 1.0]
    assert clock.slept == [6.0]
    assert serving_metrics(outputs).num_requests == 4


def test_a_lost_request_is_an_error() -> None:
    clock = Clock()
    with pytest.raises(ServeError, match="1 requests were not answered, the first is 1"):
        serve(Stepping(clock, lose="1"), workload(0, 0, 0), clock, clock.sleep)
