"""Layers over the fused kernels, in Triton's interpreter, against the reference layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.model.ops import TorchOps
from common.model.transformer import Transformer
from m0_init.loader import load
from m4_flash.ops import TritonOps
from m7_gptq import engine, fused_linear
from m7_gptq.fused_linear import FusedGPTQLinear
from m7_gptq.kernels import matmul
from m7_gptq.kernels.matmul import w4a16_matmul
from m7_gptq.linear import GPTQLinear, gptq_linear
from m7_gptq.tests.kernel_cases import packed_bytes
from m7_gptq.tests.samples import FIXTURES, PUBLISHED


def model_of(folder: Path, layer: Callable[..., GPTQLinear]) -> Transformer:
    return load(folder, dtype="float32", device="cpu", linear=gptq_linear(folder, layer)).model


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("path", ["layers.0.attn.qkv", "layers.1.mlp.down"])
def test_a_fused_layer_equals_the_reference(name: str, path: str) -> None:
    """Files of others; a merged layer that splits its output, and a single one."""
    folder = FIXTURES / name
    fused, reference = (
        model_of(folder, kind).get_submodule(path) for kind in (FusedGPTQLinear, GPTQLinear)
    )
    assert isinstance(reference, GPTQLinear)
    x = torch.randn(2, reference.in_features, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fused(x), reference(x), rtol=1e-4, atol=1e-4)


def test_the_stored_form_is_let_go_and_the_packed_one_is_counted() -> None:
    model = model_of(FIXTURES / PUBLISHED[0], FusedGPTQLinear)
    layer = model.get_submodule("layers.0.mlp.down")
    assert isinstance(layer, FusedGPTQLinear)
    names = {name for name, _ in layer.named_parameters()}
    assert names == {"held.0", "held.1", "held.2"}
    held = sum(parameter.nbytes for parameter in layer.parameters())
    assert held == layer.packed[0].nbytes == packed_bytes(layer.in_features, 64, group_size=16)


def test_parts_with_groups_of_their_own_run_side_by_side() -> None:
    """Act-order that was found for each part apart: no single product can serve them."""
    layers = [
        model_of(FIXTURES / PUBLISHED[0], kind).get_submodule("layers.0.attn.qkv")
        for kind in (GPTQLinear, FusedGPTQLinear)
    ]
    reference = layers[0]
    assert isinstance(reference, GPTQLinear)
    form = reference.format
    made = []
    for kind in (GPTQLinear, FusedGPTQLinear):
        layer = kind(
            "qkv", reference.in_features, reference.out_sizes, True, form,
            bias=True, dtype=torch.float32, device="cpu",
        )  # fmt: skip
        ends = torch.tensor(reference.out_sizes).cumsum(0).tolist()
        count = 32 // form.bits
        for shard, (first, last) in enumerate(zip([0, *ends], ends, strict=False)):
            order = torch.randperm(
                reference.in_features, generator=torch.Generator().manual_seed(shard)
            )
            layer.load_shard("qweight", shard, reference.qweight[:, first:last])
            words = reference.qzeros[:, first // count : last // count]
            layer.load_shard("qzeros", shard, words)
            layer.load_shard("scales", shard, reference.scales[:, first:last])
            layer.load_shard("g_idx", shard, reference.g_idx[0][order])
            layer.load_shard("bias", shard, torch.full((last - first,), float(shard)))
        made.append(layer)
    x = torch.randn(3, reference.in_features, generator=torch.Generator().manual_seed(1))
    assert not made[1].merged
    for ours, theirs in zip(made[1](x), made[0](x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


class TestGated:
    """Gate, up and SwiGLU in one launch, where the rows are few."""

    def layer(self, name: str = PUBLISHED[0], path: str = "layers.0.mlp.gate_up") -> Any:
        return model_of(FIXTURES / name, FusedGPTQLinear).get_submodule(path)

    @pytest.mark.parametrize("name", PUBLISHED)
    @pytest.mark.parametrize("lead", [(), (1,), (2, 1), (3,), (0,)], ids=str)
    def test_equals_two_steps(
        self, name: str, lead: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        layer, seen, real = self.layer(name), list[bool](), w4a16_matmul
        assert layer.merged

        def spy(*args: Any, **options: Any) -> Tensor:
            seen.append(options.get("gated", False))
            return real(*args, **options)

        monkeypatch.setattr(fused_linear, "w4a16_matmul", spy)
        monkeypatch.setitem(matmul.CROSSOVER, layer.format.bits, matmul.Crossover(1, 2, 4))
        x = torch.randn(*lead, layer.in_features, generator=torch.Generator().manual_seed(2))
        ours, theirs = TritonOps().mlp_gate_up(layer, x), TorchOps().mlp_gate_up(layer, x)
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert seen == [lead not in ((3,), (0,)), False]

    def test_not_with_groups_of_their_own(self) -> None:
        layer = self.layer()
        assert layer.suits(torch.zeros(1, layer.in_features))
        layer.merged = False
        assert not layer.suits(torch.zeros(1, layer.in_features))

    def test_not_a_layer_of_three_parts(self) -> None:
        layer = self.layer(path="layers.0.attn.qkv")
        assert not layer.suits(torch.zeros(1, layer.in_features))


@pytest.mark.parametrize("pdl", [True, False])
@pytest.mark.parametrize("supported", [True, False])
def test_layers_launch_early_where_the_device_can(
    pdl: bool, supported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "has_triton", lambda _: True)
    monkeypatch.setattr(engine, "supports_pdl", lambda _: supported)
    made, seen = engine.layer_for(torch.device("cpu"), pdl=pdl), []

    def product(x: Tensor, *_args: Any, pdl: bool) -> Tensor:
        seen.append(pdl)
        return x

    model = model_of(FIXTURES / PUBLISHED[0], made)
    monkeypatch.setattr(fused_linear, "w4a16_matmul", product)
    layer = model.get_submodule("layers.0.mlp.down")
    assert isinstance(layer, FusedGPTQLinear)
    layer(torch.zeros(1, layer.in_features))
    assert seen == [pdl and supported]
