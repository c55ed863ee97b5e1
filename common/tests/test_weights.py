"""Loading: every tensor lands in its rows, and every broken checkpoint is named."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from common.errors import CheckpointError
from common.model.interfaces import LoadableModule
from common.model.linear import DenseLinear, dense_linear_factory
from common.model.ops import TorchOps
from common.model.transformer import Transformer
from common.model.weights import LoadReport, checkpoint_modules, load_weights, safetensors_files
from common.model_config import ModelConfig
from common.testing.checkpoints import tiny_config, write_checkpoint

Tensors = dict[str, torch.Tensor]
LAYER = "model.layers.1"


def empty_model(config: ModelConfig, dtype: torch.dtype = torch.float32) -> Transformer:
    return Transformer(
        config,
        ops=TorchOps(),
        linear=dense_linear_factory(dtype, "cpu"),
        dtype=dtype,
        device="cpu",
    )


def load(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, LoadReport]:
    """The model (untyped: its layers are reached by name) and the report."""
    model = empty_model(ModelConfig.from_pretrained(folder), dtype)
    return model, load_weights(model, folder)


class Parts(LoadableModule):
    """A merged layer whose parts are modules of their own."""

    def __init__(self, parts: list[DenseLinear]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def expected_shards(self) -> set[tuple[str, int]]:
        return {("weight", shard) for shard in range(len(self.parts))}

    def load_shard(self, name: str, shard: int, tensor: torch.Tensor) -> None:
        part = self.parts[shard]
        assert isinstance(part, DenseLinear)
        part.load_shard(name, 0, tensor)


def split_linear(
    prefix: str, in_features: int, out_sizes: tuple[int, ...], bias: bool, split: bool
) -> LoadableModule:
    make = dense_linear_factory(torch.float32, "cpu")
    parts = [make(prefix, in_features, (size,), bias, False) for size in out_sizes]
    return Parts([part for part in parts if isinstance(part, DenseLinear)])


def edit(folder: Path, change: Callable[[Tensors], Any]) -> None:
    """Rewrite the one weight file of a checkpoint."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: t.contiguous() for name, t in tensors.items()}, path, {"format": "pt"})


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "tied", tiny_config("qwen3", layers=2))


@pytest.fixture
def untied(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "untied", tiny_config("llama", layers=2, tied=False))


class TestPlacement:
    def test_merged_matrices_hold_the_checkpoints_rows_in_order(self, tied: Path) -> None:
        model, _ = load(tied)
        stored = load_file(tied / "model.safetensors")
        attention, mlp = model.layers[1].attn, model.layers[1].mlp
        qkv = torch.cat([stored[f"{LAYER}.self_attn.{x}_proj.weight"] for x in "qkv"])
        assert torch.equal(attention.qkv.weight, qkv)
        gate_up = torch.cat([stored[f"{LAYER}.mlp.{x}_proj.weight"] for x in ("gate", "up")])
        assert torch.equal(mlp.gate_up.weight, gate_up)
        assert torch.equal(attention.k_norm.weight, stored[f"{LAYER}.self_attn.k_norm.weight"])
        assert torch.equal(model.embed_tokens.weight, stored["model.embed_tokens.weight"])

    def test_biases_are_merged_too(self, tmp_path: Path) -> None:
        folder = write_checkpoint(tmp_path, tiny_config("qwen2", layers=1))
        model, _ = load(folder)
        stored = load_file(folder / "model.safetensors")
        names = [f"model.layers.0.self_attn.{x}_proj.bias" for x in "qkv"]
        assert torch.equal(model.layers[0].attn.qkv.bias, torch.cat([stored[n] for n in names]))
        assert model.layers[0].attn.o.bias is None

    @pytest.mark.parametrize("shards", [1, 3])
    def test_sharded_and_single_give_the_same_model(self, tmp_path: Path, shards: int) -> None:
        config = tiny_config("llama", tied=False)
        single, report = load(write_checkpoint(tmp_path / "one", config, seed=5))
        folder = write_checkpoint(tmp_path / "many", config, seed=5, shards=shards)
        many, many_report = load(folder)
        assert (report.num_files, many_report.num_files) == (1, shards)
        assert report.num_tensors == many_report.num_tensors == 3 + 3 * 9
        assert report.num_bytes == many_report.num_bytes
        assert report.num_bytes == sum(p.nbytes for p in single.parameters())
        assert report.seconds > 0
        for (name, one), (_, other) in zip(
            single.state_dict().items(), many.state_dict().items(), strict=True
        ):
            assert torch.equal(one, other), name

    def test_a_module_made_of_others_hands_its_tensors_on(self, tied: Path) -> None:
        """Parts of a merged layer that are stored differently load through the layer."""
        config = ModelConfig.from_pretrained(tied)
        model = Transformer(
            config, ops=TorchOps(), linear=split_linear, dtype=torch.float32, device="cpu"
        )
        report = load_weights(model, tied)
        merged, other = load(tied)
        ours = model.get_submodule("layers.1.attn.qkv")
        assert isinstance(ours, Parts)
        rows = torch.cat([part.get_parameter("weight") for part in ours.parts])
        assert torch.equal(rows, merged.layers[1].attn.qkv.weight)
        assert report.num_tensors == other.num_tensors

    def test_a_tensor_of_a_part_is_missed_by_its_checkpoint_name(self, tied: Path) -> None:
        edit(tied, lambda t: t.pop(f"{LAYER}.self_attn.k_proj.weight"))
        model = Transformer(
            ModelConfig.from_pretrained(tied),
            ops=TorchOps(), linear=split_linear, dtype=torch.float32, device="cpu",
        )  # fmt: skip
        with pytest.raises(CheckpointError, match=f"lacks '{LAYER}.self_attn.k_proj.weight'"):
            load_weights(model, tied)

    def test_weights_are_converted_to_the_models_dtype(self, tied: Path) -> None:
        model, report = load(tied, torch.bfloat16)
        stored = load_file(tied / "model.safetensors")
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        assert torch.equal(
            model.embed_tokens.weight, stored["model.embed_tokens.weight"].bfloat16()
        )
        assert report.num_bytes == sum(t.nbytes for t in stored.values())

    def test_parameters_ask_for_no_gradient(self, tied: Path) -> None:
        model, _ = load(tied)
        assert not any(p.requires_grad for p in model.parameters())

    def test_the_table_names_every_tensor_of_the_file(self, untied: Path) -> None:
        modules = checkpoint_modules(ModelConfig.from_pretrained(untied))
        for name in load_file(untied / "model.safetensors"):
            assert name.removesuffix(".weight") in modules


