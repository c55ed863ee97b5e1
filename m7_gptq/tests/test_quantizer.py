"""GPTQ against a slow textbook version, by hand, and against rounding to nearest."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.errors import CheckpointError, ConfigError
from m7_gptq.hessian import output_error
from m7_gptq.quantizer import (
    QuantizedWeight,
    QuantSpec,
    choose_grid,
    gptq,
    quantise,
    round_to_nearest,
)
from m7_gptq.tests.layers import layer


def textbook(weight: Tensor, hessian: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """OBQ in a fixed order: the inverse of the free columns' H is computed anew for each column.

    Returns:
        Integers and Ŵ, columns in the original order.
    """
    columns = weight.shape[1]
    order = list(range(columns))
    if spec.desc_act:
        diagonal = hessian.diagonal().tolist()
        order.sort(key=lambda column: -diagonal[column])
    h = hessian.clone()
    h += spec.damp * h.diagonal().mean() * torch.eye(columns, dtype=h.dtype)
    h, w = h[order][:, order], weight[:, order].clone()
    group, ints = spec.group(columns), torch.zeros(weight.shape)
    approximation = torch.zeros_like(w)
    for j in range(columns):
        if j % group == 0:
            scale, zero = choose_grid(w[:, j : j + group], spec)
        inverse = torch.linalg.inv(h[j:, j:])
        q = quantise(w[:, j], scale.double(), zero.double(), spec.bits)
        approximation[:, j] = (q - zero.double()) * scale.double()
        ints[:, order[j]] = q.float()
        step = (w[:, j] - approximation[:, j]) / inverse[0, 0]
        w[:, j:] -= step[:, None] * inverse[0][None]
    back = [order.index(column) for column in range(columns)]
    return ints, approximation[:, back]


def relative(made: QuantizedWeight, weight: Tensor, hessian: Tensor) -> float:
    return float(made.error.sum() / output_error(weight, torch.zeros_like(weight), hessian).sum())


class TestAgainstTheTextbook:
    @pytest.mark.parametrize("desc_act", [False, True])
    @pytest.mark.parametrize("sym", [False, True])
    @pytest.mark.parametrize(("bits", "group"), [(4, -1), (4, 8), (4, 12), (8, 16), (4, 64)])
    def test_the_same_integers(self, bits: int, group: int, sym: bool, desc_act: bool) -> None:
        weight, hessian = layer(5, 32, seed=bits + group)
        spec = QuantSpec(bits=bits, group_size=group, sym=sym, desc_act=desc_act)
        ints, approximation = textbook(weight, hessian, spec)
        made = gptq(weight, hessian, spec)
        assert torch.equal(made.ints.float(), ints)
        torch.testing.assert_close(made.dequantised().double(), approximation)

    @pytest.mark.parametrize("group", [-1, 8, 12, 20])
    @pytest.mark.parametrize("block", [1, 3, 8, 16, 100])
    def test_the_block_size_changes_nothing(self, group: int, block: int) -> None:
        weight, hessian = layer(4, 40, seed=block)
        spec = QuantSpec(group_size=group, sym=False)
        whole = gptq(weight, hessian, spec)
        parts = gptq(weight, hessian, replace(spec, block_size=block))
        assert torch.equal(whole.ints, parts.ints)
        assert torch.equal(whole.scales, parts.scales)
        assert torch.equal(whole.zeros, parts.zeros)

    @settings(max_examples=25, deadline=None)
    @given(st.integers(0, 10**6), st.integers(2, 24), st.integers(1, 24), st.booleans())
    def test_any_shape(self, seed: int, columns: int, group: int, desc_act: bool) -> None:
        weight, hessian = layer(3, columns, seed)
        spec = QuantSpec(group_size=group, sym=False, desc_act=desc_act)
        ints, _ = textbook(weight, hessian, spec)
        assert torch.equal(gptq(weight, hessian, spec).ints.float(), ints)


class TestTwoColumnsByHand:
    """One row, two inputs, H = [[4, 2], [2, 2]]; 4 bits symmetric, max|w| = 7.5, so scale 1."""

    HESSIAN = torch.tensor([[4.0, 2.0], [2.0, 2.0]], dtype=torch.float64)
    SPEC = QuantSpec(group_size=-1, damp=1e-12)

    def test_a_correction_beyond_the_grid_is_clamped(self) -> None:
        """w = (7.3, 7.5): ŵ₀ = 7, error 0.3; w₁ becomes 7.5 + 0.3 · H₀₁/H₁₁ = 7.8, rounds to 8,
        and the grid ends at 7.
        """
        weight = torch.tensor([[7.3, 7.5]], dtype=torch.float64)
        made = gptq(weight, self.HESSIAN, self.SPEC)
        assert made.scales.tolist() == [[1.0]]
        assert made.zeros.tolist() == [[8]]
        assert made.ints.tolist() == [[15, 15]]

    def test_a_correction_that_rounding_would_miss(self) -> None:
        """w = (−7.5, 2.4): ŵ₀ = −8 (halves go to even), error 0.5, w₁ becomes 2.4 + 0.5 = 2.9 → 3.

        Left alone, w₁ would round to 2. Errors: d = (0.5, −0.6) costs 4·0.25 + 2·2·0.5·(−0.6)
        + 2·0.36 = 0.52; rounding's d = (0.5, 0.4) costs 1 + 0.8 + 0.32 = 2.12.
        """
        weight = torch.tensor([[-7.5, 2.4]], dtype=torch.float64)
        made = gptq(weight, self.HESSIAN, self.SPEC)
        assert made.ints.tolist() == [[0, 11]]
        assert float(made.error) == pytest.approx(0.52)
        nearest = round_to_nearest(weight, self.HESSIAN, self.SPEC)
        assert nearest.ints.tolist() == [[0, 10]]
        assert float(nearest.error) == pytest.approx(2.12)

    def test_no_pair_of_integers_is_better(self) -> None:
        """Greedy rounding is near the best in general; here it is the best of all 256."""
        weight = torch.tensor([[-7.5, 2.4]], dtype=torch.float64)
        made = gptq(weight, self.HESSIAN, self.SPEC)
        points = torch.cartesian_prod(torch.arange(-8.0, 8.0), torch.arange(-8.0, 8.0)).double()
        best = output_error(weight, points, self.HESSIAN).min()
        assert float(made.error) == pytest.approx(float(best))

    def test_act_order_takes_the_larger_diagonal_first(self) -> None:
        swapped = self.HESSIAN.flip(0, 1)  # now column 1 has the larger diagonal
        weight = torch.tensor([[2.4, -7.5]], dtype=torch.float64)
        made = gptq(weight, swapped, replace(self.SPEC, desc_act=True))
        assert made.ints.tolist() == [[11, 0]]
        in_order = gptq(weight, swapped, self.SPEC)
        assert in_order.ints.tolist() != made.ints.tolist()


class TestAgainstRoundToNearest:
    @pytest.mark.parametrize("sym", [False, True])
    @pytest.mark.parametrize("desc_act", [False, True])
    @pytest.mark.parametrize("group", [-1, 16, 32])
    def test_the_error_is_smaller(self, group: int, sym: bool, desc_act: bool) -> None:
        for seed in range(5):
            weight, hessian = layer(24, 64, seed, dtype=torch.float32)
            spec = QuantSpec(group_size=group, sym=sym, desc_act=desc_act)
            ours = relative(gptq(weight, hessian, spec), weight, hessian)
            nearest = relative(round_to_nearest(weight, hessian, spec), weight, hessian)
            assert ours < 0.7 * nearest

    def test_uncorrelated_inputs_leave_nothing_to_make_up_for(self) -> None:
        weight, _ = layer(6, 32, seed=1)
        hessian = torch.eye(32, dtype=torch.float64) * 3
        spec = QuantSpec(group_size=8)
        ours, nearest = gptq(weight, hessian, spec), round_to_nearest(weight, hessian, spec)
        assert torch.equal(ours.ints, nearest.ints)
        assert torch.equal(ours.error, nearest.error)

    def test_eight_bits_are_close_to_the_floats(self) -> None:
        weight, hessian = layer(8, 32, seed=2)
        four = relative(gptq(weight, hessian, QuantSpec(4, 16)), weight, hessian)
        eight = relative(gptq(weight, hessian, QuantSpec(8, 16)), weight, hessian)
        assert eight < four / 100
        assert float(gptq(weight, hessian, QuantSpec(8, 16)).ints.max()) > 15

    def test_weights_on_the_grid_stay(self) -> None:
        weight = torch.tensor([[0.0, 0.25, 3.75, 1.0]], dtype=torch.float64)
        spec = QuantSpec(group_size=4, sym=False)
        made = gptq(weight, layer(1, 4, seed=0)[1], spec)
        assert made.ints.tolist() == [[0, 1, 15, 4]]
        assert torch.equal(made.dequantised().double(), weight)
        assert float(made.error) == 0


class TestGroupsAndOrder:
    def test_the_last_group_may_be_smaller(self) -> None:
        weight, hessian = layer(4, 20, seed=3)
        made = gptq(weight, hessian, QuantSpec(group_size=8))
        assert made.g_idx.tolist() == [0] * 8 + [1] * 8 + [2] * 4
        assert made.scales.shape == (4, 3)

    @pytest.mark.parametrize("group", [-1, 20, 100])
    def test_one_group(self, group: int) -> None:
        weight, hessian = layer(4, 20, seed=3)
        made = gptq(weight, hessian, QuantSpec(group_size=group))
        assert made.g_idx.tolist() == [0] * 20
        assert made.scales.shape == (4, 1)

    def test_act_order_groups_columns_by_the_size_of_their_activations(self) -> None:
        weight, _ = layer(4, 8, seed=4)
        hessian = torch.diag(torch.tensor([1.0, 8, 3, 7, 2, 6, 4, 5], dtype=torch.float64))
        made = gptq(weight, hessian, QuantSpec(group_size=2, desc_act=True))
        assert made.g_idx.tolist() == [3, 0, 2, 0, 3, 1, 2, 1]
        assert made.g_idx.dtype == torch.int32

    def test_equal_diagonals_keep_their_order(self) -> None:
        weight, _ = layer(2, 40, seed=5)
        made = gptq(weight, torch.eye(40).double(), QuantSpec(group_size=8, desc_act=True))
        assert made.g_idx.tolist() == [column // 8 for column in range(40)]

    def test_rows_do_not_influence_each_other(self) -> None:
        weight, hessian = layer(6, 24, seed=6)
        spec = QuantSpec(group_size=8, desc_act=True)
        parts = gptq(weight, hessian, spec).split((2, 4))
        for part, rows in zip(parts, torch.split(weight, [2, 4]), strict=True):
            alone = gptq(rows, hessian, spec)
            assert torch.equal(part.ints, alone.ints)
            assert torch.equal(part.scales, alone.scales)
            assert torch.equal(part.zeros, alone.zeros)
            torch.testing.assert_close(part.error, alone.error)


class TestGrid:
    def test_symmetric(self) -> None:
        scale, zero = choose_grid(torch.tensor([[-3.0, 1.5], [0.5, 0.25]]), QuantSpec())
        assert scale.tolist() == pytest.approx([0.4, 1 / 15], rel=1e-3)
        assert scale.dtype == torch.float16
        assert zero.tolist() == [8, 8]
        assert choose_grid(torch.ones(1, 2), QuantSpec(bits=8))[1].tolist() == [128]

    def test_asymmetric_range_includes_zero(self) -> None:
        spec = QuantSpec(sym=False)
        scale, zero = choose_grid(torch.tensor([[-1.0, 2.0], [1.0, 3.0], [-3.0, -1.0]]), spec)
        assert scale.tolist() == pytest.approx([0.2, 0.2, 0.2], rel=1e-3)
        assert zero.tolist() == [5, 0, 15]

    @pytest.mark.parametrize("sym", [False, True])
    def test_a_group_of_zeros_is_exact(self, sym: bool) -> None:
        weight = torch.zeros(2, 8, dtype=torch.float64)
        made = gptq(weight, torch.eye(8).double(), QuantSpec(group_size=4, sym=sym))
        assert torch.equal(made.dequantised(), torch.zeros(2, 8))

    def test_errors_are_measured_with_the_scale_as_stored(self) -> None:
        """1/3 is no float16: the updates and the error know the rounded scale."""
        weight = torch.tensor([[2.5, 1.0, -0.7, 0.1]], dtype=torch.float64)
        hessian = layer(1, 4, seed=7)[1]
        made = gptq(weight, hessian, QuantSpec(group_size=4))
        assert made.scales.dtype == torch.float16
        expected = output_error(weight, made.dequantised(), hessian)
        assert torch.equal(made.error, expected)

    def test_tiny_weights_keep_a_normal_scale(self) -> None:
        weight = torch.full((1, 4), 1e-9, dtype=torch.float64)
        made = round_to_nearest(weight, torch.eye(4).double(), QuantSpec(group_size=4))
        assert float(made.scales) == torch.finfo(torch.float16).smallest_normal
        assert torch.equal(made.dequantised(), torch.zeros(1, 4))

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e6])
    def test_weights_that_no_scale_holds_are_refused(self, bad: float) -> None:
        weight, hessian = layer(2, 8, seed=8)
        weight[1, 3] = bad
        with pytest.raises(CheckpointError, match="not finite, or too large"):
            gptq(weight, hessian, QuantSpec(group_size=4))


def test_the_same_input_gives_the_same_integers() -> None:
    weight, hessian = layer(16, 64, seed=15, dtype=torch.float32)
    before = weight.clone(), hessian.clone()
    spec = QuantSpec(group_size=16, desc_act=True)
    one, two = gptq(weight, hessian, spec), gptq(weight, hessian, spec)
    assert torch.equal(one.ints, two.ints)
    assert torch.equal(one.error, two.error)
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 3}, "bits must be 4 or 8, got 3"),
        ({"group_size": 0}, "group_size must be −1 or at least 1, got 0"),
        ({"damp": 0.0}, r"damp must be in \(0, 1\), got 0.0"),
        ({"damp": 1.0}, r"damp must be in \(0, 1\), got 1.0"),
        ({"block_size": 0}, "block_size must be at least 1, got 0"),
    ],
)
def test_a_spec_outside_its_range_is_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QuantSpec(**changes)  # type: ignore[arg-type]
