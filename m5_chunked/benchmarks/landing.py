"""One long prompt lands on decoding streams, with a short one right behind it.

No clock decides here who arrives when: the streams have settled, then both prompts arrive between
two steps. So a budget's two prices can be laid side by side: the largest gap of the streams, and
the time that the new prompts wait for their first tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from common.metrics import Distribution, largest_gaps
from common.outputs import RequestOutput
from common.request import SamplingParams
from common.workload import DEFAULT_VOCAB, fixed, long_among_short
from m2_batching.step_engine import StepEngine

SETTLE = 6
"""Tokens that each stream has when the long prompt arrives; the last gaps are steps of decodes."""


@dataclass(frozen=True)
class Case:
    """Streams, the long prompt, and the short one behind it.

    Attributes:
        streams: Streams that decode.
        prompt: Tokens of a stream's prompt, and of the short one.
        long: Tokens of the long prompt.
    """

    streams: int
    prompt: int
    long: int

    def longest(self, budget: int) -> int:
        """Tokens that a stream may hold in the end, where a step has ``budget``."""
        return self.prompt + self.stream_tokens(budget)

    def stream_tokens(self, budget: int) -> int:
        """Tokens that a stream must be able to generate: some to settle, then one a step."""
        steps = (self.long + self.prompt) // max(budget - self.streams, 1)
        return 2 * (SETTLE + self.streams) + 2 * steps + 16

    def pool_tokens(self, budget: int) -> int:
        """Places of a pool that holds everybody in blocks of up to 32 tokens."""
        return self.streams * (self.longest(budget) + 32) + self.long + self.prompt + 64


@dataclass(frozen=True)
class Landed:
    """What one landing cost.

    Attributes:
        long_ttft: Seconds from the long prompt's arrival to its first token.
        short_ttft: The same for the short prompt right behind it.
        gaps: The largest gap of each stream meanwhile, seconds.
        step: Median gap of the streams before, seconds: a step of decodes alone.
    """

    long_ttft: float
    short_ttft: float
    gaps: Distribution
    step: float


def land(engine: StepEngine, case: Case, budget: int) -> Landed:
    """Let the streams settle, let both prompts arrive, and step until all have gone on.

    Args:
        engine: An idle one; it is idle again afterwards.
        case: Who decodes, and who arrives.
        budget: Tokens of a step, from which follows how long the streams must last.
    """
    streams = fixed(case.streams, case.prompt, case.stream_tokens(budget))
    late = long_among_short(1, case.prompt, 1, long_len=case.long, vocab=DEFAULT_VOCAB, seed=1)
    short, long = late.prompts
    seen: dict[str, RequestOutput] = {}

    def step() -> None:
        assert engine.has_unfinished_requests(), "the streams ended too soon"
        seen.update({output.request_id: output for output in engine.step()})

    def times(name: str) -> tuple[float, ...]:
        return seen[name].metrics.token_times if name in seen else ()

    names = [
        engine.add_request(prompt, params)
        for prompt, params in zip(streams.prompts, streams.sampling_params, strict=True)
    ]
    while any(len(times(name)) < SETTLE for name in names):
        step()
    settled = {name: len(times(name)) for name in names}
    one = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    arrived = [engine.add_request(prompt, one) for prompt in (long, short)]
    while not all(times(name) for name in arrived):
        step()
    last = max(times(name)[0] for name in arrived)
    while any(times(name)[-1] < last for name in names):
        step()
    for name in names:
        engine.abort(name)
    first, second = (seen[name].metrics for name in arrived)
    metrics = [seen[name].metrics for name in names]
    before = [gap for name in names for gap in seen[name].metrics.itl[: settled[name] - 1][-3:]]
    gaps = Distribution.of(largest_gaps(metrics, [first]))
    assert gaps is not None, "every stream was running"
    assert first.ttft is not None
    assert second.ttft is not None
    return Landed(first.ttft, second.ttft, gaps, median(before))


def recommend(gaps: Mapping[int, float], target: float) -> int | None:
    """The largest budget whose gap stays within ``target``; None where none does.

    The largest, because a larger chunk gives the long prompt its first token sooner and reads the
    weights less often.

    Args:
        gaps: p95 of the streams' largest gaps in seconds, by budget.
        target: Seconds that a stream may stand still.
    """
    return max((budget for budget, gap in gaps.items() if gap <= target), default=None)
