"""What is not supported is refused by name; what is broken, too."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import CheckpointError, FoloError, UnsupportedModelError
from m0_init.loader import load
from m7_gptq.quantization_config import parse_config, read_config
from m7_gptq.tests.samples import FIXTURES, Tensors, copy_of, edit_config, loaded

QWEN = "qwen3-g16-sym-v1"
DOWN = "model.layers.0.mlp.down_proj"


def refuse(folder: Path, kind: type[FoloError], *parts: str) -> None:
    """Loading raises, and the message holds every part."""
    with pytest.raises(kind) as caught:
        loaded(folder)
    for part in parts:
        assert part in str(caught.value)


class TestRefusals:
    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"bits": 3}, "bits 3 is not supported"),
            ({"bits": 2}, "bits 2 is not supported"),
            ({"bits": True}, "bits True is not supported"),
            ({"group_size": 0}, "group_size 0 is not supported"),
            ({"group_size": "16"}, "group_size '16' is not supported"),
            ({"quant_method": "awq"}, "quant_method 'awq'"),
            ({"method": "qqq"}, "method 'qqq'"),
            ({"format": "marlin", "checkpoint_format": "marlin"}, "format 'marlin'"),
            ({"pack_dtype": "int16"}, "pack_dtype 'int16'"),
            ({"is_marlin_format": True}, "is_marlin_format"),
            ({"adapter": {"rank": 8}}, "adapter"),
            ({"rotation": "hadamard"}, "rotation"),
            ({"dynamic": {"+:.*": {"bits": 2}}}, "dynamic rule '+:.*': bits 2"),
            ({"dynamic": {".*": {"group_size": -2}}}, "dynamic rule '.*': group_size -2"),
            ({"dynamic": {".*": {"pack_dtype": "int8"}}}, "dynamic rule '.*': 'pack_dtype'"),
        ],
    )
    def test_unsupported_by_name(
        self, tmp_path: Path, config: dict[str, Any], message: str
    ) -> None:
        refuse(copy_of(QWEN, tmp_path / "no", config=config), UnsupportedModelError, message)

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"bits": None}, "lacks 'bits'"),
            ({"group_size": None}, "lacks 'group_size'"),
            ({"format": "gptq_v2"}, "format is 'gptq_v2' and checkpoint_format 'gptq'"),
            ({"dynamic": ["lm_head"]}, "dynamic must be an object"),
            ({"dynamic": {"+:(": {}}}, "dynamic rule '+:(' is no pattern"),
            ({"dynamic": {"+:x": 8}}, "dynamic rule '+:x' must hold an object"),
        ],
    )
    def test_broken_configs(self, tmp_path: Path, config: dict[str, Any], message: str) -> None:
        refuse(copy_of(QWEN, tmp_path / "no", config=config), CheckpointError, message)

    def test_two_configs_that_disagree(self, tmp_path: Path) -> None:
        folder = copy_of(QWEN, tmp_path / "two")
        raw = json.loads((folder / "quantize_config.json").read_text())
        (folder / "quantize_config.json").write_text(json.dumps({**raw, "group_size": 32}))
        refuse(folder, CheckpointError, "config.json says group_size = 16", "says 32")

    def test_no_config_at_all(self, tmp_path: Path) -> None:
        folder = copy_of(QWEN, tmp_path / "none")
        edit_config(folder, quantization_config=None)
        (folder / "quantize_config.json").unlink()
        refuse(folder, CheckpointError, "no quantization_config and no quantize_config.json")

    @pytest.mark.parametrize("text", ["{", "[]", "\xff"])
    def test_a_config_that_is_no_object(self, tmp_path: Path, text: str) -> None:
        folder = copy_of(QWEN, tmp_path / "bad")
        (folder / "quantize_config.json").write_text(text, encoding="latin-1")
        refuse(folder, CheckpointError, "quantize_config.json")

    def test_a_quantization_config_that_is_no_object(self) -> None:
        stored: Any = "gptq"
        with pytest.raises(CheckpointError, match="must be an object"):
            read_config(FIXTURES / QWEN, stored)

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"bits": 8}, "qweight is I32 [8, 64]; 8 bits in groups of 16 need I32 [16, 64]"),
            ({"group_size": 32}, "qzeros is I32 [4, 8]; 4 bits in groups of 32 need I32 [2, 8]"),
            ({"dynamic": {"-:model": {}}}, "a dynamic rule denies it"),
        ],
    )
    def test_config_against_files(
        self, tmp_path: Path, config: dict[str, Any], message: str
    ) -> None:
        refuse(copy_of(QWEN, tmp_path / "no", config=config), CheckpointError, message)

    @pytest.mark.parametrize("leaf", ["qzeros", "scales"])
    def test_a_missing_tensor(self, tmp_path: Path, leaf: str) -> None:
        folder = copy_of(QWEN, tmp_path / "no", lambda tensors: tensors.pop(f"{DOWN}.{leaf}"))
        refuse(folder, CheckpointError, f"lacks '{DOWN}.{leaf}'")

    def test_scales_of_another_type(self, tmp_path: Path) -> None:
        def ints(tensors: Tensors) -> None:
            tensors[f"{DOWN}.scales"] = tensors[f"{DOWN}.scales"].int()

        folder = copy_of(QWEN, tmp_path / "no", ints)
        refuse(folder, UnsupportedModelError, f"{DOWN}.scales of type I32")

    @pytest.mark.parametrize("value", [-1, 8])
    def test_a_group_that_is_not_there(self, tmp_path: Path, value: int) -> None:
        def out_of_range(tensors: Tensors) -> None:
            tensors[f"{DOWN}.g_idx"][5] = value

        folder = copy_of(QWEN, tmp_path / "no", out_of_range)
        refuse(folder, CheckpointError, f"{DOWN}.g_idx", "the layer has 8 groups")

    def test_a_packed_tensor_where_none_belongs(self, tmp_path: Path) -> None:
        def extra(tensors: Tensors) -> None:
            tensors["model.norm.qweight"] = torch.zeros(1, 1, dtype=torch.int32)

        folder = copy_of(QWEN, tmp_path / "no", extra)
        refuse(folder, CheckpointError, "unexpected tensor 'model.norm.qweight'")

    def test_a_quantised_embedding(self, tmp_path: Path) -> None:
        def extra(tensors: Tensors) -> None:
            tensors["model.embed_tokens.qweight"] = torch.zeros(1, 1, dtype=torch.int32)

        folder = copy_of(QWEN, tmp_path / "no", extra)
        refuse(folder, UnsupportedModelError, "a quantised embedding")

    def test_a_tied_and_quantised_lm_head(self, tmp_path: Path) -> None:
        def extra(tensors: Tensors) -> None:
            tensors["lm_head.qweight"] = torch.zeros(8, 256, dtype=torch.int32)

        folder = copy_of(QWEN, tmp_path / "no", extra)
        edit_config(folder, tie_word_embeddings=True)
        refuse(folder, UnsupportedModelError, "lm_head", "tie_word_embeddings")

    def test_a_width_that_no_word_fits(self, tmp_path: Path) -> None:
        folder = copy_of(QWEN, tmp_path / "no")
        edit_config(folder, intermediate_size=100)
        refuse(folder, UnsupportedModelError, "is 64 × 100: 4-bit words need multiples of 8")

    def test_a_broken_file(self, tmp_path: Path) -> None:
        folder = copy_of(QWEN, tmp_path / "no")
        (folder / "model.safetensors").write_bytes(b"not a safetensors file")
        refuse(folder, CheckpointError, "not a readable safetensors file")

    def test_the_dense_loader_still_refuses(self) -> None:
        with pytest.raises(UnsupportedModelError, match="quantised"):
            load(FIXTURES / QWEN, device="cpu")


class TestRules:
    def test_the_first_match_decides_and_matches_from_the_start(self) -> None:
        config = parse_config(
            {
                "bits": 4,
                "group_size": 128,
                "dynamic": {
                    r"-:model\.layers\.0\.": {},
                    r"+:.*down_proj": {"bits": 8},
                    r".*down": {"group_size": 32},
                    r"down": {"bits": 8},
                },
            }
        )
        assert config.for_module("model.layers.0.mlp.down_proj") is None
        assert config.for_module("model.layers.1.mlp.down_proj") == (8, 128)
        assert config.for_module("model.layers.1.mlp.downward") == (4, 32)
        assert config.for_module("model.layers.1.mlp.up_proj") == (4, 128)

    def test_messages_name_the_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UnsupportedModelError, match=re.escape(str(tmp_path))):
            read_config(tmp_path, {"bits": 3, "group_size": 128})
