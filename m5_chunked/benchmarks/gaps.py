"""Long prompts land on decoding streams: how long each stream stands still, and at what price.

On a GPU: 32 streams, and a prompt of 8,192 tokens every 0.1, 0.25 and 1 s for 3 s, by wall clock.
M4 computes each prompt whole and the streams wait; M5 computes it in chunks beside them.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from common.bench import summary_line
from common.metrics import Distribution, largest_gaps
from common.outputs import RequestOutput
from common.results import Result, Row, make_result, row
from common.serve import serve
from common.timing import interleaved_calls
from common.workload import Workload, long_among_short
from m4_flash.benchmarks.engines import announce
from m5_chunked.benchmarks.variants import (
    BUDGET_NOTE,
    UNCHUNKED,
    Labels,
    Variant,
    engines,
    settings,
)


@dataclass(frozen=True)
class Sizes:
    """Streams, long prompts, and how often these arrive.

    Attributes:
        streams: Streams that decode.
        prompt: Tokens of a stream's prompt.
        output: Tokens that a stream generates; enough to outlast the window.
        long: Tokens of a long prompt.
        first: Seconds after the streams' arrival at which the window begins.
        window: Seconds in which long prompts arrive and in which is measured.
        intervals: Seconds between long prompts; 0 for the streams alone.
        headline: The interval that is served ``--repeat`` times; others once, unless ``--full``.
        budgets: Budgets of M5, ascending.
        few: Those of them that serve the other intervals too, unless ``--full``.
    """

    streams: int
    prompt: int
    output: int
    long: int
    first: float
    window: float
    intervals: tuple[float, ...]
    headline: float
    budgets: tuple[int, ...]
    few: tuple[int, ...]

    def workload(self, interval: float) -> Workload:
        """All requests with their arrivals."""
        return long_among_short(
            self.streams, self.prompt, self.output,
            num_long=round(self.window / interval) if interval else 0,
            long_len=self.long, first_long=self.first, interval=interval,
        )  # fmt: skip

    def warm_up(self, long: int) -> Workload:
        """Short streams, and one prompt of ``long`` tokens behind them."""
        return long_among_short(self.streams, self.prompt, 8, long_len=long)

    def in_full(self, interval: float, args: Namespace) -> bool:
        """Whether a workload is served by every budget, and more than once."""
        return bool(args.full or args.smoke) or interval == self.headline

    def rounds(self, interval: float, args: Namespace) -> int:
        """How often a workload is served."""
        return int(args.repeat) if self.in_full(interval, args) else 1


def sizes(args: Namespace) -> Sizes:
    """Workloads of the size that was asked for."""
    gpu = args.device.startswith("cuda")
    if args.smoke:
        first, window, interval = (0.003, 0.008, 0.004) if gpu else (0.03, 0.04, 0.02)
        budgets: tuple[int, ...] = (16, UNCHUNKED)
        return Sizes(2, 4, 64, 64, first, window, (interval, 0.0), interval, budgets, budgets)
    if gpu:
        budgets = (256, 512, 1024, 2048, UNCHUNKED)
        intervals = (0.25, 0.1, 1.0, 0.0)
        return Sizes(32, 128, 2048, 8192, 0.5, 3.0, intervals, 0.25, budgets, (512,))
    # One round on a CPU: only --full repeats.
    budgets = (64, 128, 256, UNCHUNKED)
    return Sizes(4, 32, 96, 512, 1.0, 6.0, (3.0,), -1.0, budgets, budgets)


@dataclass(frozen=True)
class Landing:
    """One served workload, in the window in which long prompts arrive.

    Attributes:
        gaps: Largest gap of each stream per long prompt, seconds; None without long prompts.
        itl: Gaps of the streams that reach into the window.
        output_throughput: Tokens that appeared in the window, over its length.
        stream_ttft: TTFT of the streams: their prompts come all at once, before the long ones.
        long_ttft: TTFT of the long prompts; None without.
        streams_at_end: Streams that still decoded when the window closed.
    """

    gaps: Distribution | None
    itl: Distribution | None
    output_throughput: float
    stream_ttft: Distribution | None
    long_ttft: Distribution | None
    streams_at_end: int

    @classmethod
    def of(cls, outputs: list[RequestOutput], size: Sizes) -> Landing:
        """Measure a run: the streams' outputs first, then those of the long prompts."""
        streams = [output.metrics for output in outputs[: size.streams]]
        long = [output.metrics for output in outputs[size.streams :]]
        start = streams[0].arrival_time + size.first
        end = start + size.window
        itl = [
            after - before
            for item in streams
            for before, after in pairwise(item.token_times)
            if before < end and after > start
        ]
        tokens = sum(start <= at < end for item in (*streams, *long) for at in item.token_times)
        return cls(
            gaps=Distribution.of(largest_gaps(streams, long)),
            itl=Distribution.of(itl),
            output_throughput=tokens / size.window,
            stream_ttft=Distribution.of(item.ttft for item in streams if item.ttft is not None),
            long_ttft=Distribution.of(item.ttft for item in long if item.ttft is not None),
            streams_at_end=sum(item.token_times[-1] >= end for item in streams),
        )


POINTS = {
    "gaps": ("p50", "p95", "max"),
    "itl": ("p50", "p99", "max"),
    "stream_ttft": ("p50", "max"),
    "long_ttft": ("p50", "max"),
}


