import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError
from common.metrics import (
    Distribution,
    Peak,
    busy_share,
    largest_gaps,
    littles_law,
    mbu,
    mfu,
    percentile,
    serving_metrics,
)
from common.outputs import CompletionOutput, RequestMetrics, RequestOutput

finite = st.floats(-1e6, 1e6)


def output(
    arrival: float, times: tuple[float, ...], prompt: int = 4, extra: int = 0, cached: int = 0
) -> RequestOutput:
    """A finished request whose completion 0 has the token times given."""
    outputs = [CompletionOutput(0, "", tuple(range(len(times))), "length")]
    if extra:
        outputs.append(CompletionOutput(1, "", tuple(range(extra)), "length"))
    finished = times[-1] if times else None
    metrics = RequestMetrics(arrival, times, finished, cached)
    return RequestOutput("r", None, tuple(range(prompt)), tuple(outputs), True, metrics)


class TestPercentile:
    def test_by_hand(self) -> None:
        values = [40.0, 10.0, 20.0, 30.0]
        assert percentile(values, 0) == 10
        assert percentile(values, 50) == 25  # rank 1.5
        assert percentile(values, 90) == pytest.approx(37)  # rank 2.7
        assert percentile(values, 100) == 40

    @given(st.lists(finite, min_size=1, max_size=30), st.floats(0, 100))
    def test_is_numpys_default(self, values: list[float], q: float) -> None:
        expected = float(np.percentile(values, q))
        assert percentile(values, q) == pytest.approx(expected, rel=1e-9, abs=1e-6)

    def test_refusals(self) -> None:
        with pytest.raises(ConfigError, match="at least one value"):
            percentile([], 50)
        with pytest.raises(ConfigError, match=r"q must be in \[0, 100\], got 101"):
            percentile([1.0], 101)

    def test_distribution(self) -> None:
        assert Distribution.of([]) is None
        one = Distribution.of([3.0])
        assert one == Distribution(1, 3, 3, 3, 3, 3, 3, 3)
        many = Distribution.of(range(101))
        assert many == Distribution(101, 50, 0, 50, 90, 95, 99, 100)


class TestServing:
    outputs = (
        output(0.0, (1.0, 1.5, 2.5), prompt=10, cached=5),  # gaps 0.5, 1.0
        output(1.0, (4.0,), prompt=30, extra=2),  # one token: no gap, no TPOT
    )

    def test_by_hand(self) -> None:
        got = serving_metrics(self.outputs)
        assert got.num_requests == 2
        assert got.prompt_tokens == 40
        assert got.output_tokens == 6
        assert got.duration == 4.0
        assert got.output_throughput == 1.5
        assert got.total_throughput == 11.5
        assert got.request_throughput == 0.5
        assert got.hit_rate == 0.125
        assert got.ttft is not None
        assert (got.ttft.min, got.ttft.max) == (1.0, 3.0)
        assert got.tpot is not None
        assert (got.tpot.count, got.tpot.mean) == (1, 0.75)
        assert got.itl is not None
        assert (got.itl.count, got.itl.p50) == (2, 0.75)
        assert got.largest_gap == 1.0
        assert got.e2e is not None
        assert got.e2e.mean == 2.75
        assert got.mean_concurrency == pytest.approx((2.5 + 3.0) / 4)

    def test_concurrency_obeys_littles_law(self) -> None:
        got = serving_metrics(self.outputs)
        assert got.e2e is not None
        assert littles_law(got.request_throughput, got.e2e.mean) == pytest.approx(
            got.mean_concurrency
        )

    def test_given_duration_wins(self) -> None:
        assert serving_metrics(self.outputs, duration=12.0).output_throughput == 0.5

    def test_single_tokens_have_no_gaps(self) -> None:
        got = serving_metrics([output(0.0, (2.0,))])
        assert (got.itl, got.tpot, got.largest_gap) == (None, None, None)

    def test_refusals(self) -> None:
        with pytest.raises(ConfigError, match="at least one request"):
            serving_metrics([output(0.0, ())])
        with pytest.raises(ConfigError, match="duration must be positive, got 0"):
            serving_metrics(self.outputs, duration=0)


def stream(*times: float) -> RequestMetrics:
    return RequestMetrics(0.0, times, times[-1] if times else None)


def arrival(at: float, first: float) -> RequestMetrics:
    return RequestMetrics(at, (first, first + 50.0), first + 50.0)


