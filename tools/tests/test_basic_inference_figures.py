"""The figures of note 01 show what the code and the recorded traces say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.qwen3 import QWEN3_0_6B
from common.request import Request, SamplingParams, Sequence
from common.step_record import Admission, Finish, ScheduledSlice
from common.trace import Trace, TraceInfo
from tools.docs_build.errors import DocsError
from tools.docs_build.results import RESULTS_DIR
from tools.figures import registry
from tools.tests.conftest import result_data
from tools.tests.test_figures import given, texts

CURVE = "cpu-test-2c/m1_basic-cache_curve"


def record(path: Path, *, kv_cache: bool) -> None:
    """Write the trace of three prompt tokens and two sampled ones."""
    trace = Trace(TraceInfo("m1_basic", kv_cache=kv_cache))
    seq = Sequence(0, Request("0", (7, 8, 9), SamplingParams(max_tokens=2)))
    trace.add_sequence(seq)
    for step, known in enumerate((3, 4)):
        start = 3 * step if kv_cache else 0
        part = ScheduledSlice.of(
            seq, start=start, num_tokens=known - start, num_known_tokens=known, token_ids=(1,)
        )
        trace.record(
            waiting=() if step else (0,),
            running=(0,) if step else (),
            admitted=() if step else (Admission(0),),
            slices=(part,),
            finished=(Finish(0, "length"),) if step else (),
        )
    trace.validate()
    trace.write(path)


def curve(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write a result file of the cache curve."""
    path = folder / RESULTS_DIR / f"{CURVE}.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**result_data(), "benchmark": "cache_curve", "rows": rows}))


def row(metric: str, context: int, median: float, **labels: Any) -> dict[str, Any]:
    measured = {"median": median, "min": median, "max": median, "spread": 0.0, "n": 1}
    return {"context": context, **labels, "metric": metric, "unit": "s", **measured}


def test_the_token_path_has_the_shapes_of_the_config(tmp_path: Path) -> None:
    constants = registry.FigureInput(
        tmp_path, given(tmp_path).results, {"QWEN3_0_6B": QWEN3_0_6B}, {}
    )
    shown = texts(registry.draw("token-path", constants, "p"))
    for shape in ("[L, 4,096]", "q [1, 16, 128] · k, v [1, 8, 128]", "[16, L, L]", "[1, 151,936]"):
        assert shape in shown
    assert "28 layers" in shown


def test_the_token_path_needs_the_constants(tmp_path: Path) -> None:
    with pytest.raises(DocsError, match="QWEN3_0_6B"):
        registry.draw("token-path", given(tmp_path), "p")


def test_the_mask_shows_both_alignments(tmp_path: Path) -> None:
    svg = registry.draw("causal-alignment", given(tmp_path), "p")
    hidden = svg.count('fill="none"')
    # Ten cells each: three are visible top-left, nine bottom-right.
    assert (20 - hidden, hidden) == (3 + 9, 7 + 1)


def test_filters_are_those_of_the_sampler(tmp_path: Path) -> None:
    shown = texts(registry.draw("sampling-filters", given(tmp_path), "p"))
    for value in ("top_p 0.6", "66.7", "33.3", "min_p 0.25", "57.1", "×"):
        assert value in shown


def test_steps_are_counted_from_the_traces(tmp_path: Path) -> None:
    record(tmp_path / "docs/traces/off.json", kv_cache=False)
    record(tmp_path / "docs/traces/on.json", kv_cache=True)
    names = {"without": "off.json", "with": "on.json"}
    shown = texts(registry.draw("cache-steps", given(tmp_path, **names), "p"))
    assert "without the cache: 7 token forwards" in shown
    assert "with the cache: 4 token forwards" in shown


def test_a_missing_trace_is_named(tmp_path: Path) -> None:
    names = {"without": "gone.json", "with": "gone.json"}
    with pytest.raises(DocsError, match=r"gone\.json"):
        registry.draw("cache-steps", given(tmp_path, **names), "p")


def test_the_cache_curve_has_both_lines_and_the_floor(tmp_path: Path) -> None:
    rows = [row("step_time", n, 0.02, cache=name) for n in (16, 64) for name in ("on", "off")]
    curve(tmp_path, [*rows, row("step_floor", 16, 0.0004), row("step_floor", 64, 0.0005)])
    shown = texts(registry.draw("m1_basic-cache_curve", given(tmp_path, result=CURVE), "p"))
    for text in ("with the cache", "without it", "floor", "one decode step (ms)", "64"):
        assert text in shown


@pytest.mark.parametrize(
    "rows, message",
    [
        ([row("step_floor", 16, 0.0004)], "no metric 'step_time'"),
        ([row("step_time", 16, 0.02, cache="on")], "off"),
    ],
)
def test_an_incomplete_curve_is_refused(
    tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    curve(tmp_path, rows)
    with pytest.raises(DocsError, match=message):
        registry.draw("m1_basic-cache_curve", given(tmp_path, result=CURVE), "p")
