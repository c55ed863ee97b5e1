"""An output matrix of 8 bits, and the embedding that is tied to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import ConfigError
from common.model.linear import Embedding, TiedHead
from common.model.transformer import Transformer
from common.request import SamplingParams
from common.testing.checkpoints import tiny_config, write_checkpoint
from common.testing.fixtures import TinyModel
from m0_init.loader import load
from m7_gptq import head
from m7_gptq.engine import LLMEngine, layer_for
from m7_gptq.fused_linear import FusedGPTQLinear
from m7_gptq.head import QuantizedEmbedding, round_head
from m7_gptq.linear import GPTQLinear
from m7_gptq.quantizer import QuantSpec
from m7_gptq.tests.kernel_cases import packed_bytes
from m7_gptq.tests.samples import logits
from m7_gptq.tests.tiny_runs import dense, write

LAYERS = (GPTQLinear, FusedGPTQLinear)
OPTIONS: dict[str, Any] = {"device": "cpu", "dtype": "float32", "num_blocks": 64}
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


def rounded(folder: Path, layer: type[GPTQLinear], dtype: str = "float32") -> Transformer:
    model = dense(folder, dtype)
    round_head(model, layer)
    return model


def matrix(model: Transformer) -> torch.Tensor:
    """Ŵ ``[vocab, hidden]`` of a reference head."""
    assert isinstance(model.lm_head, GPTQLinear)
    return model.lm_head.dequantised(0, model.config.vocab_size).T


class TestTied:
    def test_every_weight_is_within_half_a_step(self, tiny: TinyModel) -> None:
        stored = dense(tiny.folder).lm_head.weight
        model = rounded(tiny.folder, GPTQLinear)
        assert isinstance(stored, torch.Tensor)
        step = 2 * stored.abs().amax(dim=1, keepdim=True) / 255  # 64 inputs are one group
        # The scale is stored in float16, which moves the outermost of 128 steps by 1/16.
        assert bool(((matrix(model) - stored).abs() <= step * (0.5 + 128 / 2**11)).all())

    @pytest.mark.parametrize("layer", LAYERS)
    def test_logits_and_lookup_are_those_of_one_matrix(
        self, tiny: TinyModel, layer: type[GPTQLinear]
    ) -> None:
        """A dense model with Ŵ as its embedding says the same."""
        expected = dense(tiny.folder)
        model = rounded(tiny.folder, layer)
        weight = matrix(rounded(tiny.folder, GPTQLinear))
        expected.embed_tokens.weight.data.copy_(weight)
        ids = torch.tensor([[0, 5, 319], [17, 17, 4]])
        assert isinstance(model.embed_tokens, QuantizedEmbedding)
        assert torch.equal(model.embed_tokens(ids), weight[ids])
        assert model.embed_tokens(ids).is_contiguous()  # the norm's kernel reads whole rows
        tokens = torch.arange(24) * 11
        torch.testing.assert_close(logits(model, tokens), logits(expected, tokens),
                                   rtol=1e-4, atol=1e-4)  # fmt: skip

    @pytest.mark.parametrize("layer", LAYERS)
    def test_the_dense_matrix_is_gone(self, tiny: TinyModel, layer: type[GPTQLinear]) -> None:
        before, model = dense(tiny.folder), rounded(tiny.folder, layer)
        vocab, hidden = model.config.vocab_size, model.config.hidden_size
        size = packed_bytes(hidden, vocab, group_size=hidden, bits=8)
        size += 4 * hidden if layer is GPTQLinear else 0  # g_idx
        assert model.weight_bytes() == before.weight_bytes() - 4 * vocab * hidden + size
        assert model.device == torch.device("cpu")

    def test_rows_are_rounded_alike_however_many_at_a_time(
        self, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = matrix(rounded(tiny.folder, GPTQLinear))
        monkeypatch.setattr(head, "ROWS", 48)
        assert torch.equal(matrix(rounded(tiny.folder, GPTQLinear)), whole)

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_lower_precision_keeps_its_dtype(self, tiny: TinyModel, dtype: str) -> None:
        model = rounded(tiny.folder, GPTQLinear, dtype)
        assert model.embed_tokens(torch.tensor([3])).dtype == model.dtype
        assert logits(model, torch.arange(5)).dtype == model.dtype


class TestGroups:
    @pytest.mark.parametrize("layer", LAYERS)
    def test_a_ragged_last_group(self, tmp_path: Path, layer: type[GPTQLinear]) -> None:
        """Hidden 192 is a group of 128 and one of 64."""
        config = tiny_config("llama", layers=1, hidden=192, heads=2, kv_heads=1)
        folder = write_checkpoint(tmp_path, config)
        model, weight = rounded(folder, layer), matrix(rounded(folder, GPTQLinear))
        assert (weight - dense(folder).embed_tokens.weight).abs().max() < 0.01
        ids = torch.arange(320)
        assert torch.equal(model.embed_tokens(ids), weight)
        x = torch.randn(2, 192, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(model.logits(x), x @ weight.T, rtol=1e-4, atol=1e-3)


class TestUntied:
    def test_the_embedding_stays(self, tmp_path: Path) -> None:
        folder = write_checkpoint(tmp_path, tiny_config("qwen2", layers=1, tied=False))
        model = rounded(folder, GPTQLinear)
        assert type(model.embed_tokens) is Embedding
        assert isinstance(model.lm_head, GPTQLinear)
        expected = dense(folder)
        assert torch.equal(model.embed_tokens.weight, expected.embed_tokens.weight)
        difference = logits(model, torch.arange(9)) - logits(expected, torch.arange(9))
        assert 0 < difference.abs().max() < 0.5


class TestEngine:
    @pytest.mark.parametrize("quantise", [False, True])
    def test_a_dense_and_a_quantised_model(
        self, tiny: TinyModel, tmp_path: Path, quantise: bool
    ) -> None:
        folder = tiny.folder
        if quantise:
            folder = tmp_path / "model"
            write(tiny.folder, folder, QuantSpec(bits=8, group_size=32))
        plain = LLMEngine(folder, **OPTIONS)
        engine = LLMEngine(folder, head_bits=8, **OPTIONS)
        assert isinstance(engine.model.lm_head, GPTQLinear)
        assert isinstance(plain.model.lm_head, TiedHead)
        assert engine.stats().weight_bytes < plain.stats().weight_bytes
        prompts = tiny.prompts[:2]
        many = engine.generate(prompts, GREEDY)
        for prompt, together in zip(prompts, many, strict=True):
            (alone,) = engine.generate([prompt], GREEDY)
            assert alone.outputs[0].token_ids == together.outputs[0].token_ids
            assert len(alone.outputs[0].token_ids) == 12

    def test_torch_takes_the_reference_wherever_it_runs(self) -> None:
        assert layer_for(torch.device("cuda"), "torch") is GPTQLinear
        assert layer_for(torch.device("cpu"), "auto") is GPTQLinear


class TestRefusals:
    def test_other_bits(self, tiny: TinyModel) -> None:
        with pytest.raises(ConfigError, match="head_bits must be 8 or None, got 4"):
            LLMEngine(tiny.folder, head_bits=4, **OPTIONS)

    def test_a_head_that_is_quantised(self, tmp_path: Path) -> None:
        model = dense_head_again(tmp_path)
        with pytest.raises(ConfigError, match="the checkpoint has a quantised one"):
            round_head(model)

    def test_a_vocabulary_that_fills_no_word(self, tmp_path: Path) -> None:
        folder = write_checkpoint(tmp_path, tiny_config("llama", layers=1, vocab=322))
        with pytest.raises(ConfigError, match="multiples of 4, lm_head is 64 × 322"):
            round_head(load(folder, dtype="float32", device="cpu").model)


def dense_head_again(folder: Path) -> Transformer:
    """A model whose head has been rounded once."""
    model = load(write_checkpoint(folder, tiny_config("llama", layers=1)), device="cpu").model
    round_head(model)
    return model
