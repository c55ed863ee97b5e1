"""Incremental detokenisation: whole characters only, stop strings never shown, nothing lost."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer
from transformers import PreTrainedTokenizerFast

from common.detokenizer import IncrementalDetokenizer, find_stop, longest_open_stop
from common.errors import InvalidRequestError
from common.testing.byte_tokenizer import byte_symbols
from common.tokenizer import Tokenizer

FAMILY = "👨\u200d👩\u200d👧\u200d👦"
SAMPLES = (
    "Hello world, it's 2024!\n\tdef f(x):\n        return x ** 2",
    "你好世界。日本語のテキスト。한국어",
    f"emoji {FAMILY} 🇫🇷 🏳️\u200d🌈 and e\u0301 a\u0308\u0323",
    "Ωμέγα ירושלים مرحبا नमस्ते ไทย",
    "a real replacement character: \ufffd, and two: \ufffd\ufffd.",
)


def _wrap(rust: RustTokenizer) -> Tokenizer:
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=rust))  # type: ignore[no-untyped-call]


def _byte_level(merges: Sequence[tuple[str, str]] = ()) -> Tokenizer:
    """Ids below 256 are bytes, then one token per merge, then <end> (special) and <think>."""
    vocab = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    for left, right in merges:
        vocab[left + right] = len(vocab)
    rust = RustTokenizer(models.BPE(vocab=vocab, merges=list(merges)))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    rust.decoder = decoders.ByteLevel()
    rust.add_tokens([AddedToken("<end>", special=True), AddedToken("<think>", special=False)])
    return _wrap(rust)


def _straddling() -> Tokenizer:
    """Tokens that end in the middle of a character: the last byte of 你 with the first of 好."""
    symbols = byte_symbols()
    a, b = (symbols[byte] for byte in ("你".encode()[-1], "好".encode()[0]))
    return _byte_level([(a, b), (symbols[0xF0], symbols[0x9F]), ("a", "b"), ("ab", "c")])


def _byte_fallback() -> Tokenizer:
    """A Llama-2-like decoder: spaces as ▁, unknown characters as byte tokens <0xE4>."""
    vocab = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    for symbol in "▁abcdefghijklmnopqrstuvwxyz.,":
        vocab[symbol] = len(vocab)
    merges = [("▁", "h"), ("▁h", "e"), ("▁", "w")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    rust = RustTokenizer(
        models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>")
    )
    rust.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    rust.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    rust.add_special_tokens([AddedToken("<s>", special=True)])
    return _wrap(rust)


BYTES, STRADDLING, FALLBACK = _byte_level(), _straddling(), _byte_fallback()
END, THINK, UNKNOWN = 256, 257, 300  # ids of BYTES
byte_level = pytest.mark.parametrize("tokenizer", [BYTES, STRADDLING], ids=["bytes", "straddling"])

# Bytes that begin, continue and break UTF-8, more often than chance would give them.
some_bytes = st.one_of(
    st.integers(0, 255),
    st.sampled_from([0x41, 0x80, 0xBF, 0xC3, 0xE4, 0xBD, 0xA0, 0xED, 0xF0, 0x9F, 0xF4, 0xFF]),
)
any_ids = st.lists(st.one_of(some_bytes, st.integers(256, 270)), max_size=60)


def _pieces(detokenizer: IncrementalDetokenizer, ids: Sequence[int]) -> list[str]:
    """Feed ids until a stop string; the pieces, and what flush adds as the last one."""
    pieces = []
    for token_id in ids:
        pieces.append(detokenizer.append(token_id))
        if detokenizer.stop_match is not None:
            break
    return [*pieces, detokenizer.flush()]


@byte_level
@settings(max_examples=150, deadline=None)
@given(ids=any_ids, prompt=any_ids, skip=st.booleans())
@example(ids=[0xFF] * 50, prompt=[], skip=True)
@example(ids=[0xA0, 0x41], prompt=[0xE4, 0xBD], skip=True)  # the prompt ends inside a character
@example(ids=[0xE4, END, 0xBD, END, 0xA0], prompt=[END] * 9, skip=True)
@example(ids=[0xE4, THINK, 0xBD, UNKNOWN, 0xA0], prompt=[0x41], skip=False)
def test_byte_level_pieces_add_up_to_the_whole_decode(
    tokenizer: Tokenizer, ids: list[int], prompt: list[int], skip: bool
) -> None:
    detokenizer = IncrementalDetokenizer(tokenizer, prompt, skip_special_tokens=skip)
    for count, token_id in enumerate(ids, start=1):
        before = detokenizer.text
        piece = detokenizer.append(token_id)
        assert detokenizer.text == before + piece
        # Prompt: nothing waits but what an unfinished character may still become.
        rest = tokenizer.decode(ids[:count], skip).removeprefix(detokenizer.text)
        assert rest in ("", "\ufffd", "\ufffd\ufffd", "\ufffd\ufffd\ufffd")
    detokenizer.flush()
    assert detokenizer.text == tokenizer.decode(ids, skip)


@pytest.mark.parametrize("tokenizer", [BYTES, STRADDLING, FALLBACK], ids=["bytes", "str", "spm"])
@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40), prompt=st.sampled_from(["he", "he will", "", "好"]))
@example(text=SAMPLES[0], prompt="he")
@example(text=SAMPLES[1], prompt="he")
@example(text=SAMPLES[2], prompt="he")
@example(text=SAMPLES[3], prompt="he")
@example(text="你" * 30 + "好", prompt="")
@example(text=" he", prompt="he")
def test_text_streams_in_whole_characters(tokenizer: Tokenizer, text: str, prompt: str) -> None:
    # Byte fallback writes a finished U+FFFD and an unfinished character alike.
    assume(tokenizer is not FALLBACK or "\ufffd" not in text)
    prompt_ids, all_ids = tokenizer.encode(prompt), tokenizer.encode(prompt + text)
    assume(all_ids[: len(prompt_ids)] == prompt_ids)  # no merge across the border
    ids = all_ids[len(prompt_ids) :]
    detokenizer = IncrementalDetokenizer(tokenizer, prompt_ids)
    pieces = [detokenizer.append(token_id) for token_id in ids]
    if "\ufffd" not in text:
        assert "\ufffd" not in "".join(pieces)
    pieces.append(detokenizer.flush())
    whole, start = tokenizer.decode(all_ids), tokenizer.decode(prompt_ids)
    assert "".join(pieces) == detokenizer.text == whole[len(start) :]


def test_byte_level_examples_come_back_in_full() -> None:
    for text in SAMPLES:
        ids = BYTES.encode(text)
        detokenizer = IncrementalDetokenizer(BYTES, [])
        assert "".join(_pieces(detokenizer, ids)) == text


def test_a_character_is_shown_with_its_last_byte() -> None:
    detokenizer = IncrementalDetokenizer(BYTES, BYTES.encode("x"))
    assert [detokenizer.append(byte) for byte in "é你👍".encode()] == [
        *("", "é"),
        *("", "", "你"),
        *("", "", "", "👍"),
    ]


def test_a_leading_space_survives() -> None:
    prompt, ids = FALLBACK.encode("he"), FALLBACK.encode("he world")
    ids = ids[len(prompt) :]
    assert FALLBACK.decode(ids) == "world"  # decoded alone, the words would be glued together
    detokenizer = IncrementalDetokenizer(FALLBACK, prompt)
    assert "".join(_pieces(detokenizer, ids)) == " world"


def test_special_tokens_between_words_do_not_cost_the_space() -> None:
    special = FALLBACK.encode("<s>")[-1:]
    prompt, ids = FALLBACK.encode("he"), FALLBACK.encode("he w")[1:]
    detokenizer = IncrementalDetokenizer(FALLBACK, prompt)
    assert "".join(_pieces(detokenizer, special * 20 + ids)) == " w"


def test_a_broken_byte_does_not_swallow_what_follows() -> None:
    def byte_ids(data: bytes) -> list[int]:
        return [byte + 1 for byte in data]

    a = FALLBACK.encode("a")[-1:]
    you = byte_ids("你".encode())
    for broken in (1, 3, 4, 40):
        detokenizer = IncrementalDetokenizer(FALLBACK, a)
        ids = [*you, *byte_ids(b"\xff" * broken), *a]
        assert "".join(_pieces(detokenizer, ids)) == "你" + "\ufffd" * broken + "a"
    detokenizer = IncrementalDetokenizer(FALLBACK, a)
    assert _pieces(detokenizer, [*you, *byte_ids(b"\xff")]) == ["", "", "你", "", "\ufffd"]


LETTERS = {letter: FALLBACK.encode(letter)[-1] for letter in "bcd"}


@settings(max_examples=150, deadline=None)
@given(parts=st.lists(st.one_of(st.sampled_from("bcd"), st.sampled_from([0x80, 0xBD, 0xE4, 0xFF]))))
def test_byte_fallback_never_loses_a_letter(parts: list[str | int]) -> None:
    ids = [part + 1 if isinstance(part, int) else LETTERS[part] for part in parts]
    detokenizer = IncrementalDetokenizer(FALLBACK, FALLBACK.encode("he"))
    text = "".join(_pieces(detokenizer, ids))
    assert [c for c in text if c.isascii()] == [part for part in parts if isinstance(part, str)]
    assert text == detokenizer.text


class CountingTokenizer(Tokenizer):
    """Counts the tokens it decodes."""

    def __init__(self, inner: Tokenizer) -> None:
        super().__init__(inner._hf)
        self.decoded = 0

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        self.decoded += len(ids)
        return super().decode(ids, skip_special_tokens)


@pytest.mark.parametrize(
    "ids",
    [
        pytest.param([0x41], id="letters"),
        pytest.param(list("好".encode()), id="three bytes a character"),
        pytest.param([0xFF], id="never a character"),
        pytest.param([0x80, 0xE4], id="broken pairs"),
        pytest.param([0xF0, 0x9F, 0x98], id="broken triples"),
        pytest.param([0x80, 0xE4, 0xFF, 0xF0, 0x9F], id="broken five"),
        pytest.param([END], id="special"),
        pytest.param([UNKNOWN], id="outside the vocabulary"),
    ],
)
def test_the_work_per_token_does_not_grow(ids: list[int]) -> None:
    tokenizer = CountingTokenizer(BYTES)
    detokenizer = IncrementalDetokenizer(tokenizer, BYTES.encode("a long prompt " * 100))
    work = []
    for _ in range(4):
        before = tokenizer.decoded
        for step in range(500):
            detokenizer.append(ids[step % len(ids)])
        work.append(tokenizer.decoded - before)
    assert max(work) <= 500 * 30
    assert work[3] <= work[1] * 1.1


# --------------------------------------------------------------------------------- stop strings


def _stop_oracle(
    chunks: Sequence[str], stop: tuple[str, ...], include: bool, min_tokens: int
) -> tuple[str, str | None]:
    """The rule read off its definition: look at every end of the text in turn."""
    text = "".join(chunks)
    first_end = len("".join(chunks[:min_tokens])) + 1
    for end in range(first_end, len(text) + 1):
        for candidate in stop:
            if text[:end].endswith(candidate):
                return (text[:end] if include else text[: end - len(candidate)]), candidate
    return text, None


@settings(max_examples=400, deadline=None)
@given(
    chunks=st.lists(st.sampled_from(["a", "b", "c", "ab", "abc", "x"]), max_size=12),
    stop=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3).map(tuple),
    include=st.booleans(),
    min_tokens=st.integers(0, 4),
)
def test_stop_strings_follow_the_rule(
    chunks: list[str], stop: tuple[str, ...], include: bool, min_tokens: int
) -> None:
    tokenizer = STRADDLING
    vocabulary = {chunk: tokenizer.encode(chunk) for chunk in ("a", "b", "c", "ab", "abc", "x")}
    assert all(len(ids) == 1 for ids in vocabulary.values())  # "abc" is one token
    detokenizer = IncrementalDetokenizer(
        tokenizer,
        [],
        stop=stop,
        include_stop_str_in_output=include,
        min_tokens=min_tokens,
    )
    wanted, match = _stop_oracle(chunks, stop, include, min_tokens)
    seen = ""
    for count, chunk in enumerate(chunks, start=1):
        seen += detokenizer.append(vocabulary[chunk][0])
        assert detokenizer.text == seen
        assert wanted.startswith(seen), "text was shown that does not belong to the output"
        if detokenizer.stop_match is not None:
            break
        text = "".join(chunks[:count])
        held = 0 if include else len(_longest_open_stop_oracle(text, stop))
        assert seen == text[: len(text) - held], "text was held back without need"
    assert seen + detokenizer.flush() == detokenizer.text == wanted
    assert detokenizer.stop_match == match


def _longest_open_stop_oracle(text: str, stop: tuple[str, ...]) -> str:
    starts = {candidate[:n] for candidate in stop for n in range(len(candidate))}
    return max((text[i:] for i in range(len(text) + 1) if text[i:] in starts), key=len)


@pytest.mark.parametrize("include", [False, True])
def test_stop_string_across_token_borders(include: bool) -> None:
    detokenizer = IncrementalDetokenizer(
        BYTES, [], stop=("Observation:",), include_stop_str_in_output=include
    )
    pieces = _pieces(detokenizer, BYTES.encode("Objective.\nObservation: 42"))
    assert detokenizer.stop_match == "Observation:"
    assert detokenizer.text == "Objective.\n" + ("Observation:" if include else "")
    assert "".join(pieces) == detokenizer.text
    # "Ob" waits once, and comes out as soon as "j" shows that it was something else.
    assert pieces[:3] == (["O", "b", "j"] if include else ["", "", "Obj"])


@pytest.mark.parametrize("include", [False, True])
def test_stop_string_inside_one_token(include: bool) -> None:
    token = STRADDLING.encode("abc")
    assert len(token) == 1
    detokenizer = IncrementalDetokenizer(
        STRADDLING, [], stop=("b",), include_stop_str_in_output=include
    )
    assert detokenizer.append(token[0]) == ("ab" if include else "a")
    assert (detokenizer.stop_match, detokenizer.flush()) == ("b", "")


def test_the_match_that_ends_first_wins_then_the_one_named_first() -> None:
    assert find_stop("xabcd", 0, ("abcd", "bc")) == ("bc", 2)
    assert find_stop("xabcd", 0, ("bc", "abc")) == ("bc", 2)
    assert find_stop("xabcd", 0, ("abc", "bc")) == ("abc", 1)
    assert find_stop("aab", 2, ("a", "ab")) == ("ab", 1)  # "a" ended in what was searched before
    assert find_stop("xyz", 0, ("a",)) is None


def test_only_the_beginning_of_a_stop_string_waits() -> None:
    assert longest_open_stop("say abab", ("ababc", "bx")) == "abab"
    assert longest_open_stop("say ab", ("ab",)) == ""  # complete: not the beginning of one
    assert longest_open_stop("aaa", ("aab",)) == "aa"
    assert longest_open_stop("", ("ab",)) == ""


def test_min_tokens_protects_early_text_but_a_match_may_begin_in_it() -> None:
    def run(text: str, min_tokens: int) -> tuple[str, str | None]:
        detokenizer = IncrementalDetokenizer(BYTES, [], stop=("ab",), min_tokens=min_tokens)
        _pieces(detokenizer, BYTES.encode(text))
        return detokenizer.text, detokenizer.stop_match

    assert run("xabyab!", 0) == ("x", "ab")
    assert run("xabyab!", 2) == ("x", "ab")  # ends in the third token
    assert run("xabyab!", 3) == ("xaby", "ab")
    assert run("xabyab!", 6) == ("xabyab!", None)


def test_flush_releases_what_waited() -> None:
    detokenizer = IncrementalDetokenizer(BYTES, [], stop=("STOP",))
    for byte in b"xST\xe4\xbd":
        detokenizer.append(byte)
    assert detokenizer.text == "x"
    assert detokenizer.flush() == "ST\ufffd"
    assert detokenizer.text == "xST\ufffd"


def test_special_tokens_are_shown_on_request() -> None:
    ids = [0x41, END, THINK, 0x42]
    texts = [
        "".join(_pieces(IncrementalDetokenizer(BYTES, [], skip_special_tokens=skip), ids))
        for skip in (True, False)
    ]
    assert texts == ["A<think>B", "A<end><think>B"]


def test_without_a_tokenizer_there_is_no_text() -> None:
    detokenizer = IncrementalDetokenizer(None, [1, 2])
    assert (detokenizer.append(3), detokenizer.flush(), detokenizer.text) == ("", "", "")
    with pytest.raises(InvalidRequestError, match="need a tokenizer"):
        IncrementalDetokenizer(None, [1, 2], stop=("a",))


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="must not be empty"):
        IncrementalDetokenizer(BYTES, [], stop=("a", ""))
