"""The KV cache changes what is computed, never what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.errors import InvalidRequestError
from common.model_costs import kv_bytes
from common.request import SamplingParams
from common.testing.checkpoints import tiny_config, write_checkpoint
from common.testing.conformance import build, ids_of
from common.testing.fixtures import FAMILIES, TinyModel
from common.testing.oracle import HFOracle
from m1_basic.attention import CachedAttend, UncachedAttend
from m1_basic.engine import LLMEngine

LENGTH = 40


def greedy(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)


def make(model: TinyModel, **options: Any) -> LLMEngine:
    engine: LLMEngine = build("m1_basic", model, **options)
    return engine


@torch.inference_mode()
def cached_logits(engine: LLMEngine, ids: Sequence[int], passes: Sequence[int]) -> Tensor:
    """Logits ``[len(ids), vocab]``, computed in passes of the given lengths over the cache."""
    assert engine.cache is not None
    rows, start = [], 0
    for count in passes:
        part = torch.tensor(ids[start : start + count])
        positions = torch.arange(start, start + count)
        hidden = engine.model(part, positions, CachedAttend(engine.cache, start))
        rows.append(engine.model.logits(hidden))
        start += count
    return torch.cat(rows)


@torch.inference_mode()
def recomputed_logits(engine: LLMEngine, ids: Sequence[int]) -> Tensor:
    """Logits ``[len(ids), vocab]``; row t from a pass of its own over tokens 0 … t."""
    rows = []
    for end in range(1, len(ids) + 1):
        hidden = engine.model(torch.tensor(ids[:end]), torch.arange(end), UncachedAttend())
        rows.append(engine.model.logits(hidden[-1:]))
    return torch.cat(rows)


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest magnitude."""
    return float((found.float() - expected).abs().max() / expected.abs().max())


