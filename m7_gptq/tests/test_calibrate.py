"""A whole model, layer by layer: quantise, write, load again; and what GPTQ is for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.errors import CheckpointError, ConfigError
from common.testing.checkpoints import Family, tiny_config
from common.testing.checkpoints import write_checkpoint as write_dense
from m0_init.loader import load
from m1_basic.attention import UncachedAttend
from m7_gptq.calibrate import QuantizedLinear, quantise_model
from m7_gptq.hessian import Hessian
from m7_gptq.linear import gptq_linear
from m7_gptq.quantizer import gptq
from m7_gptq.tests.tiny_runs import SAMPLES, SPEC, dense, ids, logits, put, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny") / "model"
    config = tiny_config("qwen3", layers=2, hidden=64, intermediate=96)
    return write_dense(made, config, tokenizer=True)


@pytest.fixture(scope="module")
def made(folder: Path) -> list[QuantizedLinear]:
    held_out = ids(3, 48, seed=1)
    return list(quantise_model(dense(folder), SAMPLES, SPEC, held_out=held_out))


class TestQuantiseModel:
    def test_every_linear_layer_once_in_order(self, made: list[QuantizedLinear]) -> None:
        kinds = [
            "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
            "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
        ]  # fmt: skip
        assert [each.name for each in made] == [
            f"model.layers.{layer}.{kind}" for layer in range(2) for kind in kinds
        ]

    def test_gptq_beats_rounding_on_the_calibration_samples(
        self, made: list[QuantizedLinear]
    ) -> None:
        for each in made:
            assert 0 < each.calibration.chosen < each.calibration.rtn < 0.05, each.name

    def test_held_out_errors_are_measured_apart(self, made: list[QuantizedLinear]) -> None:
        for each in made:
            assert each.held_out is not None
            assert 0 < each.held_out.chosen < 0.05
            assert each.held_out != each.calibration

    def test_without_held_out_samples_there_are_no_such_errors(self, folder: Path) -> None:
        first = next(quantise_model(dense(folder), SAMPLES[:1], SPEC))
        assert first.held_out is None

    def test_the_models_own_weights_are_untouched(self, folder: Path) -> None:
        model = dense(folder)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        list(quantise_model(model, SAMPLES[:2], SPEC))
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
        assert not any(module._forward_pre_hooks for module in model.modules())

    def test_the_first_layer_sees_the_dense_models_inputs(
        self, folder: Path, made: list[QuantizedLinear]
    ) -> None:
        """q, k and v of layer 0, quantised here from inputs caught in an ordinary forward pass."""
        model = dense(folder)
        qkv = model.get_submodule("layers.0.attn.qkv")
        seen = Hessian(64)
        hook = qkv.register_forward_pre_hook(lambda _, inputs: seen.add(inputs[0]))
        for sample in SAMPLES:
            logits(model, sample)
        hook.remove()
        expected = gptq(qkv.get_parameter("weight").data, seen.matrix(), SPEC)
        ints = torch.cat([each.weight.ints for each in made[:3]])
        assert torch.equal(ints, expected.ints)

    def test_later_layers_see_what_the_quantised_ones_put_out(
        self, folder: Path, made: list[QuantizedLinear]
    ) -> None:
        """down of layer 1, from inputs caught in a model whose earlier layers hold Ŵ."""
        model = dense(folder)
        wanted = "model.layers.1.mlp.down_proj"
        put(model, [each for each in made if each.name != wanted])
        down = model.get_submodule("layers.1.mlp.down")
        seen = Hessian(96)
        hook = down.register_forward_pre_hook(lambda _, inputs: seen.add(inputs[0]))
        for sample in SAMPLES:
            logits(model, sample)
        hook.remove()
        expected = gptq(down.get_parameter("weight").data, seen.matrix(), SPEC)
        (ours,) = (each for each in made if each.name == wanted)
        assert (ours.weight.ints == expected.ints).float().mean() > 0.999

    def test_attention_is_computed_once_a_layer_with_the_quantised_projections(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And what is kept is what the whole quantised layer computes."""
        calls: list[torch.Tensor] = []
        attention = UncachedAttend.__call__

        def counted(self: UncachedAttend, layer: int, *qkv: torch.Tensor) -> torch.Tensor:
            calls.append(attention(self, layer, *qkv))
            return calls[-1]

        model, samples = dense(folder), SAMPLES[:2]
        monkeypatch.setattr(UncachedAttend, "__call__", counted)
        linears = list(quantise_model(model, samples, SPEC))
        assert len(calls) == 2 * len(model.layers)
        kept = list(calls)
        put(model, linears)
        logits(model, samples[0])
        torch.testing.assert_close(calls[-2], kept[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(calls[-1], kept[2], rtol=1e-4, atol=1e-4)

    def test_act_order_is_shared_by_layers_with_the_same_input(self, folder: Path) -> None:
        spec = replace(SPEC, desc_act=True)
        q, k, v, o, gate, up, _ = list(quantise_model(dense(folder), SAMPLES, spec))[:7]
        for other in (k, v):
            assert torch.equal(q.weight.g_idx, other.weight.g_idx)
        assert torch.equal(gate.weight.g_idx, up.weight.g_idx)
        assert not torch.equal(q.weight.g_idx, gate.weight.g_idx)
        assert o.weight.g_idx.shape == (128,)
        assert not torch.equal(q.weight.g_idx, torch.arange(64).int() // 16)

    def test_deterministic(self, folder: Path, made: list[QuantizedLinear]) -> None:
        again = list(quantise_model(dense(folder), SAMPLES, SPEC))
        for one, two in zip(made, again, strict=True):
            assert torch.equal(one.weight.ints, two.weight.ints)
            assert torch.equal(one.weight.scales, two.weight.scales)
            assert one.calibration == two.calibration

    def test_round_to_nearest_is_its_own_baseline(self, folder: Path) -> None:
        for each in quantise_model(dense(folder), SAMPLES[:2], SPEC, method="rtn"):
            assert each.calibration.chosen == each.calibration.rtn

    def test_a_model_in_bfloat16_is_quantised_in_float32(self, folder: Path) -> None:
        first = next(quantise_model(dense(folder, "bfloat16"), SAMPLES, SPEC))
        assert first.calibration.chosen < first.calibration.rtn

    @pytest.mark.parametrize("family", ["qwen2", "llama"])
    def test_other_families_and_samples_of_several_lengths(
        self, tmp_path: Path, family: Family
    ) -> None:
        config = tiny_config(family, layers=1, tied=False, head_dim=16)
        model = dense(write_dense(tmp_path / "m", config))
        samples = [*ids(2, 20, seed=2), *ids(2, 7, seed=3), *ids(1, 1, seed=4)]
        assert len(list(quantise_model(model, samples, SPEC))) == 7

    @pytest.mark.parametrize(
        ("samples", "method", "message"),
        [
            ([], "gptq", "at least one sample"),
            ([[1, 2], []], "gptq", "no sample may be empty"),
            ([[1, 2]], "awq", "method must be one of gptq, rtn, got 'awq'"),
            ([[1] * 513], "gptq", "a calibration sample has 513 tokens, the model takes 512"),
        ],
    )
    def test_bad_arguments(
        self, folder: Path, samples: list[list[int]], method: str, message: str
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            next(quantise_model(dense(folder), samples, SPEC, method=method))

    def test_a_quantised_model_is_refused(self, folder: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        write(folder, out, SPEC)
        model = load(out, device="cpu", linear=gptq_linear(out)).model
        with pytest.raises(CheckpointError, match=r"attn\.qkv is GPTQLinear"):
            next(quantise_model(model, SAMPLES[:1], SPEC))
