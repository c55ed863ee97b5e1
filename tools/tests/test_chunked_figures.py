from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.devices import DEVICES, prefill_floor_seconds
from common.qwen3 import QWEN3_0_6B
from common.trace import Trace
from tools.docs_build.errors import DocsError
from tools.docs_build.results import RESULTS_DIR, Results
from tools.figures import registry
from tools.figures.chunked import EXAMPLE, LONG, chunk_floors, land, pauses, record
from tools.tests.conftest import result_data

ROOT = Path(__file__).resolve().parents[2]
NAME = "cpu-test-2c/m5_chunked-chunk_size"


def given(root: Path, **options: str) -> registry.FigureInput:
    return registry.FigureInput(root, Results(root), {}, options)


@pytest.mark.parametrize("name", ["m5-token-bars", "m5-pauses", "m5-chunk-mask", "m5-chunk-price"])
def test_figures_without_data_draw(tmp_path: Path, name: str) -> None:
    assert registry.draw(name, given(tmp_path), "p").startswith("<svg ")


@pytest.mark.parametrize(("file", "budget"), [("m5-whole.json", None), ("m5-chunked.json", 16)])
def test_steps_are_those_of_the_recorded_engine(file: str, budget: int | None) -> None:
    """The note shows the scheduler's figure and the engine's trace beside each other."""
    recorded = Trace.read(ROOT / "docs/traces" / file)
    assert [step.summary() for step in record(EXAMPLE, budget)] == [
        step.summary() for step in recorded
    ]


def test_the_recorded_engines_answer_alike() -> None:
    whole, chunked = (
        Trace.read(ROOT / f"docs/traces/m5-{name}.json") for name in ("whole", "chunked")
    )
    for number, (_, _, output) in enumerate(EXAMPLE):
        assert len(whole.output_token_ids(number)) == output
        assert whole.output_token_ids(number) == chunked.output_token_ids(number)


def test_pauses_by_hand() -> None:
    """Two prompts of 2 and 5, the second one step later; M4 lets the first wait."""
    requests = ((0, 2, 4), (1, 5, 1))
    assert pauses(record(requests, None), 0) == [6, 1, 1]
    assert pauses(record(requests, 3), 0) == [3, 3, 2]


def test_a_budget_bounds_every_pause() -> None:
    for chat in range(3):
        assert max(pauses(record(EXAMPLE, 16), chat)) == 16
        assert max(pauses(record(EXAMPLE, None), chat)) == 72 + 4


@pytest.mark.parametrize(
    ("budget", "pause", "steps", "first"),
    [(None, LONG + 4, 1, LONG), (2048, 2048, 5, LONG + 20), (128, 128, 67, LONG + 268)],
)
def test_a_long_prompt_lands(budget: int | None, pause: int, steps: int, first: int) -> None:
    """Four decodes a step leave 2,044 and 124 tokens of a budget."""
    landing = land(budget)
    assert (landing.pause, landing.steps, landing.first) == (pause, steps, first)


def test_floors_of_a_chunk() -> None:
    """Large chunks compute as long as the whole prompt; small ones wait for the weights."""
    device = DEVICES["h100"]
    whole = prefill_floor_seconds(QWEN3_0_6B, device.spec_flops, LONG)
    assert chunk_floors(device, LONG, LONG) == [pytest.approx(whole)]
    assert sum(chunk_floors(device, LONG, 512)) == pytest.approx(whole)
    small = chunk_floors(device, LONG, 32)
    assert len(small) == LONG // 32
    assert sum(small) > 8 * whole
    assert small == sorted(small)


def chunk_sizes(**changes: Any) -> dict[str, Any]:
    data = result_data()
    template = data["rows"][0]
    cases: list[dict[str, Any]] = [
        {"engine": "m4_flash"},
        {"engine": "m5_chunked", "budget": 64, "threshold": 0},
        {"engine": "m5_chunked", "budget": 256, "threshold": 0},
        {"engine": "m5_chunked", "budget": 64, "threshold": 32},
    ]
    labels = {"engine", "budget", "threshold"}
    measured = {key: value for key, value in template.items() if key not in labels}
    data["rows"] = [
        {**measured, **case, "metric": metric}
        for case in cases
        for metric in ("largest_gap", "long_ttft")
    ]
    return {**data, "stage": "m5_chunked", "benchmark": "chunk_size", **changes}


def test_the_curve_names_each_budget(write: Callable[[str, str], Path], tmp_path: Path) -> None:
    write(f"{RESULTS_DIR}/{NAME}.json", json.dumps(chunk_sizes()))
    svg = registry.draw("m5_chunked-chunk_size", given(tmp_path, result=NAME), "p")
    assert all(f">{text}<" in svg for text in ("64", "256", "whole", "M4"))
    assert ">32<" not in svg, "a threshold is no point of this curve"


def test_the_curve_needs_both_stages(write: Callable[[str, str], Path], tmp_path: Path) -> None:
    rows = [row for row in chunk_sizes()["rows"] if row["engine"] != "m4_flash"]
    write(f"{RESULTS_DIR}/{NAME}.json", json.dumps(chunk_sizes(rows=rows)))
    with pytest.raises(DocsError, match="needs largest_gap and long_ttft"):
        registry.draw("m5_chunked-chunk_size", given(tmp_path, result=NAME), "p")
