"""What a served workload felt like (latencies) and how well it used the machine (MBU, MFU, busy).

Times are seconds, rates are per second, shares are in [0, 1]. Definitions follow vLLM's
``benchmarks/serve.py`` (0.33.0): TTFT counts from arrival, TPOT leaves the first token out, ITL
pools every gap of every request.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from common.errors import ConfigError
from common.outputs import RequestMetrics, RequestOutput

PeakSource = Literal["spec sheet", "measured"]


def percentile(values: Sequence[float], q: float) -> float:
    """The ``q``-th percentile by linear interpolation between closest ranks.

    The value at rank ``(n − 1) · q / 100`` of the sorted values: numpy's default method
    (Hyndman and Fan 1996, type 7).

    Args:
        values: At least one number.
        q: Percentage in [0, 100].

    Raises:
        ConfigError: No values, or ``q`` out of range.
    """
    if not values:
        raise ConfigError("a percentile needs at least one value")
    if not 0 <= q <= 100:
        raise ConfigError(f"q must be in [0, 100], got {q}")
    ordered = sorted(values)
    rank = (len(ordered) - 1) * q / 100
    low = math.floor(rank)
    if low == rank:
        return ordered[low]
    return ordered[low] + (ordered[low + 1] - ordered[low]) * (rank - low)


@dataclass(frozen=True)
class Distribution:
    """A set of measurements in eight numbers; percentiles as in :func:`percentile`."""

    count: int
    mean: float
    min: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Distribution | None:
        """Summarise ``values``; None where there are none."""
        data = list(values)
        if not data:
            return None
        p50, p90, p95, p99 = (percentile(data, q) for q in (50, 90, 95, 99))
        mean = math.fsum(data) / len(data)
        return cls(len(data), mean, min(data), p50, p90, p95, p99, max(data))


@dataclass(frozen=True)
class ServingMetrics:
    """A workload as its users saw it.

    Attributes:
        num_requests: Requests served.
        prompt_tokens: Prompt tokens of them all.
        cached_tokens: Those whose KV came from a prefix cache.
        output_tokens: Tokens generated, over all completions.
        duration: Seconds from the first arrival to the last token.
        ttft: Time to first token, one value per request.
        tpot: Time per output token after the first, one value per request with two or more.
        itl: Gaps between consecutive tokens, pooled over all requests.
        e2e: Arrival to last token, one value per request.
        largest_gap: The longest any user waited between two tokens.
        mean_concurrency: Requests in the system on average: sum of e2e over duration.
    """

    num_requests: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    duration: float
    ttft: Distribution | None
    tpot: Distribution | None
    itl: Distribution | None
    e2e: Distribution | None
    largest_gap: float | None
    mean_concurrency: float

    @property
    def output_throughput(self) -> float:
        """Generated tokens per second."""
        return self.output_tokens / self.duration

    @property
    def total_throughput(self) -> float:
        """Prompt and generated tokens per second."""
        return (self.prompt_tokens + self.output_tokens) / self.duration

    @property
    def request_throughput(self) -> float:
        """Requests per second."""
        return self.num_requests / self.duration

    @property
    def hit_rate(self) -> float:
        """Share of prompt tokens that came from a prefix cache."""
        return self.cached_tokens / self.prompt_tokens


def serving_metrics(
    outputs: Sequence[RequestOutput], duration: float | None = None
) -> ServingMetrics:
    """Summarise finished requests.

    Args:
        outputs: What ``generate`` returned. Latencies are those of completion 0.
        duration: Seconds the whole took; by default from the first arrival to the last token.

    Raises:
        ConfigError: Nothing was generated, or ``duration`` is not positive.
    """
    timed = [out.metrics for out in outputs if out.metrics.token_times]
    if not timed:
        raise ConfigError("metrics need at least one request with a generated token")
    first = min(item.arrival_time for item in timed)
    last = max(item.finished_time or item.token_times[-1] for item in timed)
    seconds = last - first if duration is None else duration
    if seconds <= 0:
        raise ConfigError(f"duration must be positive, got {seconds}")
    e2e = [(item.finished_time or item.token_times[-1]) - item.arrival_time for item in timed]
    itl = [gap for item in timed for gap in item.itl]
    return ServingMetrics(
        num_requests=len(outputs),
        prompt_tokens=sum(len(out.prompt_token_ids) for out in outputs),
        cached_tokens=sum(out.metrics.num_cached_tokens for out in outputs),
        output_tokens=sum(len(one.token_ids) for out in outputs for one in out.outputs),
        duration=seconds,
        ttft=Distribution.of(item.ttft for item in timed if item.ttft is not None),
        tpot=Distribution.of(item.tpot for item in timed if item.tpot is not None),
        itl=Distribution.of(itl),
        e2e=Distribution.of(e2e),
        largest_gap=max(itl, default=None),
        mean_concurrency=math.fsum(e2e) / seconds,
    )


def largest_gaps(
    streams: Iterable[RequestMetrics], arrivals: Iterable[RequestMetrics]
) -> list[float]:
    """How long each running stream stood still while each arriving request was served.

    For every pair of a stream and an arrival: the longest gap of the stream that reaches into the
    time from the arrival to that request's first token, as a whole, also where it began before or
    ended after it::

        arrival              ├──────────────────┤ first token
        stream    ·  ·  ·  ·  ·                   ·  ·  ·
                             ╰─────────╯ this one, from token to token

    Args:
        streams: Requests that were generating.
        arrivals: Requests that came in between; one without a token counts for nothing.

    Returns:
        One value per pair in which the stream had such a gap: not where it had not begun, or had
        ended.
    """
    windows = [(item.arrival_time, item.token_times[0]) for item in arrivals if item.token_times]
    found = []
    for stream in streams:
        times = stream.token_times
        for start, end in windows:
            # From the last token at or before the start to the first one at or after the end.
            first = max(bisect_right(times, start) - 1, 0)
            last = min(bisect_left(times, end), len(times) - 1)
            gaps = [later - earlier for earlier, later in pairwise(times[first : last + 1])]
            if gaps:
                found.append(max(gaps))
    return found


def littles_law(arrival_rate: float, mean_latency: float) -> float:
    """Mean requests in a stable system: arrivals per second times seconds each one stays.

    Source: J. D. C. Little, "A Proof for the Queuing Formula L = λW", 1961.
    """
    return arrival_rate * mean_latency


@dataclass(frozen=True)
class Peak:
    """A ceiling of a device: bytes per second for MBU, FLOP per second for MFU.

    Attributes:
        value: The rate.
        source: ``spec sheet`` (what the vendor states) or ``measured`` (what a copy or a matrix
            product reached). The two are never mixed in one figure.
        device: Whose ceiling it is.
    """

    value: float
    source: PeakSource
    device: str = ""

    def __post_init__(self) -> None:
        """Refuse a ceiling that nothing can be divided by.

        Raises:
            ConfigError: ``value`` is not positive.
        """
        if not (self.value > 0 and math.isfinite(self.value)):
            raise ConfigError(f"a peak must be positive and finite, got {self.value}")


@dataclass(frozen=True)
class Utilization:
    """A rate beside its ceiling.

    Attributes:
        achieved: Bytes or FLOP per second.
        peak: The ceiling it is compared with.
    """

    achieved: float
    peak: Peak

    @property
    def share(self) -> float:
        """Achieved over peak."""
        return self.achieved / self.peak.value


def mbu(num_bytes: float, seconds: float, peak: Peak) -> Utilization:
    """Model bandwidth utilisation: bytes that had to move, over time, beside the bandwidth.

    Args:
        num_bytes: Least bytes the work needs (weights once per step, each context's KV once), not
            the bytes an implementation happens to move.
        seconds: Wall time.
        peak: Bytes per second.
    """
    return _utilization(num_bytes, seconds, peak)


def mfu(flops: float, seconds: float, peak: Peak) -> Utilization:
    """Model FLOPs utilisation: FLOPs the model needs, over time, beside the arithmetic peak.

    Args:
        flops: FLOPs of the model, recomputation left out (Chowdhery et al. 2022, appendix B).
        seconds: Wall time.
        peak: FLOP per second.
    """
    return _utilization(flops, seconds, peak)


def _utilization(amount: float, seconds: float, peak: Peak) -> Utilization:
    if seconds <= 0:
        raise ConfigError(f"seconds must be positive, got {seconds}")
    return Utilization(amount / seconds, peak)


def busy_share(intervals: Iterable[tuple[float, float]], start: float, end: float) -> float:
    """Share of the window in which at least one interval was open.

    Args:
        intervals: (begin, end) of each kernel, any order, overlaps allowed.
        start: Begin of the window, in the intervals' unit.
        end: End of the window.

    Raises:
        ConfigError: The window is empty, or an interval ends before it begins.
    """
    if end <= start:
        raise ConfigError(f"the window must not be empty, got [{start}, {end}]")
    covered, reached = 0.0, start
    for begin, stop in sorted(intervals):
        if stop < begin:
            raise ConfigError(f"an interval ends before it begins: [{begin}, {stop}]")
        begin, stop = max(begin, reached), min(stop, end)
        if stop > begin:
            covered += stop - begin
            reached = stop
    return covered / (end - start)