def run(args: Namespace, notes: list[str]) -> tuple[Result, str]:
    """Serve every workload with every variant, in turn, in real time.

    Args:
        args: The benchmark's command line.
        notes: Sentences for the result file.

    Returns:
        The result and the summary line.
    """
    announce("gaps", args, 200, 90)
    size, notes = sizes(args), [*notes, BUDGET_NOTE]
    # Room for all streams and two long prompts: one that runs, and one that begins.
    pool = size.streams * (size.prompt + size.output + 16) + 2 * (size.long + 32)
    m4, m5 = engines(
        args, max_model_len=max(size.long + 1, size.prompt + size.output),
        max_num_seqs=size.streams + 8, pool_tokens=pool,
    )  # fmt: skip
    variants = [Variant(m4), *(Variant(m5, budget) for budget in size.budgets)]
    gpu = args.device.startswith("cuda")
    for variant in variants if gpu else variants[:2]:  # a GPU compiles for the real sizes
        serve(variant.ready(), size.warm_up(size.long if gpu else size.prompt))
    rows: list[Row] = []
    for interval in size.intervals:
        some = size.budgets if size.in_full(interval, args) else size.few
        served = [v for v in variants if v.budget is None or v.budget in some]
        rows += interval_rows(served, size, interval, args, notes)
    result = make_result(
        "m5_chunked", "gaps", rows, device=args.device,
        workload=size.workload(size.intervals[0]),
        config={**settings(args, m5), "streams": size.streams, "window": size.window},
        notes=notes,
    )  # fmt: skip
    return result, _summary(result, size)


def interval_rows(
    variants: list[Variant], size: Sizes, interval: float, args: Namespace, notes: list[str]
) -> list[Row]:
    """One workload: every variant in turn, measured, and each M5 over M4 of the same round."""
    workload, rounds = size.workload(interval), size.rounds(interval, args)
    notes.append(f"interval {interval:g}: workload {workload.name}, sha256 {workload.hash}")
    lost = dict.fromkeys((variant.name for variant in variants), 0)

    def serve_one(variant: Variant) -> list[RequestOutput]:
        engine = variant.ready()
        before = engine.scheduler.num_preemptions
        outputs = serve(engine, workload)
        lost[variant.name] += engine.scheduler.num_preemptions - before
        return outputs

    calls = {variant.name: partial(serve_one, variant) for variant in variants}
    served = interleaved_calls(calls, rounds, 0)
    rows: list[Row] = []
    below: list[Landing] = []
    for variant in variants:
        found = [Landing.of(outputs, size) for outputs in served[variant.name]]
        labels = {**variant.labels, "interval": interval}
        rows += landing_rows(found, labels)
        rows.append(row("preemptions", "count", lost[variant.name] / rounds, **labels))
        below = below or found
        if variant.budget is not None:
            rows += ratio_rows(found, below, labels)
        if any(item.streams_at_end < size.streams for item in found):
            notes.append(f"interval {interval:g}, {variant.name}: streams ended in the window")
    return rows


def landing_rows(found: list[Landing], labels: Labels) -> list[Row]:
    """The measured quantities, one value per round."""
    rows = [
        row("output_throughput", "tok/s", [item.output_throughput for item in found], **labels),
        row("streams_at_end", "count", [float(item.streams_at_end) for item in found], **labels),
    ]
    for name, points in POINTS.items():
        parts = [part for part in (getattr(item, name) for item in found) if part is not None]
        for point in points if parts else ():
            values = [getattr(part, point) for part in parts]
            rows.append(row(f"{name}_{point}", "s", values, **labels))
    return rows


def ratio_rows(found: list[Landing], below: list[Landing], labels: Labels) -> list[Row]:
    """How many times smaller than M4's the gaps are, and the share of its throughput."""
    pairs = list(zip(found, below, strict=True))
    speed = [
        own.output_throughput / m4.output_throughput
        for own, m4 in pairs
        if m4.output_throughput > 0  # its streams may have ended before the window
    ]
    rows = [row("throughput_over_m4", "ratio", speed, **labels)] if speed else []
    for point in ("p50", "p95"):
        values = [
            getattr(m4.gaps, point) / getattr(own.gaps, point)
            for own, m4 in pairs
            if own.gaps is not None and m4.gaps is not None
        ]
        if values:
            rows.append(row(f"gap_reduction_{point}", "ratio", values, **labels))
    return rows


def _summary(result: Result, size: Sizes) -> str:
    """M5's gaps and speed at the budget whose gaps are smallest."""
    at = {"interval": size.intervals[0]}
    ours = result.select(metric="gaps_p95", engine="m5_chunked", **at)
    if not ours:
        return "m5_chunked: no stream was left when a prompt landed"
    best = min(ours, key=lambda item: float(item["median"]))
    below = result.select(metric="gaps_p95", engine="m4_flash", **at)
    other = f"{below[0]['median'] * 1e3:.1f} ms" if below else "no stream left when a prompt landed"
    (speed,) = result.select(metric="output_throughput", budget=best["budget"], **at)
    name = (
        f"m5_chunked, budget {best['budget']}, largest gap p95 {best['median'] * 1e3:.1f} ms "
        f"(m4_flash {other})"
    )
    return summary_line(name, speed["median"], None, None)