class TestLargestGaps:
    @pytest.mark.parametrize(
        ("times", "gap"),
        [
            ((1, 2, 3, 9, 10), 6),  # it stood still from before the arrival until after
            ((1, 4, 5, 8, 9), 3),  # two gaps inside, the larger one counts
            ((1, 2, 3, 4, 5, 6, 7, 20), 1),  # after the first token nobody waits any more
            ((1, 9, 10, 11), 8),  # one gap over everything
            ((0, 4, 4.5, 8), 3.5),  # neighbours that begin or end exactly there are left out
            ((1, 2, 5), 3),  # it ended meanwhile
            ((5, 6, 8), 2),  # it began meanwhile
        ],
    )
    def test_what_reaches_into_the_wait(self, times: tuple[float, ...], gap: float) -> None:
        """The request arrives at 4 and has its first token at 7."""
        assert largest_gaps([stream(*times)], [arrival(4.0, 7.0)]) == [gap]

    @pytest.mark.parametrize("times", [(), (5,), (1, 2, 3), (1, 4), (7, 8), (8, 20)])
    def test_who_was_not_running_counts_for_nothing(self, times: tuple[float, ...]) -> None:
        assert largest_gaps([stream(*times)], [arrival(4.0, 7.0)]) == []

    def test_every_pair_counts(self) -> None:
        streams = [stream(1, 2, 6, 7, 12), stream(1, 3, 5, 10, 12)]
        arrivals = [arrival(2.0, 5.0), arrival(7.0, 9.0), RequestMetrics(8.0)]
        assert largest_gaps(streams, arrivals) == [4, 5, 2, 5]

    @given(
        st.lists(st.integers(0, 40), unique=True, max_size=12).map(sorted),
        st.integers(0, 40),
        st.integers(1, 20),
    )
    def test_equals_a_look_at_every_gap(self, times: list[int], start: int, length: int) -> None:
        end = start + length
        gaps = [b - a for a, b in pairwise(times) if a < end and b > start]
        found = largest_gaps([stream(*map(float, times))], [arrival(start, end)])
        assert found == ([max(gaps)] if gaps else [])


class TestUtilization:
    def test_mbu_of_a_decode_step(self) -> None:
        # 1.192 GB of weights in 0.8 ms on a device that copies 3.0 TB/s: 1.49 TB/s, 49.7 %.
        used = mbu(1.192e9, 0.8e-3, Peak(3.0e12, "measured", "H100"))
        assert used.achieved == pytest.approx(1.49e12)
        assert used.share == pytest.approx(0.4966667)
        assert used.peak.source == "measured"

    def test_mfu_of_a_prefill(self) -> None:
        used = mfu(989e9, 2e-3, Peak(989e12, "spec sheet"))
        assert used.share == pytest.approx(0.5)

    @pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
    def test_a_peak_is_positive(self, value: float) -> None:
        with pytest.raises(ConfigError, match="a peak must be positive"):
            Peak(value, "measured")

    def test_no_time_no_rate(self) -> None:
        with pytest.raises(ConfigError, match="seconds must be positive"):
            mbu(1.0, 0.0, Peak(1.0, "measured"))


class TestBusy:
    def test_overlaps_count_once_and_the_window_clips(self) -> None:
        kernels = [(4.0, 6.0), (-1.0, 1.0), (0.5, 2.0), (5.0, 5.5), (9.0, 12.0)]
        assert busy_share(kernels, 0.0, 10.0) == pytest.approx((2 + 2 + 1) / 10)

    def test_nothing_ran(self) -> None:
        assert busy_share([], 0.0, 1.0) == 0.0
        assert busy_share([(5.0, 6.0)], 0.0, 1.0) == 0.0

    @given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)), max_size=12))
    def test_equals_counting_the_ticks(self, spans: list[tuple[int, int]]) -> None:
        ticks = {tick for begin, length in spans for tick in range(begin, begin + length)}
        expected = len(ticks & set(range(50))) / 50
        assert busy_share([(b, b + n) for b, n in spans], 0, 50) == pytest.approx(expected)

    def test_refusals(self) -> None:
        with pytest.raises(ConfigError, match="window must not be empty"):
            busy_share([], 1.0, 1.0)
        with pytest.raises(ConfigError, match="ends before it begins"):
            busy_share([(2.0, 1.0)], 0.0, 3.0)
