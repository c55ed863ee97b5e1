"""What others publish loads exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from m0_init.loader import load
from m7_gptq.linear import GPTQLinear, SideBySide, gptq_linear
from m7_gptq.packing import unpack_zeros
from m7_gptq.tests.samples import (
    FIXTURES,
    PUBLISHED,
    Tensors,
    copy_of,
    dequantise,
    edit_config,
    loaded,
    logits,
    our_weight,
    quantised_names,
    reference,
    repacked,
    tensors_of,
)

QWEN = "qwen3-g16-sym-v1"
DOWN = "model.layers.0.mlp.down_proj"


class TestPublishedCheckpoints:
    @pytest.mark.parametrize("name", PUBLISHED)
    def test_dequantised_weights_equal_an_independent_reading(self, name: str) -> None:
        tensors, model = tensors_of(FIXTURES / name), loaded(FIXTURES / name)
        layers = quantised_names(tensors)
        assert len(layers) == 14
        for layer in layers:
            expected = torch.from_numpy(dequantise(tensors, layer, int(name.endswith("v1"))))
            assert torch.equal(our_weight(model, layer), expected), layer

    @pytest.mark.parametrize("name", PUBLISHED)
    def test_logits_equal_transformers(self, name: str) -> None:
        ids, expected = reference(name)
        assert (logits(loaded(FIXTURES / name), ids) - expected).abs().max() < 1e-4

    def test_both_formats_of_one_model_are_the_same_model(self) -> None:
        ids, _ = reference(QWEN)
        one, two = (loaded(FIXTURES / f"qwen3-g16-sym-{form}") for form in ("v1", "v2"))
        assert torch.equal(logits(one, ids), logits(two, ids))

    def test_reading_v1_as_v2_would_be_noticed(self, tmp_path: Path) -> None:
        wrong = {"format": "gptq_v2", "checkpoint_format": "gptq_v2"}
        folder = copy_of(QWEN, tmp_path / "wrong", config=wrong)
        ids, expected = reference(QWEN)
        assert (logits(loaded(folder), ids) - expected).abs().max() > 0.1

    @pytest.mark.parametrize(
        "quantizer, second", [(["gptqmodel:7.6.0"], 5), ("gptqmodel:7.6.0", 5),
                              (["autogptq:0.7.1"], 4), (None, 4)],
    )  # fmt: skip
    def test_who_wrote_a_v1_file_decides_about_borrows(
        self, tmp_path: Path, quantizer: Any, second: int
    ) -> None:
        """Zero points 0 and 5, minus 1 by whole words: 15 and 3 in the file."""

        def change(tensors: Tensors) -> None:
            word = tensors[f"{DOWN}.qzeros"]
            word[0, 0] = 0x7777_773F

        meta = {"quantizer": quantizer} if quantizer else None
        folder = copy_of("llama-asym-v1", tmp_path / "model", change, {"meta": meta})
        layer = loaded(folder).get_submodule("layers.0.mlp.down")
        assert isinstance(layer, GPTQLinear)
        zeros = unpack_zeros(layer.qzeros[:1, :1], 4, "gptq_v2")
        assert zeros.tolist() == [[0, second, 8, 8, 8, 8, 8, 8]]

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_lower_precision_runs(self, dtype: str) -> None:
        folder = FIXTURES / QWEN
        model = load(folder, dtype=dtype, device="cpu", linear=gptq_linear(folder)).model
        ids, expected = reference(QWEN)
        difference = (logits(model, ids).float() - expected).abs().max()
        assert 0 < difference < 0.03 * expected.abs().max()

    def test_weight_bytes_count_the_packed_tensors(self) -> None:
        model = loaded(FIXTURES / QWEN)
        tensors = tensors_of(FIXTURES / QWEN)
        packed = sum(
            tensors[f"{name}.{leaf}"].nbytes
            for name in quantised_names(tensors)
            for leaf in ("qweight", "qzeros", "scales", "g_idx")
        )
        dense = sum(
            2 * tensor.nbytes  # stored in bfloat16, held in float32
            for name, tensor in tensors.items()
            if name.endswith(".weight")
        )
        assert model.weight_bytes() == packed + dense


class TestWhatTheWorldWrites:
    """Each variant must give the reference logits, or those of its dequantised weights."""

    def same(self, folder: Path, name: str = QWEN) -> None:
        ids, expected = reference(name)
        assert (logits(loaded(folder), ids) - expected).abs().max() < 1e-4

    def test_no_format_key_is_v1(self, tmp_path: Path) -> None:
        none = {"format": None, "checkpoint_format": None, "method": None, "quant_method": None}
        self.same(copy_of(QWEN, tmp_path / "old", config=none))

    def test_one_of_the_two_format_keys(self, tmp_path: Path) -> None:
        name = "qwen3-g16-sym-v2"
        self.same(copy_of(name, tmp_path / "one", config={"format": None}), name)

    def test_quantize_config_alone(self, tmp_path: Path) -> None:
        folder = copy_of(QWEN, tmp_path / "own")
        edit_config(folder, quantization_config=None)
        self.same(folder)

    def test_config_json_alone(self, tmp_path: Path) -> None:
        folder = copy_of(QWEN, tmp_path / "hf")
        (folder / "quantize_config.json").unlink()
        self.same(folder)

    def test_shards(self, tmp_path: Path) -> None:
        folder = copy_of(QWEN, tmp_path / "shards")
        tensors = tensors_of(folder)
        (folder / "model.safetensors").unlink()
        names = sorted(tensors)
        files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
        for file, part in files.items():
            save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        index = {"weight_map": {name: file for file, part in files.items() for name in part}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        self.same(folder)

    def test_another_file_name(self, tmp_path: Path) -> None:
        folder = copy_of(QWEN, tmp_path / "named")
        (folder / "model.safetensors").rename(folder / "gptq_model-4bit-16g.safetensors")
        self.same(folder)

    def test_no_g_idx(self, tmp_path: Path) -> None:
        def drop(tensors: Tensors) -> None:
            for name in [name for name in tensors if name.endswith("g_idx")]:
                del tensors[name]

        self.same(copy_of(QWEN, tmp_path / "plain", drop))

    def test_a_bias_that_the_config_does_not_know_is_added(self, tmp_path: Path) -> None:
        def zeros(tensors: Tensors) -> None:
            for name in quantised_names(tensors):
                tensors[f"{name}.bias"] = torch.zeros(
                    tensors[f"{name}.qweight"].shape[1], dtype=torch.float16
                )

        folder = copy_of(QWEN, tmp_path / "bias", zeros)
        self.same(folder)
        model = loaded(folder)
        module = model.get_submodule("layers.0.mlp.down")
        assert isinstance(module, GPTQLinear)
        assert module.bias is not None
        x = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
        before = module(x)
        module.bias.data += 1
        torch.testing.assert_close(module(x), before + 1)

    def test_act_order(self, tmp_path: Path) -> None:
        """Groups dealt out to the channels by another permutation in every layer."""

        def permute(tensors: Tensors) -> None:
            generator = torch.Generator().manual_seed(0)
            for name in quantised_names(tensors):
                g_idx = tensors[f"{name}.g_idx"]
                order = torch.randperm(len(g_idx), generator=generator)
                tensors[f"{name}.g_idx"] = g_idx[order]

        folder = copy_of(QWEN, tmp_path / "order", permute, {"desc_act": True})
        tensors, model = tensors_of(folder), loaded(folder)
        for name in quantised_names(tensors):
            expected = torch.from_numpy(dequantise(tensors, name, 1))
            assert torch.equal(our_weight(model, name), expected), name

    def test_one_group(self, tmp_path: Path) -> None:
        def one(tensors: Tensors) -> None:
            for name in quantised_names(tensors):
                for leaf in ("scales", "qzeros"):
                    tensors[f"{name}.{leaf}"] = tensors[f"{name}.{leaf}"][:1].clone()
                tensors[f"{name}.g_idx"].zero_()

        folder = copy_of(QWEN, tmp_path / "one", one, {"group_size": -1})
        tensors, model = tensors_of(folder), loaded(folder)
        expected = torch.from_numpy(dequantise(tensors, DOWN, 1))
        assert torch.equal(our_weight(model, DOWN), expected)

    def test_a_ragged_last_group(self, tmp_path: Path) -> None:
        """Groups of 24: 64 inputs are two groups and 16 channels, 128 inputs are five and 8."""

        def ragged(tensors: Tensors) -> None:
            for name in quantised_names(tensors):
                inputs = len(tensors[f"{name}.g_idx"])
                groups = -(-inputs // 24)
                tensors[f"{name}.g_idx"] = torch.arange(inputs, dtype=torch.int32) // 24
                for leaf in ("scales", "qzeros"):
                    tensors[f"{name}.{leaf}"] = tensors[f"{name}.{leaf}"][:groups].clone()

        folder = copy_of(QWEN, tmp_path / "ragged", ragged, {"group_size": 24})
        tensors, model = tensors_of(folder), loaded(folder)
        for name in quantised_names(tensors):
            expected = torch.from_numpy(dequantise(tensors, name, 1))
            assert torch.equal(our_weight(model, name), expected), name

    def test_a_zero_point_of_zero_in_v1(self, tmp_path: Path) -> None:
        def wrap(tensors: Tensors) -> None:
            tensors[f"{DOWN}.qzeros"].fill_(-1)

        # Written value by value: by AutoGPTQ, or whoever does not sign.
        folder = copy_of("llama-asym-v1", tmp_path / "wrap", wrap, {"meta": None})
        weight = our_weight(loaded(folder), DOWN)
        assert torch.equal(weight, torch.from_numpy(dequantise(tensors_of(folder), DOWN, 1)))
        assert float(weight.min()) >= 0  # no integer is below a zero point of 0

    @pytest.mark.parametrize("rule", ["+:lm_head", "lm_head", "+:^lm_.*$"])
    def test_lm_head_in_eight_bits_by_a_dynamic_rule(self, tmp_path: Path, rule: str) -> None:
        """As GPTQModel writes it with lm_head=True."""
        generator = torch.Generator().manual_seed(0)
        head = torch.randint(0, 256, (64, 256), generator=generator)

        def quantise_head(tensors: Tensors) -> None:
            del tensors["lm_head.weight"]
            tensors["lm_head.qweight"] = repacked(head, 8)
            tensors["lm_head.qzeros"] = torch.full((2, 64), 0x7F7F7F7F, dtype=torch.int32)
            tensors["lm_head.scales"] = torch.full((2, 256), 0.01, dtype=torch.float16)
            tensors["lm_head.g_idx"] = torch.arange(64, dtype=torch.int32) // 32

        dynamic = {rule: {"bits": 8, "group_size": 32, "sym": True, "desc_act": False}}
        config = {"lm_head": True, "dynamic": dynamic}
        folder = copy_of(QWEN, tmp_path / "head", quantise_head, config)
        model = loaded(folder)
        assert torch.equal(
            our_weight(model, "lm_head"),
            torch.from_numpy(dequantise(tensors_of(folder), "lm_head", 1, bits=8)),
        )
        assert logits(model, torch.tensor([1, 2, 3])).shape == (3, 256)

    def test_a_layer_left_dense(self, tmp_path: Path) -> None:
        name = "model.layers.1.self_attn.v_proj"
        weight = torch.from_numpy(dequantise(tensors_of(FIXTURES / QWEN), name, 1))

        def dense(tensors: Tensors) -> None:
            for leaf in ("qweight", "qzeros", "scales", "g_idx"):
                del tensors[f"{name}.{leaf}"]
            tensors[f"{name}.weight"] = weight.clone()

        config: dict[str, Any] = {"dynamic": {r"-:.*\.1\.self_attn\.v_proj": {}}}
        folder = copy_of(QWEN, tmp_path / "dense", dense, config)
        assert isinstance(loaded(folder).get_submodule("layers.1.attn.qkv"), SideBySide)
        self.same(folder)
