"""GPTQLinear: merged or side by side, in chunks, with a bias; the same outputs everywhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.errors import CheckpointError
from common.model.linear import DenseLinear
from common.testing.fixtures import TinyModel
from m0_init.loader import load
from m7_gptq import linear as linear_module
from m7_gptq.checkpoint import LinearFormat
from m7_gptq.linear import GPTQLinear, SideBySide, gptq_linear
from m7_gptq.packing import FORMATS, Format, pack_rows, pack_zeros
from m7_gptq.tests.samples import (
    FIXTURES,
    Tensors,
    copy_of,
    dequantise,
    quantised_names,
    tensors_of,
)

IN, SIZES = 32, (16, 8, 8)
Parts = list[dict[str, Tensor]]


def stored(bits: int, group: int, form: Format, g_idx: str, bias: bool = False) -> Parts:
    """Random tensors of three parts; ``g_idx`` is plain, shared, own (per part) or absent."""
    generator = torch.Generator().manual_seed(bits + group)
    groups = -(-IN // group)
    plain = torch.arange(IN, dtype=torch.int32) // group
    shared = plain[torch.randperm(IN, generator=generator)]
    parts = []
    for size in SIZES:
        ints = torch.randint(0, 2**bits, (IN, size), generator=generator)
        zeros = torch.randint(0, 2**bits, (groups, size), generator=generator)
        part = {
            "qweight": pack_rows(ints, bits),
            "qzeros": pack_zeros(zeros, bits, form),
            "scales": ((torch.rand(groups, size, generator=generator) + 0.1) / 2**bits).half(),
        }
        own = plain[torch.randperm(IN, generator=generator)]
        if g_idx != "absent":
            part["g_idx"] = {"plain": plain, "shared": shared, "own": own}[g_idx]
        if bias:
            part["bias"] = torch.randn(size, generator=generator).half()
        parts.append(part)
    return parts


def expected(parts: Parts, x: Tensor, bits: int, group: int, form: Format) -> list[Tensor]:
    """Each part's product with the independent dequantiser's weight."""
    outputs = []
    for part in parts:
        plain = {"g_idx": torch.arange(IN, dtype=torch.int32) // group}
        tensors = {f"x.{name}": tensor for name, tensor in (plain | part).items()}
        weight = torch.from_numpy(dequantise(tensors, "x", int(form == "gptq"), bits))
        bias = part.get("bias", torch.zeros(1)).to(x.dtype)
        outputs.append(x @ weight.T.to(x.dtype) + bias)
    return outputs


def module(parts: Parts, bits: int, group: int, form: Format, split: bool = True) -> GPTQLinear:
    """A loaded layer of three parts."""
    made = LinearFormat(bits, group, form, torch.float16, "g_idx" in parts[0], "bias" in parts[0])
    linear = GPTQLinear(
        "layers.0.attn.qkv", IN, SIZES, split, made,
        bias=made.has_bias, dtype=torch.float32, device="cpu",
    )  # fmt: skip
    for shard, part in enumerate(parts):
        for name, tensor in part.items():
            linear.load_shard(name, shard, tensor)
    return linear


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, IN, generator=torch.Generator().manual_seed(1))


class TestForward:
    @pytest.mark.parametrize("form", FORMATS)
    @pytest.mark.parametrize("bits", [4, 8])
    @pytest.mark.parametrize("group", [8, 12, 32])
    @pytest.mark.parametrize("g_idx", ["plain", "shared", "own", "absent"])
    def test_equals_the_product_with_the_dequantised_weight(
        self, form: Format, bits: int, group: int, g_idx: str
    ) -> None:
        parts, x = stored(bits, group, form, g_idx), inputs(5)
        linear = module(parts, bits, group, form)
        # groups of 32 of 32 channels: every permutation is the same one
        assert linear.merged == (g_idx != "own" or group == 32)
        for ours, theirs in zip(linear(x), expected(parts, x, bits, group, form), strict=True):
            torch.testing.assert_close(ours, theirs)

    @pytest.mark.parametrize("leading", [(), (3,), (2, 3), (0,)])
    def test_any_leading_shape(self, leading: tuple[int, ...]) -> None:
        parts, x = stored(4, 8, "gptq", "own"), inputs(*leading)
        outputs = module(parts, 4, 8, "gptq")(x)
        assert [tuple(each.shape) for each in outputs] == [(*leading, size) for size in SIZES]

    def test_without_splitting_it_is_one_tensor(self) -> None:
        parts, x = stored(4, 8, "gptq", "shared", bias=True), inputs(3)
        whole = module(parts, 4, 8, "gptq", split=False)(x)
        assert torch.equal(whole, torch.cat(module(parts, 4, 8, "gptq")(x), dim=-1))
        torch.testing.assert_close(whole, torch.cat(expected(parts, x, 4, 8, "gptq"), dim=-1))

    @pytest.mark.parametrize("g_idx", ["shared", "own"])
    def test_chunks_change_nothing_and_never_cross_parts(
        self, g_idx: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        parts, x = stored(4, 8, "gptq", g_idx), inputs(3)
        linear = module(parts, 4, 8, "gptq", split=False)
        whole = linear(x)
        monkeypatch.setattr(linear_module, "CHUNK", 8)
        assert linear.chunks() == [(0, 8), (8, 16), (16, 24), (24, 32)]
        torch.testing.assert_close(linear(x), whole)
        monkeypatch.setattr(linear_module, "CHUNK", 24)
        separate = [(0, 16), (16, 24), (24, 32)]
        assert linear.chunks() == ([(0, 24), (24, 32)] if linear.merged else separate)

    def test_nothing_dequantised_is_kept(self) -> None:
        linear = module(stored(4, 8, "gptq", "shared"), 4, 8, "gptq")
        before = {name: tensor.nbytes for name, tensor in linear.state_dict().items()}
        linear(inputs(3))
        assert {name: tensor.nbytes for name, tensor in linear.state_dict().items()} == before
        columns = sum(SIZES)
        assert before["qweight"] == IN * columns // 2
        assert before["qzeros"] == 4 * columns // 2
        assert before["scales"] == 4 * columns * 2


class TestLoading:
    def empty(self) -> GPTQLinear:
        form = LinearFormat(4, 8, "gptq", torch.float16, True, False)
        return GPTQLinear(
            "layers.0.attn.qkv", IN, SIZES, True, form,
            bias=False, dtype=torch.float32, device="cpu",
        )  # fmt: skip

    def test_expected_shards(self) -> None:
        names = ("qweight", "qzeros", "scales", "g_idx")
        linear = self.empty()
        assert linear.expected_shards() == {(name, part) for name in names for part in range(3)}
        form = replace(linear.format, has_g_idx=False)
        biased = GPTQLinear(
            "x", IN, (8,), False, form, bias=True, dtype=torch.float32, device="cpu"
        )
        assert biased.expected_shards() == {
            ("qweight", 0), ("qzeros", 0), ("scales", 0), ("bias", 0),
        }  # fmt: skip

    @pytest.mark.parametrize(("name", "shard"), [("weight", 0), ("qweight", 3), ("bias", 0)])
    def test_unknown_tensors_are_refused(self, name: str, shard: int) -> None:
        with pytest.raises(CheckpointError, match=f"has no tensor '{name}'"):
            self.empty().load_shard(name, shard, torch.zeros(1))

    def test_packed_words_are_never_converted(self) -> None:
        words = torch.zeros(4, 16, dtype=torch.int64)
        with pytest.raises(CheckpointError, match=r"torch\.int64 \(4, 16\)"):
            self.empty().load_shard("qweight", 0, words)
        with pytest.raises(CheckpointError, match=r"expected torch\.int32 \(4, 16\)"):
            self.empty().load_shard("qweight", 0, torch.zeros(16, 4, dtype=torch.int32))

    def test_float_tensors_of_a_wrong_shape_are_refused(self) -> None:
        with pytest.raises(CheckpointError, match="scales has shape"):
            self.empty().load_shard("scales", 0, torch.zeros(1, 16))


class TestFactory:
    NAME = "qwen3-g16-sym-v1"

    def test_layers_with_equal_g_idx_are_merged(self) -> None:
        folder = FIXTURES / self.NAME
        model = load(folder, device="cpu", linear=gptq_linear(folder)).model
        for path in ("attn.qkv", "attn.o", "mlp.gate_up", "mlp.down"):
            layer = model.get_submodule(f"layers.0.{path}")
            assert isinstance(layer, GPTQLinear)
            assert layer.merged
        assert isinstance(model.lm_head, DenseLinear)

    def test_layers_with_different_g_idx_run_side_by_side(self, tmp_path: Path) -> None:
        def permute_k(tensors: Tensors) -> None:
            name = "model.layers.0.self_attn.k_proj.g_idx"
            tensors[name] = tensors[name].flip(0)

        folder = copy_of(self.NAME, tmp_path / "k", permute_k)
        model = load(folder, device="cpu", linear=gptq_linear(folder)).model
        first, second = (model.get_submodule(f"layers.{i}.attn.qkv") for i in (0, 1))
        assert isinstance(first, GPTQLinear)
        assert not first.merged
        assert isinstance(second, GPTQLinear)
        assert second.merged

    def test_parts_stored_differently_are_modules_of_their_own(self, tmp_path: Path) -> None:
        """v in 8 bits, and one layer's gate in 8 bits: the outputs are those of each part."""

        def eight_bits(tensors: Tensors) -> None:
            for name in quantised_names(tensors):
                if name.endswith(("v_proj", "gate_proj")):
                    size = tensors[f"{name}.scales"].shape[1]
                    ints = torch.arange(64 * size).view(64, size) % 256
                    tensors[f"{name}.qweight"] = pack_rows(ints, 8)
                    zeros = torch.full((4, size), 100)
                    tensors[f"{name}.qzeros"] = pack_zeros(zeros, 8, "gptq")

        rule = {r"+:.*\.(v|gate)_proj": {"bits": 8}}
        folder = copy_of(self.NAME, tmp_path / "v", eight_bits, {"dynamic": rule})
        model = load(folder, dtype="float32", device="cpu", linear=gptq_linear(folder)).model
        tensors, x = tensors_of(folder), torch.randn(3, 64)
        for path, names in (
            ("attn.qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("mlp.gate_up", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            layer = model.get_submodule(f"layers.0.{path}")
            assert isinstance(layer, SideBySide)
            for ours, name in zip(layer(x), names, strict=True):
                bits = 8 if name.endswith(("v_proj", "gate_proj")) else 4
                weight = dequantise(tensors, f"model.layers.0.{name}", 1, bits)
                torch.testing.assert_close(ours, x @ torch.from_numpy(weight).T)

    def test_side_by_side_hands_tensors_to_its_parts(self) -> None:
        parts = [
            DenseLinear(f"x.{i}", 2, (size,), False, False, dtype=torch.float32, device="cpu")
            for i, size in enumerate((1, 3))
        ]
        joined = SideBySide(list(parts), split=False)
        assert joined.expected_shards() == {("weight", 0), ("weight", 1)}
        joined.load_shard("weight", 0, torch.tensor([[1.0, 0.0]]))
        joined.load_shard("weight", 1, torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 0.0]]))
        assert joined(torch.tensor([[5.0, 7.0]])).tolist() == [[5, 7, 12, 10]]
        with pytest.raises(CheckpointError, match="no shard 2"):
            joined.load_shard("weight", 2, torch.zeros(1, 2))

    def test_a_dense_model_gets_dense_layers(self, tiny: TinyModel) -> None:
        linear = gptq_linear(tiny.folder)
        model = load(tiny.folder, dtype="float32", device="cpu", linear=linear).model
        assert isinstance(model.get_submodule("layers.0.attn.qkv"), DenseLinear)
        plain = load(tiny.folder, dtype="float32", device="cpu").model
        for (name, ours), theirs in zip(
            model.state_dict().items(), plain.state_dict().values(), strict=True
        ):
            assert torch.equal(ours, theirs), name

    def test_another_layer_can_be_handed_in(self) -> None:
        """Where kernels come in: the factory's arguments reach their class."""
        seen: list[str] = []

        class Counting(GPTQLinear):
            def loaded(self) -> None:
                super().loaded()
                seen.append(self.prefix)

        folder = FIXTURES / self.NAME
        model = load(folder, device="cpu", linear=gptq_linear(folder, Counting)).model
        assert len(seen) == 8  # 2 layers of 4, each told once that its tensors are there
        assert isinstance(model.get_submodule("layers.1.mlp.down"), Counting)
