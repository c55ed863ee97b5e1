"""The embedded model: real text, token for token what transformers generates.

Greedy ids can only be compared where the best logit leads the second by more than float32
rounding. Eighteen prompts were tried over 32 tokens; the smallest lead of any was 0.0037, so none
had to be left out. The ten here cover chat, code, lists, data and four languages; each checks its
own lead.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from common.request import SamplingParams
from common.testing.oracle import MIN_MARGIN, HFOracle
from m1_basic.engine import LLMEngine

NEW_TOKENS = 24


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


PROMPTS: dict[str, str | list[dict[str, str]]] = {
    "explanation": chat("Explain in two sentences why the sky is blue."),
    "program": chat("Write a Python function that returns the n-th Fibonacci number."),
    "translation": chat("Translate to French: Where is the train station?"),
    "arithmetic": chat("I have three apples and eat one. How many are left?"),
    "code": "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "list": "The following is a list of the planets of the solar system:\n- Mercury\n- Venus\n",
    "json": '{"name": "Ada", "born": 1815, "field":',
    "french": "Il était une fois, dans un petit village,",
    "chinese": "机器学习是",
    "russian": "Привет, как",
}


@pytest.fixture(scope="module")
def engine(smollm2: Path) -> LLMEngine:
    return LLMEngine(smollm2, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def oracle(smollm2: Path) -> HFOracle:
    return HFOracle(smollm2)


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_greedy_ids_equal_transformers(
    engine: LLMEngine, oracle: HFOracle, prompt: str | list[dict[str, str]]
) -> None:
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS)
    [output] = engine.generate([prompt], params)
    ids, [completion] = output.prompt_token_ids, output.outputs
    expected = oracle.greedy(ids, NEW_TOKENS, eos=engine.eos_token_ids)
    assert completion.token_ids == tuple(expected)
    assert completion.finish_reason == ("length" if len(expected) == NEW_TOKENS else "stop")
    # The prompt was a fair one: the reference decides each of these steps clearly.
    logits = oracle.hidden_states([*ids, *expected]).logits[len(ids) - 1 : -1]
    best, second = logits.topk(2).values.unbind(dim=-1)
    assert float((best - second).min()) > MIN_MARGIN


def test_it_names_the_capital_of_france(engine: LLMEngine) -> None:
    question = chat("What is the capital of France?")
    [output] = engine.generate([question], SamplingParams(temperature=0, max_tokens=32))
    assert output.outputs[0].text == "The capital of France is Paris."
    assert output.outputs[0].finish_reason == "stop"
    assert output.outputs[0].token_ids[-1] in engine.eos_token_ids


def test_seeded_sampling_equals_transformers(engine: LLMEngine, oracle: HFOracle) -> None:
    filters = {"temperature": 0.8, "top_k": 50, "top_p": 0.9}
    [output] = engine.generate(
        [chat("Tell me a short story about a lighthouse.")],
        SamplingParams(seed=11, max_tokens=NEW_TOKENS, ignore_eos=True, **filters),  # type: ignore[arg-type]
    )
    expected = oracle.sample(output.prompt_token_ids, NEW_TOKENS, seed=11, **filters)  # type: ignore[arg-type]
    assert output.outputs[0].token_ids == tuple(expected)
    greedy = oracle.greedy(output.prompt_token_ids, NEW_TOKENS)
    assert expected != greedy, "a draw that follows the argmax throughout would prove little"


@pytest.mark.parametrize("text", ["Straße 42, naïve café", "你好 世界", "a  b\n\n\tc", "👩‍👩‍👧 ok"])
def test_text_survives_the_way_through_the_engine(engine: LLMEngine, text: str) -> None:
    assert engine.tokenizer is not None
    [output] = engine.generate([text], SamplingParams(temperature=0, max_tokens=1))
    assert output.prompt == text
    assert output.prompt_token_ids == tuple(engine.tokenizer.encode(text))
    assert engine.tokenizer.decode(output.prompt_token_ids) == text
