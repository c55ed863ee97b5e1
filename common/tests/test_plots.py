import math
import re
from collections.abc import Iterator

import pytest

from common.plot_style import Axes
from common.plots import block_map, step_timeline, token_bars
from common.request import Request, SamplingParams, Sequence
from common.step_record import Admission, BlockEvent, ScheduledSlice
from common.tests.sample_traces import busy_trace
from common.tests.toy_scheduler import Job, Toy
from common.trace import Trace, TraceError, TraceInfo

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture
def trace() -> Trace:
    return busy_trace()


def texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


def legend_labels(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


class TestStepTimeline:
    def test_has_a_row_per_request_and_a_box_per_slice(self, trace: Trace) -> None:
        ax = step_timeline(trace, title="six")
        assert [tick.get_text() for tick in ax.get_yticklabels()] == [f"r{i}" for i in range(6)]
        slices = sum(len(step.slices) for step in trace)
        hits = sum(item.num_cached_tokens > 0 for step in trace for item in step.admitted)
        assert hits
        assert len(ax.patches) == slices + hits
        assert sum(patch.get_hatch() is not None for patch in ax.patches) == hits
        crosses = [line for line in ax.lines if line.get_marker() == "X"]
        assert len(crosses) == sum(len(step.preempted) for step in trace) > 0
        assert legend_labels(ax) == ["prefill", "decode", "cached", "waiting", "preempted"]

    def test_prefill_is_solid_and_decode_light_in_one_hue(self, trace: Trace) -> None:
        first, second = step_timeline(trace).patches[:2]
        assert first.get_facecolor()[3] == 1.0
        assert second.get_facecolor()[3] < 0.5
        assert first.get_facecolor()[:3] == second.get_facecolor()[:3]

    def test_cells_say_how_many_prompt_tokens(self, trace: Trace) -> None:
        counts = [
            str(part.num_tokens)
            for step in trace
            for part in step.slices
            if part.phase == "prefill"
        ]
        assert sorted(texts(step_timeline(trace))) == sorted(counts)

    def test_a_wait_is_one_dotted_line(self) -> None:
        queued = Toy([Job(8, 3), Job(8, 1, 1)], num_blocks=3, block_size=4).run()
        (line,) = [line for line in step_timeline(queued).lines if line.get_linestyle() == ":"]
        waited = [step.index for step in queued if 1 in step.waiting_after]
        assert len(waited) > 1
        assert list(line.get_xdata()) == [waited[0], waited[-1] + 1]

    def test_long_traces_merge_equal_neighbours(self) -> None:
        long = Toy([Job(8, 100)], num_blocks=40).run()
        ax = step_timeline(long)
        assert len(ax.patches) == 2
        assert ax.patches[1].get_width() == 99
        assert texts(ax) == []

    def test_draws_on_given_axes(self, trace: Trace) -> None:
        _, ax = plt.subplots()
        assert step_timeline(trace, ax) is ax

    def test_completions_of_one_request_are_told_apart(self) -> None:
        trace = Trace(TraceInfo("m3_paged"))
        request = Request("a", (1, 2), SamplingParams(n=2, max_tokens=4))
        seqs = [Sequence(i, request, index=i) for i in range(2)]
        for seq in seqs:
            trace.add_sequence(seq)
        parts = tuple(
            ScheduledSlice.of(seq, start=0, num_tokens=2, num_known_tokens=2, token_ids=(5,))
            for seq in seqs
        )
        trace.record(waiting=(0, 1), admitted=(Admission(0), Admission(1)), slices=parts)
        ax = step_timeline(trace)
        assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a/0", "a/1"]
        assert ax.patches[0].get_facecolor() == ax.patches[1].get_facecolor()

    def test_empty(self) -> None:
        with pytest.raises(TraceError, match="at least one step"):
            step_timeline(Trace(TraceInfo("m1_basic")))


class TestTokenBars:
    def test_heights_are_the_tokens_of_each_step(self, trace: Trace) -> None:
        ax = token_bars(trace)
        tops: dict[int, float] = {}
        for patch in ax.patches:
            at = math.floor(patch.get_x())
            tops[at] = max(tops.get(at, 0), patch.get_y() + patch.get_height())
        assert tops == {step.index: step.num_tokens for step in trace}
        assert legend_labels(ax) == ["prefill", "decode", "budget 12"]

    def test_merged_boxes_cover_the_same_area(self) -> None:
        long = Toy([Job(8, 90), Job(5, 60)], num_blocks=60).run()
        ax = token_bars(long)
        area = sum(patch.get_width() * patch.get_height() for patch in ax.patches)
        assert area == pytest.approx(sum(step.num_tokens for step in long))
        assert len(ax.patches) < 8

    def test_padding_is_an_outline_on_top(self, trace: Trace) -> None:
        trace.record(num_padding_tokens=5)
        ax = token_bars(trace)
        outline = ax.patches[-1]
        assert outline.get_height() == 5
        assert outline.get_facecolor()[3] == 0.0
        assert "padding" in legend_labels(ax)

    def test_a_distant_budget_does_not_flatten_the_bars(self, trace: Trace) -> None:
        trace.info.config["max_num_batched_tokens"] = 8192
        ax = token_bars(trace)
        assert ax.get_ylim()[1] < 20
        assert legend_labels(ax) == ["prefill", "decode"]

    def test_empty(self) -> None:
        with pytest.raises(TraceError, match="at least one step"):
            token_bars(Trace(TraceInfo("m1_basic")))


class TestBlockMap:
    def test_shows_owners_sharing_and_content(self, trace: Trace) -> None:
        ax = block_map(trace, 9)
        assert texts(ax)[:3] == ["r2,r5", "r2,r5", "r4"]
        hatched = sum(patch.get_hatch() is not None for patch in ax.patches)
        assert hatched == 9
        assert "12 of 12 blocks owned" in ax.get_title("left")
        assert legend_labels(ax) == ["holds tokens", "shared (double border)", "cached"]

    def test_fill_is_the_share_of_used_slots(self) -> None:
        trace = Toy([Job(6, 1)], num_blocks=4, block_size=4).run()
        trace.steps = trace.steps[:1]
        free_all = [event for event in trace[0].block_events if event.kind == "alloc"]
        part = trace[0].slices
        trace.steps = []
        trace.record(
            waiting=(0,), admitted=(Admission(0),), slices=part, block_events=tuple(free_all)
        )
        ax = block_map(trace)
        solid = [patch for patch in ax.patches if patch.get_facecolor()[3] == 1.0]
        side = solid[0].get_width()
        assert [patch.get_height() / side for patch in solid] == pytest.approx([1.0, 0.5])
        assert "2 of 4 blocks owned" in ax.get_title("left")
        assert legend_labels(ax) == ["holds tokens", "free"]

    def test_marks_what_the_step_evicted(self, trace: Trace) -> None:
        step = next(s for s in trace if any(e.kind == "evict" for e in s.block_events))
        evictions = {e.block for e in step.block_events if e.kind == "evict"}
        crosses = [line for line in block_map(trace, step.index).lines if line.get_marker() == "x"]
        assert len(crosses) == len(evictions)

    def test_free_but_cached_blocks_after_the_end(self, trace: Trace) -> None:
        title = block_map(trace).get_title("left")
        assert re.fullmatch(r"after step \d+: 0 of 12 blocks owned, \d+ free but cached", title)

    def test_a_large_pool_is_cut_after_the_last_named_block(self) -> None:
        trace = Toy([Job(30, 2)], num_blocks=11_404, block_size=16).run()
        ax = block_map(trace, 0)
        assert "the first 2 shown" in ax.get_title("left")

    def test_a_trace_without_blocks_says_so(self) -> None:
        with pytest.raises(TraceError, match="m1_basic records no KV blocks"):
            block_map(Trace(TraceInfo("m1_basic")))

    def test_a_broken_trace_is_not_drawn(self) -> None:
        trace = Trace(TraceInfo("m3_paged", 4, 4))
        trace.record(block_events=(BlockEvent("evict", 0),))
        with pytest.raises(TraceError, match="evicted but not cached"):
            block_map(trace)
