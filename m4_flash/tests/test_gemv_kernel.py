"""Products of few rows in Triton's interpreter; ``test_gpu_gemv.py`` runs them compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.model.ops import TorchOps

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="kernels are compiled here: test_gpu_gemv.py"
)

CPU = torch.device("cpu")
# (outputs, inputs): powers of two, ragged on both sides, several chunks, the last one ragged.
SHAPES = [(16, 64), (23, 48), (9, 2048), (12, 1100)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 16])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_equals_the_plain_product(rows: int, outputs: int, inputs: int, with_bias: bool) -> None:
    from m4_flash.kernels.gemv import gemv

    x, weight = random(rows, inputs), random(outputs, inputs, seed=1)
    bias = random(outputs, seed=2) if with_bias else None
    torch.testing.assert_close(
        gemv(x, weight, bias), F.linear(x, weight, bias), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("rows", [1, 4, 7])
@pytest.mark.parametrize(("outputs", "inputs"), [(16, 64), (22, 48), (10, 1100)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_gated_equals_the_reference(rows: int, outputs: int, inputs: int, with_bias: bool) -> None:
    from m4_flash.kernels.gemv import gemv

    x, weight = random(rows, inputs), random(outputs, inputs, seed=1)
    bias = random(outputs, seed=2) if with_bias else None
    gate, up = F.linear(x, weight, bias).chunk(2, dim=-1)
    ours = gemv(x, weight, bias, gated=True)
    torch.testing.assert_close(ours, F.silu(gate) * up, rtol=1e-4, atol=1e-4)


def test_rows_of_a_wider_tensor() -> None:
    """x may be a view with a stride; nothing behind its columns is read."""
    from m4_flash.kernels.gemv import gemv

    wide = torch.full((3, 80), float("nan"))
    wide[:, :48] = random(3, 48)
    weight = random(20, 48, seed=1)
    ours = gemv(wide[:, :48], weight, None)
    torch.testing.assert_close(ours, F.linear(wide[:, :48], weight), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [0, 17])
def test_other_numbers_of_rows_are_not_its_business(rows: int) -> None:
    from m4_flash.kernels.gemv import gemv

    with pytest.raises(AssertionError):
        gemv(random(rows, 48), random(20, 48), None)


class TestLayer:
    def layer(self, *, split: bool = False, bias: bool = True) -> object:
        from m4_flash.gemv_linear import gemv_factory

        made = gemv_factory(torch.float32, CPU, pdl=True)("x", 48, (8, 16), bias, split)
        for shard, size in enumerate((8, 16)):
            made.load_shard("weight", shard, random(size, 48, seed=shard))
            if bias:
                made.load_shard("bias", shard, random(size, seed=shard + 5))
        return made

    @pytest.mark.parametrize("lead", [(1,), (3,), (2, 8), (17,), (0,), ()])
    def test_any_leading_shape(self, lead: tuple[int, ...]) -> None:
        layer, x = self.layer(), random(*lead, 48)
        expected = F.linear(x, layer.weight, layer.bias)  # type: ignore[attr-defined]
        ours = layer(x)  # type: ignore[operator]
        assert ours.shape == expected.shape
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)

    def test_split(self) -> None:
        layer, x = self.layer(split=True), random(2, 48)
        q, k = layer(x)  # type: ignore[operator]
        whole = F.linear(x, layer.weight, layer.bias)  # type: ignore[attr-defined]
        torch.testing.assert_close(torch.cat((q, k), -1), whole, rtol=1e-4, atol=1e-4)

    def test_it_is_used_up_to_four_rows(self) -> None:
        layer = self.layer()
        fits = {rows: layer.suits(random(rows, 48)) for rows in (0, 1, 4, 5)}  # type: ignore[attr-defined]
        assert fits == {0: False, 1: True, 4: True, 5: False}

    def test_no_programmatic_launch_without_hopper(self) -> None:
        assert self.layer().pdl is False  # type: ignore[attr-defined]


@pytest.mark.parametrize("lead", [(1,), (2, 2), (20,)])
def test_swiglu_takes_the_gated_product_for_few_rows(
    lead: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from m4_flash import gemv_linear
    from m4_flash.kernels.gemv import gemv
    from m4_flash.ops import TritonOps

    real, seen = gemv, list[bool]()

    def spy(*args: Any, **options: Any) -> Tensor:
        seen.append(options["gated"])
        return real(*args, **options)

    monkeypatch.setattr(gemv_linear, "gemv", spy)
    layer = gemv_linear.gemv_factory(torch.float32, CPU, pdl=False)("x", 48, (20, 20), False, True)
    for shard in range(2):
        layer.load_shard("weight", shard, random(20, 48, seed=shard))
    x = random(*lead, 48)
    ours, theirs = TritonOps().mlp_gate_up(layer, x), TorchOps().mlp_gate_up(layer, x)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (True in seen) == (lead != (20,))
