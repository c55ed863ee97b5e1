"""``load``: names, dtypes, devices, and everything it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import (
    CheckpointError,
    ConfigError,
    FoloError,
    ModelNotFoundError,
    OutOfMemoryError,
    UnsupportedModelError,
)
from common.model.interfaces import LinearFactory
from common.model.linear import DenseLinear, dense_linear_factory
from common.model.ops import TorchOps
from common.model_config import ModelConfig
from common.testing.checkpoints import tiny_config, write_checkpoint
from m0_init.loader import load, resolve_device, resolve_dtype


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = tiny_config("qwen3", layers=1)
    return write_checkpoint(tmp_path / "m", config, dtype="bfloat16", tokenizer=True)


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


class TestLoad:
    def test_auto_takes_the_stored_dtype(self, folder: Path) -> None:
        loaded = load(folder, device="cpu")
        assert loaded.dtype == torch.bfloat16
        assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}
        assert loaded.device == torch.device("cpu")
        assert loaded.folder == folder
        assert loaded.config == ModelConfig.from_pretrained(folder)
        assert loaded.report.num_tensors == 2 + 11
        assert not loaded.model.training

    @pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
    def test_a_dtype_by_name(self, folder: Path, name: str) -> None:
        loaded = load(str(folder), dtype=name, device="cpu")
        assert loaded.model.dtype == loaded.dtype == getattr(torch, name)
        assert loaded.model.kv_spec().dtype == name
        assert loaded.model.cos_sin.dtype == torch.float32

    def test_the_tokenizer_comes_along_where_there_is_one(self, folder: Path) -> None:
        tokenizer = load(folder, device="cpu").tokenizer
        assert tokenizer is not None
        assert tokenizer.encode("A") == [65]
        for path in folder.glob("tokenizer*"):
            path.unlink()
        assert load(folder, device="cpu").tokenizer is None

    def test_rows_of_the_rope_table(self, folder: Path) -> None:
        assert len(load(folder, device="cpu").model.cos_sin) == 512
        assert len(load(folder, device="cpu", max_positions=40).model.cos_sin) == 40

    def test_ops_and_linear_layers_can_be_swapped(self, folder: Path) -> None:
        made: list[str] = []

        class Ops(TorchOps):
            pass

        def factory(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Any:
            dense = dense_linear_factory(dtype, device)

            def make(prefix: str, *args: Any) -> Any:
                made.append(prefix)
                return dense(prefix, *args)

            return make

        loaded = load(folder, device="cpu", ops=Ops(), linear=factory)
        assert made == [f"layers.0.{x}" for x in ("attn.qkv", "attn.o", "mlp.gate_up", "mlp.down")]
        assert isinstance(loaded.model.norm.ops, Ops)
        assert isinstance(loaded.model.get_submodule("layers.0.mlp.down"), DenseLinear)


class TestRefusals:
    def test_unknown_name(self) -> None:
        with pytest.raises(ModelNotFoundError, match="unknown model 'nobody'"):
            load("nobody")

    def test_folder_without_config(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
            load(tmp_path)

    def test_config_that_is_not_json(self, folder: Path) -> None:
        (folder / "config.json").write_text("{")
        with pytest.raises(CheckpointError, match="is not valid JSON"):
            load(folder)

    def test_unsupported_architecture(self, folder: Path) -> None:
        change_config(folder, architectures=["MambaForCausalLM"])
        with pytest.raises(UnsupportedModelError, match="'MambaForCausalLM' is not supported"):
            load(folder)

    def test_quantised_checkpoints_need_a_linear_factory(self, folder: Path) -> None:
        change_config(folder, quantization_config={"quant_method": "gptq"})
        with pytest.raises(UnsupportedModelError, match=r"is quantised \(gptq\)"):
            load(folder, device="cpu")

        def factory(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> LinearFactory:
            return dense_linear_factory(dtype, device)

        assert load(folder, device="cpu", linear=factory).config.quantization

    def test_truncated_weights(self, folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(CheckpointError, match="is not a readable safetensors file"):
            load(folder, device="cpu")

    @pytest.mark.parametrize("change", [{"intermediate_size": 10**14}, {"vocab_size": 10**14}])
    def test_a_model_larger_than_memory(self, folder: Path, change: dict[str, int]) -> None:
        change_config(folder, **change)
        with pytest.raises(OutOfMemoryError, match=r"needs [\d.]+ GiB on cpu, which has [\d.]+"):
            load(folder, device="cpu")

    def test_unknown_dtype_comes_before_any_file_is_read(self) -> None:
        with pytest.raises(ConfigError, match=r"dtype must be auto, .* got 'int4'"):
            load("nobody", dtype="int4")

    @pytest.mark.parametrize("name", ["tpu", "cpux", "cuda:x", "mps", "meta", ""])
    def test_unknown_device(self, name: str) -> None:
        with pytest.raises(ConfigError, match=f"device must be .* got '{name}'"):
            resolve_device(name)

    def test_a_gpu_that_is_not_there(self) -> None:
        count = torch.cuda.device_count()
        with pytest.raises(ConfigError, match=f"is not there: this machine has {count} CUDA"):
            resolve_device(f"cuda:{count}")

    def test_every_error_is_of_the_project(self, folder: Path) -> None:
        change_config(folder, num_key_value_heads=3)
        with pytest.raises(FoloError, match="must be a multiple of"):
            load(folder)


def test_resolve() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_dtype("auto") is None
    assert resolve_dtype("float16") is torch.float16
