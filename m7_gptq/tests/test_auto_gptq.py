"""auto-gptq's own layers on our checkpoints, against ours.

With the package (``pip install --no-deps auto-gptq==0.7.1``, Python 3.11) its two files are what
runs; without it those tests skip themselves, and a stand-in with the same constructor and buffers
holds the way to it.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import ConfigError, UnsupportedModelError, UnsupportedOptionError
from common.model.transformer import Transformer
from common.request import SamplingParams
from common.testing.fixtures import TinyModel
from m0_init.loader import load
from m6_prefix.engine import LLMEngine as M6Engine
from m7_gptq import auto_gptq_linear
from m7_gptq.auto_gptq_linear import AutoGPTQLinear, quant_linear
from m7_gptq.engine import LLMEngine, layer_for
from m7_gptq.linear import gptq_linear
from m7_gptq.packing import pack_zeros
from m7_gptq.quantizer import QuantSpec
from m7_gptq.tests.samples import FIXTURES, PUBLISHED, Tensors, copy_of, loaded, logits, reference
from m7_gptq.tests.tiny_runs import write

STAND_IN = """
import torch

class QuantLinear(torch.nn.Module):
    QUANT_TYPE = "{kind}"

    def __init__(self, bits, group_size, infeatures, outfeatures, bias, weight_dtype):
        super().__init__()
        self.bits, self.wf = bits, torch.arange(0, 32, bits, dtype=torch.int32)
        for name in ("qweight", "qzeros", "scales", "g_idx"):
            self.register_buffer(name, None)
        self.register_buffer("bias", torch.zeros(outfeatures)) if bias else setattr(self, "bias", None)

    def forward(self, x):
        top = (1 << self.bits) - 1
        q = (self.qweight[:, None] >> self.wf[:, None] & top).flatten(0, 1)
        z = (self.qzeros[:, :, None] >> self.wf & top).flatten(1)
        groups = self.g_idx.long()
        y = x @ (self.scales[groups] * (q - {zeros})).to(x.dtype)
        return y if self.bias is None else y + self.bias
"""  # noqa: E501 (a file of its own)


def installed() -> bool:
    try:
        return distribution("auto-gptq").version == "0.7.1"
    except PackageNotFoundError:
        return False


@pytest.fixture(params=["stand-in", "auto-gptq"])
def package(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The package, or a folder that looks like it."""
    if request.param == "auto-gptq" and not installed():
        pytest.skip("pip install --no-deps auto-gptq==0.7.1, with Python 3.11")
    if request.param == "stand-in":
        stand_in(tmp_path / "site", "0.7.1")
        monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    quant_linear.cache_clear()
    yield request.param
    quant_linear.cache_clear()


def stand_in(site: Path, version: str) -> None:
    """A distribution of two files whose layers follow the description of auto-gptq's."""
    info = site / f"auto_gptq-{version}.dist-info"
    folder = site / "auto_gptq" / "nn_modules" / "qlinear"
    for path in (info, folder):
        path.mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: auto-gptq\nVersion: {version}\n"
    (info / "METADATA").write_text(metadata)
    for name, kind, zeros in (
        ("qlinear_cuda_old", "cuda-old", "(z + 1 & top)[groups]"),
        ("qlinear_cuda", "cuda", "(z + 1)[groups]"),
    ):
        text = textwrap.dedent(STAND_IN).replace("{kind}", kind).replace("{zeros}", zeros)
        (folder / f"{name}.py").write_text(text)


def theirs(folder: Path, dtype: str = "float32") -> Transformer:
    make = gptq_linear(folder, AutoGPTQLinear)
    return load(folder, dtype=dtype, device="cpu", linear=make).model


def layers_of(module: AutoGPTQLinear) -> list[Any]:
    return list(module.layers)


def kinds(model: Transformer) -> set[Any]:
    """Which of the two layers run."""
    return {
        layer.QUANT_TYPE
        for module in model.modules()
        if isinstance(module, AutoGPTQLinear)
        for layer in layers_of(module)
    }