class TestTiedEmbeddings:
    def test_one_storage(self, tied: Path) -> None:
        model, _ = load(tied)
        assert model.lm_head.weight.data_ptr() == model.embed_tokens.weight.data_ptr()
        assert "lm_head.weight" not in load_file(tied / "model.safetensors")

    def test_a_stored_copy_is_skipped(self, tied: Path) -> None:
        _, before = load(tied)
        edit(tied, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
        model, after = load(tied)
        assert after.num_tensors == before.num_tensors
        assert model.lm_head.weight.data_ptr() == model.embed_tokens.weight.data_ptr()

    @pytest.mark.parametrize("change", [lambda t: t + 1, lambda t: t[:-1]], ids=["value", "shape"])
    def test_another_head_in_a_tied_model_is_refused(
        self, tied: Path, change: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        edit(
            tied,
            lambda t: t.update({"lm_head.weight": change(t["model.embed_tokens.weight"]).clone()}),
        )
        with pytest.raises(CheckpointError, match=r"lm_head\.weight .* differs from the embedding"):
            load(tied)

    def test_untied_has_its_own(self, untied: Path) -> None:
        model, _ = load(untied)
        stored = load_file(untied / "model.safetensors")
        assert torch.equal(model.lm_head.weight, stored["lm_head.weight"])
        assert not torch.equal(model.lm_head.weight, model.embed_tokens.weight)

    def test_untied_without_lm_head_is_incomplete(self, untied: Path) -> None:
        edit(untied, lambda t: t.pop("lm_head.weight"))
        with pytest.raises(CheckpointError, match=r"lacks 'lm_head\.weight'"):
            load(untied)


class TestBrokenTensors:
    @pytest.mark.parametrize(
        "name",
        [
            f"{LAYER}.self_attn.k_proj.weight",
            f"{LAYER}.mlp.up_proj.weight",
            f"{LAYER}.self_attn.q_norm.weight",
            f"{LAYER}.post_attention_layernorm.weight",
            "model.norm.weight",
            "model.embed_tokens.weight",
        ],
    )
    def test_missing(self, tied: Path, name: str) -> None:
        edit(tied, lambda t: t.pop(name))
        with pytest.raises(CheckpointError, match=re.escape(f"lacks '{name}'")):
            load(tied)

    @pytest.mark.parametrize(
        "name",
        [
            "model.layers.2.mlp.up_proj.weight",  # the model has layers 0 and 1
            f"{LAYER}.self_attn.q_proj.bias",  # no bias in this family
            f"{LAYER}.self_attn.g_proj.weight",
            f"{LAYER}.mlp.up_proj.weight_scale",
            "visual.patch_embed.weight",
            "weight",
        ],
    )
    def test_unexpected(self, tied: Path, name: str) -> None:
        edit(tied, lambda t: t.update({name: torch.ones(4)}))
        with pytest.raises(CheckpointError, match=re.escape(f"unexpected tensor '{name}'")):
            load(tied)

    def test_qk_norm_in_a_family_without_is_unexpected(self, untied: Path) -> None:
        name = f"{LAYER}.self_attn.q_norm.weight"
        edit(untied, lambda t: t.update({name: torch.ones(32)}))
        with pytest.raises(CheckpointError, match=re.escape(f"unexpected tensor '{name}'")):
            load(untied)

    @pytest.mark.parametrize(
        "name, shape, expected",
        [
            (f"{LAYER}.self_attn.k_proj.weight", (128, 64), (64, 64)),
            (f"{LAYER}.self_attn.o_proj.weight", (64, 64), (64, 128)),
            (f"{LAYER}.self_attn.q_norm.weight", (64,), (32,)),
            ("model.embed_tokens.weight", (321, 64), (320, 64)),
            ("model.norm.weight", (64, 1), (64,)),
        ],
    )
    def test_wrong_shape(
        self, tied: Path, name: str, shape: tuple[int, ...], expected: tuple[int, ...]
    ) -> None:
        edit(tied, lambda t: t.update({name: torch.ones(shape)}))
        message = f"has shape {shape} in the checkpoint, expected {expected}"
        with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
            load(tied)
        assert f"tensor '{name}'" in str(caught.value)

    @pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool])
    def test_integers_are_not_weights(self, tied: Path, dtype: torch.dtype) -> None:
        name = f"{LAYER}.mlp.down_proj.weight"
        edit(tied, lambda t: t.update({name: torch.ones(64, 96).to(dtype)}))
        with pytest.raises(
            CheckpointError, match=f"has dtype {dtype} .* expected floats"
        ) as caught:
            load(tied)
        assert f"tensor '{name}'" in str(caught.value)

    def test_stored_rope_frequencies_are_ignored(self, untied: Path) -> None:
        name = f"{LAYER}.self_attn.rotary_emb.inv_freq"
        edit(untied, lambda t: t.update({name: torch.ones(16)}))
        _, report = load(untied)
        assert report.num_tensors == 3 + 2 * 9

    def test_a_tensor_in_two_shards_is_refused(self, tmp_path: Path) -> None:
        folder = write_checkpoint(tmp_path, tiny_config("llama", layers=2), shards=2)
        first, second = safetensors_files(folder)
        tensors = load_file(second)
        name, tensor = next(iter(load_file(first).items()))
        save_file(tensors | {name: tensor}, second)
        with pytest.raises(CheckpointError, match=re.escape(f"'{name}'")):
            load(folder)


