from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.results import row
from m7_gptq.benchmarks.ladder_gains import derived_rows
from tools.docs_build.errors import DocsError
from tools.docs_build.results import RESULTS_DIR, Results
from tools.figures import registry
from tools.tests.conftest import result_data

NAME = "cpu-test-2c/m7_gptq-ladder"
RUNGS = [("m1_basic", "float32", 1), ("m2_batching", "float32", 4), ("m7_gptq", "4-bit + x", 27)]


def rows() -> list[dict[str, Any]]:
    """Each rung as many times M1 in all three measures as its last entry says."""
    found = []
    for stage, weights, factor in RUNGS:
        labels: dict[str, Any] = {"engine": stage, "weights": weights, "requests": 4}
        found += [
            row("output_throughput", "tok/s", 10.0 * factor, **labels),
            row("ttft_p50", "s", 2.0 / factor, **labels),
            row("time_per_token", "s", 0.5 / factor, **labels),
            row("total_bytes", "B", 100.0, **labels),
        ]
    return [*found, *derived_rows(found)]


def drawn(root: Path) -> str:
    given = registry.FigureInput(root, Results(root), {}, {"result": NAME})
    return registry.draw("m7_gptq-ladder", given, "p")


@pytest.fixture
def put(write: Callable[[str, str], Path]) -> Callable[[list[dict[str, Any]]], None]:
    """Write a result file with these rows."""

    def _put(found: list[dict[str, Any]]) -> None:
        data = {**result_data(), "stage": "m7_gptq", "benchmark": "ladder", "rows": found}
        write(f"{RESULTS_DIR}/{NAME}.json", json.dumps(data))

    return _put


def test_every_rung_is_drawn_with_its_mean(
    tmp_path: Path, put: Callable[[list[dict[str, Any]]], None]
) -> None:
    put(rows())
    svg = drawn(tmp_path)
    for text in ("M1", "M2", "M7", "4-bit", ">4<", ">27<", "geometric mean", "one stream"):
        assert text in svg, text


def test_a_run_without_gains_is_refused(
    tmp_path: Path, put: Callable[[list[dict[str, Any]]], None]
) -> None:
    put([item for item in rows() if item["metric"] == "ttft_p50"])
    with pytest.raises(DocsError, match=r"no row of .* for 'geometric_mean'"):
        drawn(tmp_path)
