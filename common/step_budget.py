"""Where the wall time of steps went, from the intervals of a profiler: a budget of 100 %.

Every moment of a step belongs to one interval that was open then, the one that began last: the
innermost operator of a call tree, the newest kernel of several. A moment without any is the
host's: Python between two operators, or a GPU that waits. So the shares add up, whatever overlaps.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from common.model_config import ModelConfig
from common.model_costs import step_bytes, step_flops
from common.op_groups import GROUPS
from common.stats import StepTiming
from common.step_record import Phase

HOST = "host"
PHASES: tuple[Phase, ...] = ("prefill", "decode")


@dataclass(frozen=True, order=True)
class Span:
    """An interval of one group, in seconds of ``time.perf_counter``."""

    begin: float
    end: float
    group: str


@dataclass
class PhaseBudget:
    """The steps of one phase.

    Attributes:
        phase: Prefill, if a step computed any prompt token; else decode.
        num_steps: Steps counted.
        seconds: Their wall time.
        parts: Seconds by group, with what no span covers as :data:`HOST`; they add up to
            ``seconds``.
        num_bytes: Least bytes that these steps had to read: weights, and the K and V of contexts.
        flops: FLOPs that the model needs for them.
    """

    phase: Phase
    num_steps: int = 0
    seconds: float = 0.0
    parts: dict[str, float] = field(default_factory=lambda: dict.fromkeys((*GROUPS, HOST), 0.0))
    num_bytes: int = 0
    flops: int = 0


def step_budgets(
    steps: Sequence[StepTiming],
    spans: Iterable[Span],
    config: ModelConfig,
    *,
    weight_bytes: int,
    dtype: str,
) -> list[PhaseBudget]:
    """Share the time of every step among the groups; phases without a step are left out.

    Args:
        steps: In order of time. The first one of a phase is left out where others follow: it pays
            for what is done once, such as compilation.
        spans: What ran, in any order.
        config: The architecture, for bytes and FLOPs.
        weight_bytes: Bytes of the weights as they are stored.
        dtype: Element type of K and V.
    """
    found = {phase: PhaseBudget(phase) for phase in PHASES}
    of_step = _by_step(exclusive(spans), steps)
    counts = {phase: sum(_phase(step) == phase for step in steps) for phase in PHASES}
    seen = dict.fromkeys(PHASES, 0)
    for step, parts in zip(steps, of_step, strict=True):
        budget = found[_phase(step)]
        seen[budget.phase] += 1
        if seen[budget.phase] == 1 and counts[budget.phase] > 1:
            continue
        budget.num_steps += 1
        budget.seconds += step.seconds
        for group, seconds in parts.items():
            budget.parts[group] += seconds
        budget.parts[HOST] += max(step.seconds - sum(parts.values()), 0.0)
        budget.num_bytes += step_bytes(config, step.slices, dtype, weight_bytes)
        budget.flops += step_flops(config, step.slices)
    return [budget for budget in found.values() if budget.num_steps]


def exclusive(spans: Iterable[Span]) -> list[Span]:
    """Cut overlapping spans into disjoint ones, each given to the span that began last."""
    ordered = sorted(spans, key=lambda span: (span.begin, -span.end))
    pieces: list[Span] = []
    # Open spans, the newest on top; of two that began together the later in order is the inner.
    open_: list[tuple[int, Span]] = []
    now = 0.0

    def advance(until: float) -> None:
        """Hand out the time up to ``until``."""
        nonlocal now
        while open_ and now < until:
            top = open_[0][1]
            if top.end <= now:
                heapq.heappop(open_)
                continue
            stop = min(top.end, until)
            pieces.append(Span(now, stop, top.group))
            now = stop
        now = max(now, until)

    for number, span in enumerate(ordered):
        advance(span.begin)
        heapq.heappush(open_, (-number, span))
    advance(max((span.end for span in ordered), default=0.0))
    return pieces


def tenths(shares: Sequence[float]) -> list[float]:
    """Percentages with one decimal that add up to 100.0 (largest remainders are rounded up)."""
    total = sum(shares)
    exact = [1000 * share / total for share in shares]
    floors = [int(value) for value in exact]
    missing = 1000 - sum(floors)
    order = sorted(range(len(exact)), key=lambda i: floors[i] - exact[i])
    for index in order[:missing]:
        floors[index] += 1
    return [value / 10 for value in floors]


def _phase(step: StepTiming) -> Phase:
    return "prefill" if step.prefill else "decode"


def _by_step(pieces: Sequence[Span], steps: Sequence[StepTiming]) -> list[dict[str, float]]:
    """Seconds by group within each step's window; both are in order and disjoint."""
    ends = [piece.end for piece in pieces]
    result = []
    for step in steps:
        parts: dict[str, float] = defaultdict(float)
        begin, index = step.end - step.seconds, 0
        index = bisect_left(ends, begin)
        while index < len(pieces) and pieces[index].begin < step.end:
            piece = pieces[index]
            parts[piece.group] += max(min(piece.end, step.end) - max(piece.begin, begin), 0.0)
            index += 1
        result.append(dict(parts))
    return result
