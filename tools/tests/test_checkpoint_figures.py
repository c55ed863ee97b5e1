from __future__ import annotations

import re
from pathlib import Path

import pytest

from common.devices import GIB
from common.qwen3 import QWEN3_0_6B
from m0_init.memory_plan import plan_memory
from tools.docs_build.errors import DocsError
from tools.docs_build.results import Results
from tools.figures import registry


def drawn(name: str, **options: str) -> str:
    root = Path()
    return registry.draw(name, registry.FigureInput(root, Results(root), {}, options), "p")


def test_merged_projections_are_drawn_to_scale() -> None:
    svg = drawn("merged-projections")
    for shape in ("2,048 × 1,024", "4,096 × 1,024", "6,144 × 1,024", "1,024 × 3,072"):
        assert shape in svg
    boxes = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', svg)
    assert len(boxes) == 14
    areas = dict.fromkeys((184.0, 394.0), 0.0)
    for x, _, width, height in boxes:
        areas[float(x)] += float(width) * float(height)
    # Seven matrices of 15,728,640 weights in all, on both sides.
    stored, loaded = areas.values()
    assert stored == pytest.approx(loaded)
    assert stored == pytest.approx(15_728_640 * 0.03**2, rel=0.01)


def test_merged_rows_lie_one_below_the_other() -> None:
    boxes = re.findall(
        r'<rect x="394.0" y="([\d.]+)".*? height="([\d.]+)"', drawn("merged-projections")
    )
    (q, q_tall), (k, k_tall), (v, _) = [(float(y), float(tall)) for y, tall in boxes[:3]]
    assert k == pytest.approx(q + q_tall, abs=0.11)
    assert v == pytest.approx(k + k_tall, abs=0.11)


def test_the_memory_plan_shows_the_tokens_of_the_plan() -> None:
    plan = plan_memory(QWEN3_0_6B, 8 * GIB)
    assert f"= {plan.num_tokens:,} tokens" in drawn("memory-plan", memory_gib="8")
    smaller = drawn("memory-plan", memory_gib="8", num_batched_tokens="65536")
    assert f"= {plan.num_tokens:,} tokens" not in smaller


def test_rope_wavelengths_name_both_bases() -> None:
    svg = drawn("rope-wavelengths")
    assert "theta 1,000,000" in svg
    assert "theta 10,000" in svg


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "needs memory_gib="),
        ({"memory_gib": "large"}, "are numbers"),
        ({"memory_gib": "1"}, "needed"),
    ],
)
def test_a_plan_that_cannot_be_drawn_says_why(options: dict[str, str], message: str) -> None:
    with pytest.raises(DocsError, match=message):
        drawn("memory-plan", **options)
