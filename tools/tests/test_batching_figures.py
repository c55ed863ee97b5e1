from __future__ import annotations

from pathlib import Path

import pytest

from tools.docs_build.errors import DocsError
from tools.docs_build.results import Results
from tools.figures import registry
from tools.figures.batching import EXAMPLE, SEATS, record
from tools.tests.conftest import RESULT_NAME

ROOT = Path(__file__).resolve().parents[2]


def given(root: Path, **options: str) -> registry.FigureInput:
    return registry.FigureInput(root, Results(root), {}, options)


@pytest.mark.parametrize("name", ["batching-seats", "padded-batch", "batch-roofline"])
def test_figures_without_data_draw(tmp_path: Path, name: str) -> None:
    assert registry.draw(name, given(tmp_path), "p").startswith("<svg ")


def test_the_stub_serves_every_request_in_full() -> None:
    for group in (None, SEATS):
        trace = record(EXAMPLE, SEATS, group)
        for number, (_, output) in enumerate(EXAMPLE):
            assert len(trace.output_token_ids(number)) == output


def test_continuous_steps_are_those_of_the_recorded_engine() -> None:
    """The note shows the scheduler's figure and the engine's output beside each other."""
    recorded = (ROOT / "docs/outputs/m2-steps.txt").read_text(encoding="utf-8").splitlines()
    shown = [line for line in recorded if line.startswith("step ")]
    drawn = [step.summary() for step in record(EXAMPLE, SEATS)]
    without_padding = [line.split(" | padding")[0].split(" | finished")[0] for line in shown]
    assert [line.split(" | padding")[0].split(" | finished")[0] for line in drawn] == (
        without_padding
    )


def test_static_groups_never_overlap() -> None:
    trace = record(EXAMPLE, SEATS, SEATS)
    assert len(trace) == sum(
        max(output for _, output in EXAMPLE[first : first + SEATS])
        for first in range(0, len(EXAMPLE), SEATS)
    )


@pytest.mark.usefixtures("result_file")
def test_throughput_needs_both_engines(tmp_path: Path) -> None:
    with pytest.raises(DocsError):
        registry.draw("m2_batching-throughput", given(tmp_path, result=RESULT_NAME), "p")