def rms_error(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of the expected values."""
    return float((found.float() - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    "passes",
    [(1,) * LENGTH, (LENGTH,), (25, *(1,) * 15), (7, 13, 1, 19)],
    ids=["token-by-token", "one-pass", "prefill-decode", "chunks"],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_logits_equal_full_recomputation_at_every_position(
    tiny_models: dict[str, TinyModel], family: str, passes: tuple[int, ...]
) -> None:
    model = tiny_models[family]
    engine = make(model, max_model_len=LENGTH)
    prompt = model.prompts[2]
    ids = [*prompt, *model.oracle.greedy(prompt, LENGTH - len(prompt))]
    expected = recomputed_logits(engine, ids)
    found = cached_logits(engine, ids, passes)
    for position in range(LENGTH):
        assert relative(found[position], expected[position]) < 1e-5, position


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_ids_with_and_without_the_cache(
    tiny_models: dict[str, TinyModel], family: str
) -> None:
    model = tiny_models[family]
    params = [greedy(20), SamplingParams(seed=5, max_tokens=20, top_p=0.9, ignore_eos=True)]
    with_cache, without = (
        make(model, use_cache=on).generate(model.prompts[1:3], params) for on in (True, False)
    )
    assert ids_of(with_cache) == ids_of(without)


class TestPlaces:
    """Which places of the cache an engine writes; NaN marks those it never touched."""

    LIMIT = 32

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, tiny: TinyModel) -> LLMEngine:
        return make(tiny, max_model_len=cls.LIMIT)

    def written(self, engine: LLMEngine, num_prompt: int, max_tokens: int) -> tuple[int, int]:
        """Run a request over a cache full of NaN; returns (places written, tokens generated)."""
        assert engine.cache is not None
        engine.cache.kv.fill_(float("nan"))
        prompt = list(range(1, num_prompt + 1))
        [output] = engine.generate([prompt], greedy(max_tokens))
        full = ~engine.cache.kv.isnan().any(dim=(0, 1, 3, 4))  # every layer, K and V
        empty = engine.cache.kv.isnan().all(dim=(0, 1, 3, 4))
        assert torch.equal(full, ~empty), "a place is written as a whole or not at all"
        count = int(full.sum())
        assert bool(full[:count].all()), "places are written from the left, without a gap"
        return count, len(output.outputs[0].token_ids)

    def test_one_token_goes_to_the_first_place(self, engine: LLMEngine) -> None:
        assert self.written(engine, 1, 1) == (1, 1)

    def test_the_last_token_of_an_output_is_never_stored(self, engine: LLMEngine) -> None:
        assert self.written(engine, 5, 4) == (5 + 3, 4)

    @pytest.mark.parametrize("num_prompt", [LIMIT - 1, LIMIT - 2, LIMIT - 3, 1])
    def test_the_context_ends_the_output_before_the_cache_overflows(
        self, engine: LLMEngine, num_prompt: int
    ) -> None:
        expected = (self.LIMIT - 1, self.LIMIT - num_prompt)
        assert self.written(engine, num_prompt, 64) == expected

    def test_a_prompt_without_room_for_one_token_is_refused(self, engine: LLMEngine) -> None:
        with pytest.raises(InvalidRequestError, match=r"32 tokens.*max_model_len \(32\)"):
            engine.generate([list(range(self.LIMIT))], greedy(1))

    def test_a_full_cache_gives_the_ids_of_recomputation(
        self, engine: LLMEngine, tiny: TinyModel
    ) -> None:
        prompt = tiny.prompts[1]
        expected = tiny.oracle.greedy(prompt, self.LIMIT - len(prompt))
        assert engine.generate([prompt], greedy(64))[0].outputs[0].token_ids == tuple(expected)

    def test_nothing_of_the_request_before_is_read(
        self, engine: LLMEngine, tiny: TinyModel
    ) -> None:
        params = greedy(6)
        engine.generate([list(range(200, 200 + self.LIMIT - 1))], greedy(1))
        after_another = engine.generate([tiny.prompts[2]], params)
        assert engine.cache is not None
        engine.cache.kv.fill_(float("nan"))
        assert ids_of(engine.generate([tiny.prompts[2]], params)) == ids_of(after_another)


class TestCompletions:
    def test_each_of_n_completions_starts_from_the_prompt_again(self, tiny: TinyModel) -> None:
        engine = make(tiny)
        params = SamplingParams(n=3, seed=1, max_tokens=10, logprobs=0, ignore_eos=True)
        [output] = engine.generate([tiny.prompts[2]], params)
        first = {c.index: c.logprobs[0] for c in output.outputs if c.logprobs is not None}
        logits = torch.log_softmax(tiny.oracle.hidden_states(tiny.prompts[2]).logits[-1], dim=-1)
        for completion in output.outputs:
            token = completion.token_ids[0]
            expected = float(logits[token])
            assert first[completion.index][token].logprob == pytest.approx(expected, abs=1e-4)
        assert len({completion.token_ids for completion in output.outputs}) == 3
        stats = engine.stats()
        assert (stats.num_requests, stats.num_steps, stats.generated_tokens) == (1, 30, 30)


class TestText:
    @pytest.mark.parametrize(
        "text", ["plain", "zwölf Boxkämpfer", "你好\n\t🙂", " leading, trailing "]
    )
    def test_text_makes_the_round_trip(self, tiny: TinyModel, text: str) -> None:
        engine = make(tiny)
        assert engine.tokenizer is not None
        [output] = engine.generate([text], greedy(8))
        assert output.prompt == text
        assert engine.tokenizer.decode(output.prompt_token_ids) == text
        [completion] = output.outputs
        assert completion.text == engine.tokenizer.decode(completion.token_ids)

    def test_special_tokens_are_left_out_unless_asked_for(self, tiny: TinyModel) -> None:
        engine = make(tiny)
        assert engine.tokenizer is not None
        prompt, path = tiny.prompts[0], tiny.oracle.greedy(tiny.prompts[0], 64)
        assert any(token >= 256 for token in path), "this path passes a special token"
        for skip in (True, False):
            params = SamplingParams(
                temperature=0, max_tokens=64, ignore_eos=True, skip_special_tokens=skip
            )
            [output] = engine.generate([prompt], params)
            expected = engine.tokenizer.decode(path, skip_special_tokens=skip)
            assert output.outputs[0].text == expected


class TestWithoutTokenizer:
    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return write_checkpoint(tmp_path_factory.mktemp("ids-only"), tiny_config("llama"))

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, folder: Path) -> LLMEngine:
        return LLMEngine(folder, device="cpu")

    def test_ids_go_in_and_out(self, engine: LLMEngine) -> None:
        params = SamplingParams(temperature=0, max_tokens=5, logprobs=1)
        [output] = engine.generate([[3, 1, 4]], params)
        [completion] = output.outputs
        assert (output.prompt, completion.text) == (None, "")
        assert len(completion.token_ids) == 5
        assert completion.logprobs is not None
        assert {e.decoded_token for row in completion.logprobs for e in row.values()} == {None}

    @pytest.mark.parametrize(
        ("prompt", "params", "message"),
        [
            ("text", {}, "no tokenizer: pass token ids"),
            ([[{"role": "user", "content": "text"}]], {}, "no tokenizer: pass token ids"),
            ([[1, 2]], {"stop": "x"}, "stop strings need a tokenizer"),
        ],
        ids=["text", "chat", "stop"],
    )
    def test_what_needs_text_is_refused(
        self, engine: LLMEngine, prompt: Any, params: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(InvalidRequestError, match=message):
            engine.generate(prompt, SamplingParams(**params))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_stays_near_float32(
    tiny_models: dict[str, TinyModel], family: str, dtype: str
) -> None:
    # Random weights amplify rounding, so two bounds: 16 roundings' worth (6 % in bfloat16, 0.8 % in
    # float16) of the logits' size, and half as much again as transformers loses in the same dtype.
    bound = 16 * {"bfloat16": 2.0**-8, "float16": 2.0**-11}[dtype]
    model = tiny_models[family]
    engine = make(model, dtype=dtype)
    ids = model.prompts[3]
    exact = model.oracle.hidden_states(ids).logits
    found = cached_logits(engine, ids, (20, *(1,) * (len(ids) - 20)))
    theirs = HFOracle(model.folder, dtype=dtype).hidden_states(ids).logits
    assert found.dtype == theirs.dtype == getattr(torch, dtype)
    assert rms_error(found, exact) < min(bound, 1.5 * rms_error(theirs, exact))
    [output] = engine.generate([ids], greedy(8))
    assert len(output.outputs[0].token_ids) == 8
    assert engine.stats().kv_bytes == kv_bytes(engine.model.config, engine.max_model_len, dtype)
