"""Layers over the fused kernels, in Triton's interpreter, against the reference layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common.model.transformer import Transformer
from m0_init.loader import load
from m7_gptq.fused_linear import FusedGPTQLinear
from m7_gptq.linear import GPTQLinear, gptq_linear
from m7_gptq.tests.kernel_cases import packed_bytes
from m7_gptq.tests.samples import FIXTURES, PUBLISHED


def model_of(folder: Path, layer: type[GPTQLinear]) -> Transformer:
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
