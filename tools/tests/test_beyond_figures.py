"""Figures of the pages beyond M7 against sums written out."""

from pathlib import Path

import pytest

from common.model_costs import parameter_counts, weight_bytes
from common.qwen3 import QWEN3_0_6B
from tools.docs_build.results import Results
from tools.figures import registry
from tools.figures.beyond import (
    H100,
    LARGE,
    QWEN3_30B_A3B,
    Experts,
    batch_within,
    expected_tokens,
    parallel_seconds,
    projection_gain,
    rate_within,
    speculation_gain,
    step_seconds,
)

NAMES = ("speculation", "tensor-parallel", "low-bits", "moe", "slo")


@pytest.mark.parametrize("name", NAMES)
def test_figures_draw(name: str) -> None:
    root = Path()
    given = registry.FigureInput(root, Results(root), {}, {})
    assert registry.draw(f"beyond-{name}", given, "p").startswith("<svg ")


def test_a_small_step_is_bound_by_bytes_and_a_large_one_by_flops() -> None:
    small = weight_bytes(QWEN3_0_6B) / H100.spec_bandwidth
    assert step_seconds(QWEN3_0_6B, 1, 1, 0) == pytest.approx(small)
    counts = parameter_counts(QWEN3_0_6B)
    flops = 2 * (counts.linear + counts.embedding) * 4096
    assert step_seconds(QWEN3_0_6B, 1, 4096, 0) == pytest.approx(flops / H100.spec_flops)


def test_expected_tokens_are_the_geometric_sum() -> None:
    assert expected_tokens(0.7, 4) == pytest.approx((1 - 0.7**5) / 0.3)
    assert expected_tokens(0.0, 4) == 1
    assert expected_tokens(1.0, 4) == 5


def test_speculation_gains_alone_and_loses_in_a_large_batch_of_short_contexts() -> None:
    assert speculation_gain(1, 0.7) == pytest.approx(2.77 * 4.94 / (4.94 + 4 * 0.391), rel=0.01)
    assert speculation_gain(512, 0.5, context=128) < 1
    gains = [speculation_gain(8, a) for a in (0.5, 0.7, 0.9)]
    assert gains == sorted(gains)


def test_two_gpus_slow_a_small_model_down_and_speed_a_large_one_up() -> None:
    assert parallel_seconds(QWEN3_0_6B, 2) > parallel_seconds(QWEN3_0_6B, 1)
    assert parallel_seconds(LARGE, 2) < parallel_seconds(LARGE, 1)
    extra = 2 * 36 * 10e-6
    assert parallel_seconds(LARGE, 8) == pytest.approx(parallel_seconds(LARGE, 1) / 8 + extra)


def test_low_bits_gain_by_bytes_first_and_by_flops_later() -> None:
    four, eight = (4.15625, H100.spec_flops), (8, 2 * H100.spec_flops)
    assert projection_gain(1, *four) == pytest.approx(16 / 4.15625)
    assert projection_gain(1, *eight) == 2 == projection_gain(4096, *eight)
    assert projection_gain(4096, *four) == 1
    crossing = int(H100.ridge / 2)
    assert projection_gain(crossing - 1, *four) > projection_gain(crossing - 1, *eight)
    assert projection_gain(crossing + 2, *four) < projection_gain(crossing + 2, *eight)


def test_experts_are_read_one_by_one_and_then_all() -> None:
    assert Experts(1, 4, 1, 10).touched(2) == pytest.approx(4 - 4 * 0.75**2)
    assert QWEN3_30B_A3B.touched(1) == pytest.approx(8)
    assert QWEN3_30B_A3B.touched(1000) == pytest.approx(128)
    assert QWEN3_30B_A3B.bytes_read(10_000) == pytest.approx(2 * 48 * 128 * 3 * 2048 * 768)


def test_a_target_below_the_weights_admits_nobody() -> None:
    assert batch_within(LARGE, 0.004, 2048) == 0
    assert rate_within(LARGE, 0.004, 2048, 256) == 0


def test_the_batch_fills_the_target_with_bytes() -> None:
    batch = batch_within(LARGE, 0.02, 2048)
    read = weight_bytes(LARGE) + batch * 2048 * 147_456
    assert read / H100.spec_bandwidth == pytest.approx(0.02)


def test_prefills_take_their_share_of_the_gpu() -> None:
    decoding = rate_within(LARGE, 0.02, 2048, 256, share_prefill=False)
    assert decoding == pytest.approx(batch_within(LARGE, 0.02, 2176) / (256 * 0.02))
    assert rate_within(LARGE, 0.02, 2048, 256) < decoding
