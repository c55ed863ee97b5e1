"""H, its inverse factor, damping, dead columns."""

from __future__ import annotations

import pytest
import torch

from common.errors import CheckpointError
from m7_gptq.hessian import Hessian, inverse_factor, output_error
from m7_gptq.quantizer import QuantSpec, gptq, round_to_nearest
from m7_gptq.tests.layers import layer


class TestHessian:
    def test_mean_of_outer_products_over_batches(self) -> None:
        x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        seen = Hessian(3)
        seen.add(x[:2].view(1, 2, 3))
        seen.add(x[2:])
        assert seen.num_tokens == 7
        torch.testing.assert_close(seen.matrix(), x.T @ x / 7)

    def test_low_precision_inputs_are_multiplied_in_float32(self) -> None:
        x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
        seen = Hessian(4)
        seen.add(x)
        torch.testing.assert_close(
            seen.matrix(), x.double().T @ x.double() / 64, rtol=1e-5, atol=1e-6
        )

    def test_the_factor_gives_the_inverse(self) -> None:
        hessian = layer(1, 12, seed=9)[1]
        upper = inverse_factor(hessian, 0.05)
        assert torch.equal(upper, upper.triu())
        damped = hessian + 0.05 * hessian.diagonal().mean() * torch.eye(12)
        torch.testing.assert_close(upper.T @ upper @ damped, torch.eye(12).double())

    def test_damping_makes_a_singular_matrix_usable(self) -> None:
        weight, hessian = layer(4, 32, seed=10, tokens=3)  # rank 3 of 32
        made = gptq(weight, hessian, QuantSpec(group_size=8))
        nearest = round_to_nearest(weight, hessian, QuantSpec(group_size=8))
        assert float(made.error.sum()) < float(nearest.error.sum())

    def test_damping_costs_accuracy_on_the_calibration_inputs(self) -> None:
        """The more damping, the less one column can make up for another."""
        weight, hessian = layer(4, 32, seed=11)
        errors = [
            float(gptq(weight, hessian, QuantSpec(group_size=8, damp=damp)).error.sum())
            for damp in (0.001, 0.9)
        ]
        assert errors[0] < errors[1]

    def test_dead_columns_are_rounded_and_touch_nothing(self) -> None:
        weight, hessian = layer(4, 16, seed=12)
        dead = [3, 9]
        hessian[dead] = 0
        hessian[:, dead] = 0
        spec = QuantSpec(group_size=-1)
        made = gptq(weight, hessian, spec)
        nearest = round_to_nearest(weight, hessian, spec)
        assert torch.equal(made.ints[:, dead], nearest.ints[:, dead])
        alive = [column for column in range(16) if column not in dead]
        alone = gptq(weight[:, alive], hessian[alive][:, alive], spec)
        assert torch.equal(alone.scales, made.scales)  # no largest weight is in a dead column
        assert torch.equal(alone.ints, made.ints[:, alive])

    def test_no_activation_at_all(self) -> None:
        weight, _ = layer(4, 16, seed=13)
        nothing = torch.zeros(16, 16, dtype=torch.float64)
        spec = QuantSpec(group_size=8)
        made = gptq(weight, nothing, spec)
        assert torch.equal(made.ints, round_to_nearest(weight, nothing, spec).ints)
        assert float(made.error.sum()) == 0

    def test_activations_that_are_not_finite_are_refused(self) -> None:
        weight, hessian = layer(2, 8, seed=14)
        hessian[0, 0] = float("inf")
        with pytest.raises(CheckpointError, match="activations"):
            gptq(weight, hessian, QuantSpec(group_size=4))

    def test_output_error_is_the_mean_squared_difference_of_outputs(self) -> None:
        generator = torch.Generator().manual_seed(0)
        x, w, other = (torch.randn(9, 5, generator=generator).double() for _ in range(3))
        seen = Hessian(5)
        seen.add(x)
        expected = ((x @ w.T - x @ other.T) ** 2).mean(dim=0)
        torch.testing.assert_close(output_error(w, other, seen.matrix()), expected)

    def test_the_error_is_what_the_loop_added_up(self) -> None:
        """Paper, eq. 2: every step costs (w − ŵ)² / [H⁻¹]_jj; with damping, of the damped H."""
        weight, hessian = layer(3, 16, seed=16)
        made = gptq(weight, hessian, QuantSpec(group_size=-1, damp=0.05))
        damped = hessian + 0.05 * hessian.diagonal().mean() * torch.eye(16)
        upper = inverse_factor(hessian, 0.05)
        w, total = weight.clone(), torch.zeros(3, dtype=torch.float64)
        approximation = made.dequantised().double()
        for j in range(16):
            step = (w[:, j] - approximation[:, j]) / upper[j, j]
            total += step**2
            w[:, j:] -= step[:, None] * upper[j, j:]
        torch.testing.assert_close(output_error(weight, approximation, damped), total)
