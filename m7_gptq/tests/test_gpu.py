"""M7 on a real GPU: quantised checkpoints through the engine, graphs and fused layers.

Every test skips itself elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.request import SamplingParams
from common.results import read_result
from common.testing.fixtures import TinyModel
from m1_basic.benchmarks.command import bench
from m7_gptq.benchmarks import stream
from m7_gptq.engine import LLMEngine
from m7_gptq.fused_linear import FusedGPTQLinear
from m7_gptq.tests.kernel_cases import packed_bytes
from m7_gptq.tests.tiny_runs import SPEC, write

pytestmark = pytest.mark.gpu

OPTIONS: dict[str, Any] = {"num_blocks": 256, "max_num_seqs": 8, "dtype": "float32"}
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)


@pytest.fixture(scope="module")
def quantised(tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gptq") / "model"
    write(tiny.folder, folder, SPEC)
    return folder


def ids(engine: LLMEngine, prompts: list[list[int]]) -> list[tuple[int, ...]]:
    return [output.outputs[0].token_ids for output in engine.generate(prompts, GREEDY)]


def test_the_engine_takes_the_fused_layers(quantised: Path) -> None:
    engine = LLMEngine(quantised, device="cuda", **OPTIONS)
    layer = engine.model.get_submodule("layers.0.mlp.down")
    assert type(layer) is FusedGPTQLinear
    assert engine.runner.graphs is not None


@pytest.mark.parametrize("eager", [False, True])
def test_ids_equal_those_of_the_cpu(quantised: Path, tiny: TinyModel, eager: bool) -> None:
    """In float32, through graphs and without; one prompt alone and four together."""
    ours = LLMEngine(quantised, device="cuda", enforce_eager=eager, **OPTIONS)
    theirs = LLMEngine(quantised, device="cpu", **OPTIONS)
    assert ids(ours, tiny.prompts[1:2]) == ids(theirs, tiny.prompts[1:2])
    assert ids(ours, tiny.prompts) == ids(theirs, tiny.prompts)


@pytest.mark.parametrize("eager", [False, True])
def test_an_output_matrix_of_eight_bits(quantised: Path, tiny: TinyModel, eager: bool) -> None:
    """Logits by a kernel, lookups inside a recorded step; as on the CPU."""
    options = {**OPTIONS, "head_bits": 8}
    ours = LLMEngine(quantised, device="cuda", enforce_eager=eager, **options)
    assert type(ours.model.lm_head) is FusedGPTQLinear
    theirs = LLMEngine(quantised, device="cpu", **options)
    assert ids(ours, tiny.prompts) == ids(theirs, tiny.prompts)


def test_stream_benchmark(tmp_path: Path) -> None:
    argv = ["--smoke", "--model", "qwen3-0.6b-random", "--device", "cuda", "--out", str(tmp_path)]
    assert bench("m7_gptq", ("stream",), [*argv, "--repeat", "1"]) == 0
    (path,) = tmp_path.glob("*/m7_gptq-stream.json")
    result = read_result(path)
    bytes_of = {row["engine"]: row["median"] for row in result.select(metric="linear_bytes")}
    assert bytes_of[stream.FOUR] < 0.3 * bytes_of[stream.BEST]
    assert len(result.select(metric="peak_memory")) == 4


def test_bfloat16_runs_and_memory_is_that_of_four_bits(quantised: Path, tiny: TinyModel) -> None:
    engine = LLMEngine(quantised, device="cuda", **{**OPTIONS, "dtype": "bfloat16"})
    assert all(len(tokens) == 24 for tokens in ids(engine, tiny.prompts))
    layers = [each for each in engine.model.modules() if type(each) is FusedGPTQLinear]
    assert len(layers) == 4 * len(engine.model.layers)
    for layer in layers:
        held = sum(parameter.nbytes for parameter in layer.parameters())
        assert held == packed_bytes(layer.in_features, sum(layer.out_sizes), SPEC.group_size)
