"""The tokenizer wrapper: round trips, the chat template, and an error for every bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import CheckpointError, InvalidRequestError
from common.testing.byte_tokenizer import byte_symbols, write_byte_tokenizer
from common.tokenizer import Tokenizer, has_tokenizer

IM_START, IM_END, PAD = 256, 257, 258
VOCAB_SIZE = 320


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_tokenizer(tmp_path_factory.mktemp("bytes"), VOCAB_SIZE)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_pretrained(folder)


def _rewrite_config(source: Path, out: Path, **changes: Any) -> Path:
    """A copy of a tokenizer folder with another ``tokenizer_config.json``."""
    out.mkdir(exist_ok=True)
    (out / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    config = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    config = {key: value for key, value in (config | changes).items() if value is not None}
    (out / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return out


def test_ids_are_bytes(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("Añ\n") == [65, 0xC3, 0xB1, 10]
    assert tokenizer.encode("") == []
    assert tokenizer.vocab_size == VOCAB_SIZE
    assert tokenizer.eos_token_id == IM_END


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_characters="<", exclude_categories=["Cs"])))
def test_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_every_id_of_the_model_decodes(tokenizer: Tokenizer) -> None:
    for token_id in range(VOCAB_SIZE):
        text = tokenizer.token_text(token_id)
        if token_id < 128:
            assert text == chr(token_id)
        elif token_id < 256:
            assert text == "\ufffd"
        else:
            assert text.startswith("<")
            assert tokenizer.decode([65, token_id, 66]) == "AB"
    assert tokenizer.decode([65, VOCAB_SIZE + 7, 66]) == "AB"  # a padding row of the embedding


def test_names_of_special_tokens_are_those_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("a<|im_end|>b") == [97, IM_END, 98]
    assert tokenizer.decode([97, IM_END, 98]) == "ab"
    assert tokenizer.decode([97, IM_END, 98], skip_special_tokens=False) == "a<|im_end|>b"


def test_is_skipped_says_what_decode_leaves_out(tokenizer: Tokenizer) -> None:
    for token_id in (0, 65, 255, IM_START, PAD, VOCAB_SIZE - 1, VOCAB_SIZE, 10**6):
        for skip in (True, False):
            left_out = tokenizer.decode([65, token_id], skip_special_tokens=skip) == "A"
            assert tokenizer.is_skipped(token_id, skip) == left_out


@pytest.mark.parametrize("model_type", ["qwen3", "qwen2", "llama"])
def test_the_model_family_does_not_change_the_tokenizer(
    folder: Path, tmp_path: Path, model_type: str
) -> None:
    """transformers picks a tokenizer class by model type where it may; here it must not."""
    out = _rewrite_config(folder, tmp_path)
    config = {"model_type": model_type, "vocab_size": VOCAB_SIZE}
    (out / "config.json").write_text(json.dumps(config), encoding="utf-8")
    text = "It's 10 €: naïve, 你好 <|im_end|>"
    tokenizer = Tokenizer.from_pretrained(out)
    ids = tokenizer.encode(text)
    assert ids[:-1] == list(text.removesuffix("<|im_end|>").encode())
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.eos_token_id == IM_END


def test_the_smallest_vocabulary_has_no_unused_tokens(tmp_path: Path) -> None:
    assert Tokenizer.from_pretrained(write_byte_tokenizer(tmp_path / "new")).vocab_size == 259
    with pytest.raises(ValueError, match="at least 259"):
        write_byte_tokenizer(tmp_path, 258)


def test_byte_symbols_are_gpt2s() -> None:
    symbols = byte_symbols()
    assert len(set(symbols)) == 256
    assert [symbols[byte] for byte in b" \n!~\x7f\xad"] == ["Ġ", "Ċ", "!", "~", "ġ", "Ń"]


# -------------------------------------------------------------------------------- chat template


def test_chat_template(tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    expected = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
    assert tokenizer.render_chat_template(messages, add_generation_prompt=False) == expected
    ids = tokenizer.apply_chat_template(messages)
    assert ids[:6] == [IM_START, *b"user\n"]
    assert ids[-11:] == [IM_START, *b"assistant\n"]


@pytest.mark.parametrize(
    "messages, message",
    [
        ("Hi", r"list of \{role, content\}, got str"),
        ({"role": "user", "content": "Hi"}, "got dict"),
        ([], "must not be empty"),
        (["Hi"], r"messages\[0\] must be a mapping .* got str"),
        ([{"content": "Hi"}], r"messages\[0\] needs a text 'role', got None"),
        ([{"role": 3, "content": "Hi"}], r"messages\[0\] needs a text 'role', got 3"),
        ([{"role": "user"}], r"messages\[0\] needs a text 'content', got NoneType"),
        (
            [{"role": "user", "content": "Hi"}, {"role": "user", "content": [1]}],
            r"messages\[1\] needs a text 'content', got list",
        ),
    ],
)
def test_malformed_messages(tokenizer: Tokenizer, messages: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        tokenizer.apply_chat_template(messages)


def test_an_option_the_template_does_not_read_is_refused(tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    with pytest.raises(InvalidRequestError, match="no option 'enable_thinking'"):
        tokenizer.apply_chat_template(messages, enable_thinking=False)


def test_an_option_of_the_template_reaches_it(folder: Path, tmp_path: Path) -> None:
    template = "{{ messages[0]['content'] }}{{ '!' if shout }}"
    tokenizer = Tokenizer.from_pretrained(_rewrite_config(folder, tmp_path, chat_template=template))
    messages = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(messages, shout=True) == list(b"Hi!")
    assert tokenizer.apply_chat_template(messages, shout=False) == list(b"Hi")


@pytest.mark.parametrize(
    "template, message",
    [
        ("{{ raise_exception('roles must\nalternate') }}", "refused .*: roles must alternate$"),
        ("{{ 1 + 'a' }}", "refused the messages: unsupported operand"),
        ("{% if %}", "refused the messages: "),
    ],
)
def test_a_template_that_fails(folder: Path, tmp_path: Path, template: str, message: str) -> None:
    tokenizer = Tokenizer.from_pretrained(_rewrite_config(folder, tmp_path, chat_template=template))
    with pytest.raises(InvalidRequestError, match=message):
        tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}])


def test_no_template(folder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(_rewrite_config(folder, tmp_path, chat_template=None))
    assert not tokenizer.has_chat_template
    with pytest.raises(InvalidRequestError, match="no chat template"):
        tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}])


# --------------------------------------------------------------------------------------- errors


def test_text_that_is_no_unicode(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequestError, match=r"lone surrogate '\\udcff' at character 2"):
        tokenizer.encode("ab\udcff")


def test_has_tokenizer(folder: Path, tmp_path: Path) -> None:
    assert has_tokenizer(folder)
    assert not has_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("{}", encoding="utf-8")
    assert not has_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("", encoding="utf-8")
    assert has_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        Tokenizer.from_pretrained(tmp_path)


def test_a_broken_tokenizer_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match="cannot read the tokenizer of") as caught:
        Tokenizer.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_importing_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys\n"
        "import common.tokenizer, common.detokenizer, common.hub, common.embedded_model\n"
        "import common.testing.byte_tokenizer, common.testing.qwen_tokenizer\n"
        "print([m for m in ('torch', 'transformers', 'huggingface_hub') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert run.stdout == "[]\n"