class TestBrokenFiles:
    @pytest.mark.parametrize("keep", [0, 4, 100, -1])
    def test_truncated(self, tied: Path, keep: int) -> None:
        path = tied / "model.safetensors"
        path.write_bytes(path.read_bytes()[:keep])
        message = r"model\.safetensors is not a readable safetensors file"
        with pytest.raises(CheckpointError, match=message):
            load(tied)

    def test_a_pickle_in_disguise(self, tied: Path) -> None:
        torch.save({"a": torch.ones(3)}, tied / "model.safetensors")
        with pytest.raises(CheckpointError, match="is not a readable safetensors file"):
            load(tied)

    def test_only_pickles(self, tied: Path) -> None:
        (tied / "model.safetensors").rename(tied / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match=r"has no \.safetensors file"):
            load(tied)

    @pytest.mark.parametrize("content", ["{", "[]", '"x"', "{}", "", '{"weight_map": 3}'])
    def test_broken_index(self, tied: Path, content: str) -> None:
        (tied / "model.safetensors.index.json").write_text(content)
        message = r"model\.safetensors\.index\.json is not a safetensors index"
        with pytest.raises(CheckpointError, match=message):
            load(tied)

    @pytest.mark.parametrize("name", ["../model.safetensors", "/model.safetensors", "", ".", 3])
    def test_an_index_names_files_of_its_own_folder_only(self, tied: Path, name: Any) -> None:
        index = {"weight_map": {"model.norm.weight": name}}
        (tied / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(
            CheckpointError, match=f"names {re.escape(repr(name))}, which is no file"
        ):
            load(tied)

    def test_missing_shard(self, tmp_path: Path) -> None:
        folder = write_checkpoint(tmp_path, tiny_config("llama"), shards=3)
        gone = safetensors_files(folder)[1]
        gone.unlink()
        with pytest.raises(CheckpointError, match=f"names {gone.name}, which is not there"):
            load(folder)

    def test_files_outside_the_index_are_left_alone(self, tmp_path: Path) -> None:
        folder = write_checkpoint(tmp_path, tiny_config("llama"), shards=2)
        (folder / "adapter.safetensors").write_bytes(b"no such thing")
        _, report = load(folder)
        assert report.num_files == 2

    def test_an_index_that_promises_more_than_its_files_hold(self, tmp_path: Path) -> None:
        folder = write_checkpoint(tmp_path, tiny_config("llama"), shards=2)
        first = safetensors_files(folder)[0]
        tensors = load_file(first)
        name = "model.embed_tokens.weight"
        assert name in tensors
        del tensors[name]
        save_file(tensors, first)
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert name in index["weight_map"]
        with pytest.raises(CheckpointError, match=re.escape(f"lacks '{name}'")):
            load(folder)