class TestAgainstOurs:
    @pytest.mark.parametrize("name", PUBLISHED)
    def test_files_of_gptqmodel(self, package: str, name: str) -> None:
        """v1, v2 and asymmetric; transformers' logits are the reference."""
        model = theirs(FIXTURES / name)
        ids, expected = reference(name)
        assert kinds(model) == {"cuda-old"}
        assert (logits(model, ids) - expected).abs().max() < 1e-4

    @pytest.mark.parametrize(
        "spec, kind",
        [
            (QuantSpec(bits=4, group_size=16, desc_act=True), "cuda"),
            (QuantSpec(bits=4, group_size=-1, desc_act=True), "cuda-old"),
            (QuantSpec(bits=8, group_size=32, desc_act=True), "cuda"),
            (QuantSpec(bits=8, group_size=16, sym=False), "cuda-old"),
        ],
        ids=str,
    )
    def test_files_of_ours(
        self,
        package: str,
        tiny_models: dict[str, TinyModel],
        tmp_path: Path,
        spec: QuantSpec,
        kind: str,
    ) -> None:
        """Both widths, orders and grids, with biases; AutoGPTQ's own choice of the layer."""
        folder = tmp_path / "model"
        write(tiny_models["qwen2"].folder, folder, spec)
        model, ids = theirs(folder), torch.arange(40) * 5
        assert kinds(model) == {kind}
        torch.testing.assert_close(logits(model, ids), logits(loaded(folder), ids),
                                   rtol=1e-4, atol=1e-4)  # fmt: skip

    def test_a_ragged_last_group_takes_the_layer_with_g_idx(
        self, package: str, tmp_path: Path
    ) -> None:
        def ragged(tensors: Tensors) -> None:
            for name in [key for key in tensors if key.endswith(".g_idx")]:
                inputs, stem = len(tensors[name]), name.removesuffix(".g_idx")
                tensors[name] = torch.arange(inputs, dtype=torch.int32) // 24
                for leaf in ("scales", "qzeros"):
                    groups = -(-inputs // 24)
                    tensors[f"{stem}.{leaf}"] = tensors[f"{stem}.{leaf}"][:groups].clone()

        folder = copy_of(PUBLISHED[0], tmp_path / "ragged", ragged, {"group_size": 24})
        model, ids = theirs(folder), torch.arange(30)
        assert "cuda" in kinds(model)
        torch.testing.assert_close(logits(model, ids), logits(loaded(folder), ids),
                                   rtol=1e-4, atol=1e-4)  # fmt: skip

    def test_the_engine_says_the_same(self, package: str) -> None:
        greedy = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
        prompts = [[1, 2, 3], [7] * 20]
        answers = []
        for backend in ("auto", "auto_gptq"):
            engine = LLMEngine(
                FIXTURES / PUBLISHED[0], device="cpu", dtype="float32", num_blocks=64,
                linear_backend=backend,
            )  # fmt: skip
            outputs = engine.generate(prompts, greedy)
            answers.append([each.outputs[0].token_ids for each in outputs])
        assert kinds(engine.model) == {"cuda-old"}
        assert answers[0] == answers[1]

    def test_weight_bytes_are_those_of_the_checkpoint(self, package: str) -> None:
        """Scales are held in the model's dtype here; bias and dense tensors as before."""
        ours, other = loaded(FIXTURES / PUBLISHED[0]), theirs(FIXTURES / PUBLISHED[0])
        added = 0
        for module in other.modules():
            if isinstance(module, AutoGPTQLinear):
                added += 2 * sum(layer.scales.numel() for layer in layers_of(module))
                added -= 4 * module.in_features * (len(module.out_sizes) - 1)  # one g_idx for all
        assert other.weight_bytes() == ours.weight_bytes() + added


class TestRefusals:
    def test_the_package_is_absent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def absent(name: str) -> None:
            raise PackageNotFoundError(name)

        monkeypatch.setattr(auto_gptq_linear, "distribution", absent)
        with pytest.raises(ConfigError, match=r"not installed: Python 3\.11 and pip install"):
            LLMEngine(FIXTURES / PUBLISHED[0], device="cpu", linear_backend="auto_gptq")

    def test_another_version(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        stand_in(tmp_path, "0.6.0")
        monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
        with pytest.raises(ConfigError, match=r"needs auto-gptq 0\.7\.1, installed is 0\.6\.0"):
            layer_for(torch.device("cpu"), "auto_gptq")

    def test_a_dense_model(self, package: str, tiny: TinyModel) -> None:
        with pytest.raises(ConfigError, match=r"runs quantised layers, and .* has none"):
            LLMEngine(tiny.folder, device="cpu", linear_backend="auto_gptq")

    def test_act_order_with_a_zero_point_of_zero(self, package: str, tmp_path: Path) -> None:
        def change(tensors: Tensors) -> None:
            stem = "model.layers.1.mlp.down_proj"
            tensors[f"{stem}.g_idx"] = tensors[f"{stem}.g_idx"].flip(0)
            zeros = torch.full((1, 8), 8)
            zeros[0, 3] = 0
            tensors[f"{stem}.qzeros"][0, 0] = pack_zeros(zeros, 4, "gptq")[0, 0]

        folder = copy_of(PUBLISHED[2], tmp_path / "model", change, {"meta": None})
        with pytest.raises(UnsupportedModelError, match=r"down .* zero point of 0, .* reads as 16"):
            theirs(folder)

    def test_widths_that_it_cuts_off(self, package: str, tmp_path: Path) -> None:
        config = {"hidden": 40, "heads": 2, "kv_heads": 1, "head_dim": 16, "intermediate": 64}
        from common.testing.checkpoints import tiny_config, write_checkpoint

        dense = write_checkpoint(tmp_path / "dense", tiny_config("llama", layers=1, **config))  # type: ignore[arg-type]
        folder = tmp_path / "model"
        write(dense, folder, QuantSpec(group_size=8))
        with pytest.raises(UnsupportedModelError, match="multiples of 32 inputs and outputs"):
            theirs(folder)

    def test_earlier_stages_name_the_one_that_brings_it(self, tiny: TinyModel) -> None:
        with pytest.raises(UnsupportedOptionError, match="it arrives with m7_gptq"):
            M6Engine(tiny.folder, device="cpu", linear_backend="auto_gptq")
