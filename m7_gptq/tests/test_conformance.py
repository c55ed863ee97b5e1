"""The public surface of M7: on dense models as M6, and on GPTQ checkpoints.

The oracle of a quantised model is transformers running its dequantised weights in float32.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
from safetensors.torch import load_file, save_file

from common.errors import UnsupportedModelError
from common.testing.checkpoints import tiny_config, write_checkpoint
from common.testing.conformance import GREEDY, EngineConformance, build, ids_of
from common.testing.fixtures import FAMILIES, TinyModel
from common.testing.oracle import HFOracle
from m7_gptq.tests.tiny_runs import SPEC, write

OPTIONS: dict[str, Any] = {"max_num_seqs": 8, "num_blocks": 256, "block_size": 4}


def dequantised_copy(folder: Path, out: Path, linears: list[Any]) -> Path:
    """A dense checkpoint that holds Ŵ where the quantised one holds integers."""
    shutil.copytree(folder, out)
    (file,) = out.glob("*.safetensors")
    tensors = load_file(file)
    for each in linears:
        name = f"{each.name}.weight"
        assert name in tensors, name
        tensors[name] = each.weight.dequantised().contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    return out


@pytest.fixture(scope="module")
def quantised_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TinyModel]:
    """Tiny models in 4 bits, each with its oracle."""
    made = dict[str, TinyModel]()
    for family in FAMILIES:
        root = tmp_path_factory.mktemp(f"gptq-{family}")
        config = tiny_config(family, head_dim=16 if family == "qwen2" else 32)
        folder = write_checkpoint(root / "float", config, seed=0, tokenizer=True)
        linears = write(folder, root / "gptq", SPEC)
        dense = dequantised_copy(folder, root / "dense", linears)
        made[family] = TinyModel(family, root / "gptq", HFOracle(dense))
    return made


class TestDense(EngineConformance):
    """A dense model: nothing is different."""

    stage = "m7_gptq"
    below = "m6_prefix"
    options: ClassVar[dict[str, Any]] = OPTIONS
    below_options: ClassVar[dict[str, Any]] = OPTIONS


class TestQuantised(EngineConformance):
    """4-bit checkpoints of all families."""

    stage = "m7_gptq"
    options: ClassVar[dict[str, Any]] = OPTIONS

    @pytest.fixture(scope="class")
    @classmethod
    def tiny_models(cls, quantised_models: dict[str, TinyModel]) -> dict[str, TinyModel]:
        return quantised_models

    @pytest.fixture(scope="class")
    @classmethod
    def tiny(cls, quantised_models: dict[str, TinyModel]) -> TinyModel:
        return quantised_models["qwen3"]


def test_outputs_equal_m6_on_the_dequantised_weights(
    quantised_models: dict[str, TinyModel],
) -> None:
    model = quantised_models["llama"]
    ours = build("m7_gptq", model, **OPTIONS).generate(model.prompts, GREEDY)
    floats = TinyModel("llama", model.folder.parent / "dense", model.oracle)
    theirs = build("m6_prefix", floats, **OPTIONS).generate(model.prompts, GREEDY)
    assert ids_of(ours) == ids_of(theirs)


@pytest.mark.parametrize("stage", ["m4_flash", "m6_prefix"])
def test_a_stage_that_reads_floats_refuses_by_name(
    quantised_models: dict[str, TinyModel], stage: str
) -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"is quantised \(gptq\); this stage reads floats"
    ):
        build(stage, quantised_models["qwen3"], num_blocks=8)
