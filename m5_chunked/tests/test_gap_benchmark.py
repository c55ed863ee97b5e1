"""Gaps of streams while long prompts arrive: one run by hand, what is noted, the sizes."""

from __future__ import annotations

from argparse import Namespace

import pytest

from common.metrics import Distribution
from common.outputs import CompletionOutput, RequestMetrics, RequestOutput
from m5_chunked.benchmarks import gaps
from m5_chunked.benchmarks.gaps import Landing, Sizes
from m5_chunked.benchmarks.variants import UNCHUNKED, Variant
from m5_chunked.engine import LLMEngine


def output(arrival: float, *times: float) -> RequestOutput:
    done = CompletionOutput(0, "", tuple(range(len(times))), "length")
    metrics = RequestMetrics(arrival, times, times[-1])
    return RequestOutput("r", None, (1, 2), (done,), True, metrics)


class TestGaps:
    size = Sizes(2, 4, 8, 64, 2.0, 4.0, (2.0,), 2.0, (16,), ())

    def landing(self) -> Landing:
        """Streams from second 10, the window is [12, 16), long prompts at 12 and 14."""
        return Landing.of(
            [
                output(10.0, 10.5, 11.0, 11.5, 13.5, 14.0, 16.0, 16.5),
                output(10.0, 11.0, 11.5, 12.5, 13.5, 15.5),
                output(12.0, 13.0),
                output(14.0, 15.0),
            ],
            self.size,
        )

    def test_a_run_by_hand(self) -> None:
        found = self.landing()
        # First prompt, [12, 13]: 2.0 (11.5 to 13.5) and 1.0. Second, [14, 15]: 2.0 and 2.0.
        assert found.gaps == Distribution.of([2.0, 2.0, 1.0, 2.0])
        # What reaches into the window: 2.0, 0.5 and 2.0 of the first stream, 1.0, 1.0 and 2.0.
        assert found.itl == Distribution.of([2.0, 0.5, 2.0, 1.0, 1.0, 2.0])
        assert found.output_throughput == (2 + 3 + 2) / 4
        assert found.stream_ttft == Distribution.of([0.5, 1.0])
        assert found.long_ttft == Distribution.of([1.0, 1.0])
        assert found.streams_at_end == 1

    def test_the_streams_alone(self) -> None:
        found = Landing.of([output(0.0, 1.0, 3.0, 7.0), output(0.0, 1.0, 2.0)], self.size)
        assert (found.gaps, found.long_ttft) == (None, None)
        assert found.output_throughput == 2 / 4
        rows = gaps.landing_rows([found, found], {"engine": "e"})
        metrics = {row["metric"] for row in rows}
        assert metrics == {
            "output_throughput", "streams_at_end",
            *(f"itl_{point}" for point in ("p50", "p99", "max")),
            *(f"stream_ttft_{point}" for point in ("p50", "max")),
        }  # fmt: skip
        assert {row["n"] for row in rows} == {2}

    def test_ratios_are_of_the_same_round(self) -> None:
        def made(gap: float, speed: float) -> Landing:
            one = Distribution.of([gap])
            return Landing(one, one, speed, one, one, 2)

        rows = gaps.ratio_rows([made(1, 8), made(2, 9)], [made(4, 10), made(12, 10)], {"budget": 5})
        found = {row["metric"]: (row["min"], row["max"], row["n"], row["budget"]) for row in rows}
        assert found == {
            "throughput_over_m4": (0.8, 0.9, 2, 5),
            "gap_reduction_p50": (4, 6, 2, 5),
            "gap_reduction_p95": (4, 6, 2, 5),
        }
        assert gaps.ratio_rows([made(1, 8)], [Landing(None, None, 0.0, None, None, 0)], {}) == []

    def test_streams_that_end_too_soon_are_noted(
        self, args: Namespace, m5: LLMEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        outputs = [output(0.0, 0.5, 2.5), output(0.0, 0.5, 9.0), output(2.0, 3.0), output(4.0, 5.0)]
        monkeypatch.setattr(gaps, "serve", lambda _engine, _workload: outputs)
        notes: list[str] = []
        gaps.interval_rows([Variant(m5, 16)], self.size, 2.0, args, notes)
        assert notes[-1] == "interval 2, m5_chunked 16 0: streams ended in the window"
        outputs[0] = output(0.0, 0.5, 6.0)
        notes.clear()
        gaps.interval_rows([Variant(m5, 16)], self.size, 2.0, args, notes)
        assert len(notes) == 1

    @pytest.mark.parametrize(
        ("device", "smoke", "counts"),
        [("cuda", False, (12, 30, 3, 0)), ("cpu", False, (2,)), ("cpu", True, (2, 0))],
    )
    def test_sizes(self, device: str, smoke: bool, counts: tuple[int, ...]) -> None:
        size = gaps.sizes(Namespace(smoke=smoke, device=device))
        workloads = [size.workload(interval) for interval in size.intervals]
        assert tuple(len(w.requests) - size.streams for w in workloads) == counts
        for workload in workloads:
            late = workload.requests[size.streams :]
            assert all(size.first <= item.arrival < size.first + size.window for item in late)
        assert len(size.warm_up(5).requests) == size.streams + 1

    def test_the_workload_of_the_gpu(self) -> None:
        size = gaps.sizes(Namespace(smoke=False, device="cuda"))
        requests = size.workload(0.25).requests
        lengths = [len(item.prompt_token_ids) for item in requests]
        assert lengths == [128] * 32 + [8192] * 12
        assert requests[-1].arrival - requests[-2].arrival == pytest.approx(0.25)

    def test_budgets_away_from_the_headline_are_among_its_own(self) -> None:
        """A GPU serves the other intervals with M4 and one budget."""
        for device, few in (("cuda", (512,)), ("cpu", (64, 128, 256, UNCHUNKED))):
            size = gaps.sizes(Namespace(smoke=False, device=device))
            assert size.few == few
            assert set(size.few) <= set(size.budgets)

    @pytest.mark.parametrize(
        ("full", "smoke", "rounds"), [(False, False, 1), (True, False, 3), (False, True, 3)]
    )
    def test_other_intervals_are_served_once(self, full: bool, smoke: bool, rounds: int) -> None:
        args = Namespace(full=full, smoke=smoke, repeat=3)
        assert self.size.rounds(2.0, args) == 3
        assert self.size.rounds(1.0, args) == rounds
