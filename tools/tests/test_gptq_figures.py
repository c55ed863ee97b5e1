from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch

from common.devices import DEVICES
from common.model_costs import gptq_linear_bytes, gptq_model_bytes, parameter_counts, weight_bytes
from common.qwen3 import CONSTANTS, QWEN3_0_6B
from m7_gptq.quantizer import QuantSpec, gptq
from tools.docs_build.results import Results
from tools.figures import registry
from tools.figures.gptq import (
    CORRELATION,
    WEIGHTS,
    Rounded,
    compensated,
    components,
    linear_seconds,
    nearest,
    step_seconds,
)

DENSE = 2 * parameter_counts(QWEN3_0_6B).linear
PACKED = gptq_linear_bytes(QWEN3_0_6B)


def drawn(name: str) -> str:
    root = Path()
    return registry.draw(name, registry.FigureInput(root, Results(root), {}, {}), "p")


@pytest.mark.parametrize("name", ["m7-two-weights", "m7-loop", "m7-bytes", "m7-gain"])
def test_figures_draw(name: str) -> None:
    assert drawn(name).startswith("<svg ")


def test_the_move_is_the_best_for_the_first_weights_error() -> None:
    """Nothing else that the second weight could be has a smaller error."""
    made = compensated()
    best = Rounded(made.first, made.target, made.target).error
    others = [Rounded(made.first, 0.0, made.target + step / 100).error for step in range(-50, 51)]
    assert min(others) == pytest.approx(best)


def test_two_weights_end_where_the_quantiser_puts_them() -> None:
    """The integers of ``gptq`` on a grid of whole steps: a third weight of 7.5 sets the scale."""
    hessian = torch.tensor(
        [[1.0, CORRELATION, 0.0], [CORRELATION, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64
    )
    weight = torch.tensor([[*WEIGHTS, 7.5]], dtype=torch.float64)
    made = gptq(weight, hessian, QuantSpec(group_size=-1, damp=1e-9))
    assert made.dequantised()[0, :2].tolist() == [compensated().first, compensated().second]


def test_no_grid_point_is_better() -> None:
    errors = [Rounded(a, 0.0, b).error for a, b in product(range(1, 5), range(1, 6))]
    assert min(errors) == compensated().error < nearest().error


def test_the_components_are_the_model() -> None:
    parts = components(QWEN3_0_6B, 128)
    assert sum(dense for _, dense, _ in parts) == weight_bytes(QWEN3_0_6B)
    assert sum(packed for _, _, packed in parts) == pytest.approx(gptq_model_bytes(QWEN3_0_6B))
    assert f">{gptq_model_bytes(QWEN3_0_6B) / 1e6:,.0f} MB<" in drawn("m7-bytes")


@pytest.mark.parametrize("key", ["h100", "a100"])
def test_the_gain_is_full_for_few_tokens_and_gone_at_the_ridge(key: str) -> None:
    device = DEVICES[key]

    def gain(tokens: int) -> float:
        times = [linear_seconds(QWEN3_0_6B, device, tokens, size) for size in (DENSE, PACKED)]
        return times[0] / times[1]

    full = CONSTANTS["gptq_linear_speedup"].value
    last = CONSTANTS[f"gptq_full_gain_tokens_{key}"].value
    assert gain(1) == pytest.approx(full)
    assert gain(int(last)) == pytest.approx(full)
    assert gain(int(last) + 2) < full
    assert gain(int(device.ridge) + 1) == 1


def test_a_whole_step_gains_less() -> None:
    device = DEVICES["h100"]
    dense, packed = (step_seconds(QWEN3_0_6B, device, 1, size) for size in (DENSE, PACKED))
    whole = CONSTANTS["gptq_step_speedup"].value
    assert dense / packed == pytest.approx(whole, rel=1e-3)  # the norms are left out
