"""What is written loads as what was quantised, here and by the rules of the format."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import CheckpointError, ConfigError, UnsupportedModelError
from common.model_config import ModelConfig
from common.testing.checkpoints import tiny_config
from common.testing.checkpoints import write_checkpoint as write_dense
from m0_init.loader import load
from m7_gptq.calibrate import LINEARS, QuantizedLinear
from m7_gptq.checkpoint_writer import (
    check_free,
    check_quantisable,
    default_format,
    linear_shapes,
    write_checkpoint,
)
from m7_gptq.linear import GPTQLinear, gptq_linear
from m7_gptq.packing import FORMATS, Format
from m7_gptq.quantizer import QuantSpec
from m7_gptq.tests.samples import dequantise, tensors_of
from m7_gptq.tests.tiny_runs import SAMPLES, SPEC, dense, logits, put, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny") / "model"
    config = tiny_config("qwen3", layers=2, hidden=64, intermediate=96)
    return write_dense(made, config, tokenizer=True)


class TestWrittenCheckpoint:
    @pytest.mark.parametrize("form", FORMATS)
    @pytest.mark.parametrize(
        "spec",
        [
            SPEC,
            QuantSpec(bits=8, group_size=-1),
            QuantSpec(group_size=16, sym=False, desc_act=True),
        ],
        ids=["sym", "8-bit", "asym-act-order"],
    )
    def test_what_is_written_loads_as_what_was_quantised(
        self, folder: Path, tmp_path: Path, spec: QuantSpec, form: Format
    ) -> None:
        out = tmp_path / "out"
        linears = write(folder, out, spec, form)
        tensors = tensors_of(out)
        for each in linears:
            weight = dequantise(tensors, each.name, int(form == "gptq"), spec.bits)
            assert torch.equal(torch.from_numpy(weight), each.weight.dequantised())
        model = dense(folder)
        put(model, linears)
        ours = load(out, dtype="float32", device="cpu", linear=gptq_linear(out)).model
        assert all(
            isinstance(ours.get_submodule(f"layers.1.{path}"), GPTQLinear) for path in LINEARS
        )
        tokens = SAMPLES[4]
        torch.testing.assert_close(logits(ours, tokens), logits(model, tokens), rtol=0, atol=1e-3)

    def test_logits_stay_close_to_the_floats(self, folder: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        write(folder, out, QuantSpec(bits=8, group_size=-1))
        ours = load(out, dtype="float32", device="cpu", linear=gptq_linear(out)).model
        expected = logits(dense(folder), SAMPLES[5])
        difference = (logits(ours, SAMPLES[5]) - expected).std()
        assert 0 < difference < 0.05 * expected.std()

    def test_files(self, folder: Path, tmp_path: Path) -> None:
        out = tmp_path / "deep" / "out"
        write(folder, out, SPEC)
        assert sorted(path.name for path in out.iterdir()) == sorted(
            [*(p.name for p in folder.iterdir()), "quantize_config.json"]
        )
        assert [path.name for path in out.parent.iterdir()] == ["out"]
        own = json.loads((out / "quantize_config.json").read_text())
        whole = json.loads((out / "config.json").read_text())
        assert whole.pop("quantization_config") == own
        assert whole == json.loads((folder / "config.json").read_text())
        expected = {
            "bits": 4, "group_size": 16, "desc_act": False, "sym": True, "lm_head": False,
            "quant_method": "gptq", "format": "gptq", "checkpoint_format": "gptq",
            "pack_dtype": "int32",
        }  # fmt: skip
        assert expected.items() <= own.items()
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            assert (out / name).read_bytes() == (folder / name).read_bytes()

    def test_tensors_are_those_of_the_format(self, folder: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        write(folder, out, SPEC)
        tensors, name = tensors_of(out), "model.layers.0.self_attn.o_proj"  # 128 inputs, 64 outputs
        shapes = {
            leaf: (tensors[f"{name}.{leaf}"].dtype, tuple(tensors[f"{name}.{leaf}"].shape))
            for leaf in ("qweight", "qzeros", "scales", "g_idx")
        }
        assert shapes == {
            "qweight": (torch.int32, (16, 64)),
            "qzeros": (torch.int32, (8, 8)),
            "scales": (torch.float16, (8, 64)),
            "g_idx": (torch.int32, (128,)),
        }
        assert set(tensors[f"{name}.qzeros"].flatten().tolist()) == {0x7777_7777}
        assert f"{name}.weight" not in tensors
        stored = load_file(folder / "model.safetensors")
        for dense_name in ("model.embed_tokens.weight", "model.norm.weight"):
            assert torch.equal(tensors[dense_name], stored[dense_name])

    def test_a_tied_matrix_is_written_once(self, folder: Path, tmp_path: Path) -> None:
        source, out = tmp_path / "twice", tmp_path / "out"
        shutil.copytree(folder, source)
        tensors = tensors_of(source)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, source / "model.safetensors", {"format": "pt"})
        write_checkpoint(out, source, ModelConfig.from_pretrained(source), [], SPEC)
        assert "lm_head.weight" not in tensors_of(out)

    def test_biases_are_copied(self, tmp_path: Path) -> None:
        source = write_dense(tmp_path / "qwen2", tiny_config("qwen2", layers=1, head_dim=16))
        out = tmp_path / "out"
        linears = write(source, out, SPEC)
        name = "model.layers.0.self_attn.q_proj.bias"
        assert torch.equal(tensors_of(out)[name], tensors_of(source)[name])
        model = dense(source)
        put(model, linears)
        ours = load(out, dtype="float32", device="cpu", linear=gptq_linear(out)).model
        torch.testing.assert_close(
            logits(ours, SAMPLES[0]), logits(model, SAMPLES[0]), rtol=0, atol=1e-3
        )

    def test_an_empty_folder_may_be_there(self, folder: Path, tmp_path: Path) -> None:
        write(folder, tmp_path / "new", SPEC)
        (tmp_path / "empty").mkdir()
        write(folder, tmp_path / "empty", SPEC)
        one, two = (
            (tmp_path / name / "model.safetensors").read_bytes() for name in ("new", "empty")
        )
        assert one == two

    def test_nothing_is_left_behind_when_a_layer_fails(self, folder: Path, tmp_path: Path) -> None:
        def failing() -> list[QuantizedLinear]:
            raise CheckpointError("the activations of layer 1")

        with pytest.raises(CheckpointError):
            write_checkpoint(
                tmp_path / "out", folder, ModelConfig.from_pretrained(folder),
                (each for each in failing()), SPEC,
            )  # fmt: skip
        assert list(tmp_path.iterdir()) == []


class TestChecksBeforehand:
    def test_formats(self) -> None:
        assert default_format(SPEC) == "gptq"
        assert default_format(replace(SPEC, sym=False)) == "gptq_v2"

    def test_shapes_are_those_of_the_model(self, folder: Path) -> None:
        stored = load_file(folder / "model.safetensors")
        for name, (inputs, outputs) in linear_shapes(ModelConfig.from_pretrained(folder)).items():
            assert stored[f"model.layers.0.{name}.weight"].shape == (outputs, inputs)

    def test_a_group_that_does_not_divide_is_refused_with_those_that_do(self, folder: Path) -> None:
        config = ModelConfig.from_pretrained(folder)
        message = (
            r"group_size 48 does not divide the 64 inputs of self_attn\.q_proj; "
            r"these do: 64, 32, 16, 8, −1"
        )
        with pytest.raises(ConfigError, match=message):
            check_quantisable(config, replace(SPEC, group_size=48))
        check_quantisable(config, replace(SPEC, group_size=-1))

    def test_a_width_that_no_word_fits_is_refused(self, folder: Path) -> None:
        config = replace(ModelConfig.from_pretrained(folder), intermediate_size=100)
        with pytest.raises(ConfigError, match=r"mlp\.gate_proj is 64 × 100: words of 4 bits"):
            check_quantisable(config, SPEC)

    def test_a_quantised_model_is_refused(self, folder: Path) -> None:
        config = replace(ModelConfig.from_pretrained(folder), quantization={"quant_method": "awq"})
        with pytest.raises(UnsupportedModelError, match=r"quantised already \(awq\)"):
            check_quantisable(config, SPEC)

    def test_a_taken_folder_is_refused(self, tmp_path: Path) -> None:
        check_free(tmp_path / "new")
        check_free(tmp_path)  # empty
        (tmp_path / "file").write_text("x")
        with pytest.raises(ConfigError, match="exists already"):
            check_free(tmp_path)
        with pytest.raises(ConfigError, match="exists already"):
            check_free(tmp_path / "file")
