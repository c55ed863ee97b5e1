"""Shares of wall time: every moment once, nothing lost; bytes and FLOPs of what was computed."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.model_costs import (
    decode_bytes,
    linear_flops_per_token,
    lm_head_flops_per_row,
    prefill_flops,
    step_flops,
    weight_bytes,
)
from common.qwen3 import QWEN3_0_6B
from common.stats import StepTiming
from common.step_budget import HOST, Span, exclusive, step_budgets, tenths

MODEL = QWEN3_0_6B


def budgets(steps: list[StepTiming], spans: list[Span]) -> dict[str, dict[str, float]]:
    weights = weight_bytes(MODEL)
    found = step_budgets(steps, spans, MODEL, weight_bytes=weights, dtype="bfloat16")
    return {item.phase: {k: v for k, v in item.parts.items() if v} for item in found}


def decode(end: float, seconds: float = 1.0) -> StepTiming:
    return StepTiming(end, seconds, False, ((9, 10),))


def test_the_innermost_owns_the_time() -> None:
    outer, inner = Span(0.0, 10.0, "small operations"), Span(2.0, 5.0, "matrix products")
    assert exclusive([inner, outer]) == [
        Span(0.0, 2.0, "small operations"),
        Span(2.0, 5.0, "matrix products"),
        Span(5.0, 10.0, "small operations"),
    ]


def test_two_streams_count_once() -> None:
    spans = [Span(0.0, 4.0, "attention"), Span(3.0, 6.0, "copies")]
    assert exclusive(spans) == [Span(0.0, 3.0, "attention"), Span(3.0, 6.0, "copies")]


spans_of = st.lists(
    st.builds(
        lambda begin, length, group: Span(begin, begin + length, group),
        st.integers(0, 40).map(float),
        st.integers(0, 20).map(float),
        st.sampled_from(["attention", "copies", HOST]),
    ),
    max_size=12,
)


@given(spans_of)
def test_pieces_are_disjoint_and_cover_the_union(spans: list[Span]) -> None:
    pieces = exclusive(spans)
    for earlier, later in pairwise(pieces):
        assert earlier.end <= later.begin
    covered = {t for piece in pieces for t in range(int(piece.begin), int(piece.end))}
    assert covered == {t for span in spans for t in range(int(span.begin), int(span.end))}


@given(spans_of)
def test_parts_add_up_to_the_wall_time(spans: list[Span]) -> None:
    steps = [decode(10.0, 7.0), decode(24.0, 14.0), decode(60.0, 30.0)]
    (only,) = step_budgets(steps, spans, MODEL, weight_bytes=1, dtype="bfloat16")
    assert only.num_steps == 2
    assert sum(only.parts.values()) == pytest.approx(only.seconds) == pytest.approx(44.0)


def test_what_no_span_covers_is_the_host_s() -> None:
    steps = [StepTiming(1.0, 1.0, True, ((0, 4),)), decode(3.0, 1.5)]
    spans = [Span(0.25, 0.5, "attention"), Span(0.9, 2.0, "matrix products")]
    assert budgets(steps, spans) == {
        "prefill": {
            "attention": 0.25,
            "matrix products": pytest.approx(0.1),
            HOST: pytest.approx(0.65),
        },
        "decode": {"matrix products": 0.5, HOST: 1.0},
    }


def test_the_first_step_of_a_phase_pays_for_warm_up_and_is_left_out() -> None:
    steps = [decode(5.0, 5.0), decode(6.0), decode(7.0)]
    assert budgets(steps, []) == {"decode": {HOST: 2.0}}
    assert budgets(steps[:1], []) == {"decode": {HOST: 5.0}}
    assert budgets([], []) == {}


def test_bytes_and_flops_are_the_model_s() -> None:
    batch = StepTiming(1.0, 1.0, False, ((99, 100), (199, 200)))
    (only,) = step_budgets([batch], [], MODEL, weight_bytes=weight_bytes(MODEL), dtype="bfloat16")
    assert only.num_bytes == decode_bytes(MODEL, 2, 150)
    prompt = StepTiming(1.0, 1.0, True, ((0, 512),))
    expected = prefill_flops(MODEL, 512) + lm_head_flops_per_row(MODEL)
    assert step_flops(MODEL, prompt.slices) == pytest.approx(expected, rel=1e-3)
    assert step_flops(MODEL, batch.slices) > 2 * linear_flops_per_token(MODEL)


@given(st.lists(st.floats(0.0, 1e6), min_size=1, max_size=9).filter(lambda v: sum(v) > 1e-6))
def test_percentages_add_up(values: list[float]) -> None:
    shown = tenths(values)
    assert sum(round(10 * value) for value in shown) == 1000
    for share, value in zip(shown, values, strict=True):
        assert abs(share - 100 * value / sum(values)) <= 0.1 + 1e-9
