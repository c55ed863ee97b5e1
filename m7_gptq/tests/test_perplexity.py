"""Sliding-window perplexity against sums written out, and the vendored texts."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from common.errors import CheckpointError, ConfigError
from common.model.transformer import Transformer
from common.testing.fixtures import TinyModel
from common.tokenizer import Tokenizer
from m0_init.loader import load
from m7_gptq.perplexity import Perplexity, perplexity
from m7_gptq.texts import (
    CALIBRATIONS,
    EVALUATION,
    FOLDER,
    Text,
    mixed_batches,
    token_batches,
)


@pytest.fixture(scope="module")
def model(tiny: TinyModel) -> Transformer:
    return load(tiny.folder, dtype="float32", device="cpu").model


IDS = torch.randint(256, (23,), generator=torch.Generator().manual_seed(0)).tolist()


def nll(tiny: TinyModel, context: list[int], token: int) -> float:
    """−log p of one token after a context, by transformers."""
    logits = tiny.oracle.hidden_states(context).logits[-1]
    return -float(torch.log_softmax(logits.double(), dim=-1)[token])


class TestAgainstSumsWrittenOut:
    def test_three_tokens(self, tiny: TinyModel, model: Transformer) -> None:
        a, b, c = IDS[:3]
        expected = nll(tiny, [a], b) + nll(tiny, [a, b], c)
        found = perplexity(model, [a, b, c], window=3, stride=1)
        assert found.num_tokens == 2
        assert found.nll == pytest.approx(expected, rel=1e-5)
        assert found.value == pytest.approx(math.exp(expected / 2), rel=1e-5)

    @pytest.mark.parametrize(("window", "stride"), [(8, 1), (8, 3), (8, 7), (2, 1)])
    def test_each_token_is_scored_once_with_its_windows_context(
        self, tiny: TinyModel, model: Transformer, window: int, stride: int
    ) -> None:
        """A token at place t belongs to the first window that reaches it."""
        ids, expected, start = IDS[:14], 0.0, 0
        for place in range(1, len(ids)):
            if place >= start + window:
                start += stride
            expected += nll(tiny, ids[start:place], ids[place])
        found = perplexity(model, ids, window=window, stride=stride)
        assert found.num_tokens == len(ids) - 1
        assert found.nll == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("stride", [1, 5, 22])
    def test_the_stride_is_nothing_to_a_window_that_covers_all(
        self, model: Transformer, stride: int
    ) -> None:
        whole = perplexity(model, IDS, window=len(IDS), stride=len(IDS) - 1)
        assert perplexity(model, IDS, window=len(IDS) + 9, stride=stride) == whole

    def test_logits_in_several_pieces(
        self, model: Transformer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = perplexity(model, IDS, window=16, stride=8)
        monkeypatch.setattr("m7_gptq.perplexity.ROWS", 3)
        parts = perplexity(model, IDS, window=16, stride=8)
        assert parts.nll == pytest.approx(whole.nll, rel=1e-6)


class TestBounds:
    def test_a_uniform_guess_costs_the_vocabulary(self, tiny: TinyModel) -> None:
        model = load(tiny.folder, dtype="float32", device="cpu").model
        model.embed_tokens.weight.data.zero_()  # tied: all logits are 0
        assert perplexity(model, IDS, window=8, stride=4).value == pytest.approx(320)

    def test_value(self) -> None:
        assert Perplexity(nll=2 * math.log(7), num_tokens=2).value == pytest.approx(7)

    @pytest.mark.parametrize(
        ("count", "window", "stride", "message"),
        [
            (23, 1, 1, r"window must be in \[2, 512\], got 1"),
            (23, 513, 1, r"window must be in \[2, 512\], got 513"),
            (23, 8, 0, r"stride must be in \[1, 7\]"),
            (23, 8, 8, r"stride must be in \[1, 7\] \(window − 1\), got 8"),
            (1, 8, 4, "at least 2 tokens is needed, got 1"),
        ],
    )
    def test_sizes_outside_their_range(
        self, model: Transformer, count: int, window: int, stride: int, message: str
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            perplexity(model, IDS[:count], window=window, stride=stride)


class TestTexts:
    def test_every_text_is_the_one_that_was_hashed(self) -> None:
        texts = [*CALIBRATIONS.values(), *EVALUATION.values()]
        assert {text.file for text in texts} == {path.name for path in FOLDER.glob("*_*.txt")}
        sizes = [len(text.read()) for text in texts]
        assert all(size > 90_000 for size in sizes[:2])
        assert all(size > 25_000 for size in sizes[2:])

    def test_a_changed_file_is_refused(self) -> None:
        with pytest.raises(CheckpointError, match="expected 000000"):
            Text(CALIBRATIONS["python"].file, "0" * 64).read()

    def test_calibration_and_evaluation_share_no_passage(self) -> None:
        """No run of twelve words; a traceback's first lines are shorter."""
        seen = set[tuple[str, ...]]().union(*(_runs(text.read()) for text in CALIBRATIONS.values()))
        for text in EVALUATION.values():
            runs = _runs(text.read())
            assert len(runs) > 3_000
            assert not seen & runs

    def test_sources_name_every_file(self) -> None:
        sources = (FOLDER / "SOURCES.md").read_text(encoding="utf-8")
        for text in (*CALIBRATIONS.values(), *EVALUATION.values()):
            assert f"`{text.file}`" in sources
        assert "LICENSE-PSF.txt" in sources
        assert "PYTHON SOFTWARE FOUNDATION LICENSE" in (FOLDER / "LICENSE-PSF.txt").read_text()


class TestTokenBatches:
    @pytest.fixture
    def tokenizer(self, tiny: TinyModel) -> Tokenizer:
        return tiny.tokenizer

    def test_spread_evenly_and_not_overlapping(self, tokenizer: Tokenizer) -> None:
        text = "".join(chr(97 + place % 26) for place in range(100))  # one token a character
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert len(ids) == 100
        samples = token_batches(tokenizer, text, num_samples=3, seq_len=20)
        assert samples == [ids[0:20], ids[33:53], ids[66:86]]

    def test_the_whole_text_is_enough(self, tokenizer: Tokenizer) -> None:
        text = "abcdefgh" * 2
        samples = token_batches(tokenizer, text, num_samples=2, seq_len=8)
        assert samples == [tokenizer.encode("abcdefgh", add_special_tokens=False)] * 2

    def test_several_texts_share_the_samples(self, tokenizer: Tokenizer) -> None:
        texts = ["a" * 30, "b" * 30, "c" * 30]
        samples = mixed_batches(tokenizer, texts, num_samples=5, seq_len=4)
        kinds = [tokenizer.decode(sample) for sample in samples]
        assert kinds == ["aaaa", "aaaa", "bbbb", "bbbb", "cccc"]
        assert len(mixed_batches(tokenizer, texts, num_samples=1, seq_len=4)) == 1
        with pytest.raises(ConfigError, match="at least 1"):
            mixed_batches(tokenizer, texts, num_samples=0, seq_len=4)

    def test_a_text_that_is_too_short_is_refused(self, tokenizer: Tokenizer) -> None:
        with pytest.raises(ConfigError, match=r"2 samples of 9 tokens need 18 tokens, .* has 17"):
            token_batches(tokenizer, "x" * 17, num_samples=2, seq_len=9)

    @pytest.mark.parametrize(("samples", "length"), [(0, 8), (8, 0)])
    def test_counts_below_one_are_refused(
        self, tokenizer: Tokenizer, samples: int, length: int
    ) -> None:
        with pytest.raises(ConfigError, match="at least 1"):
            token_batches(tokenizer, "x" * 17, num_samples=samples, seq_len=length)


def _runs(text: str, length: int = 12) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def test_paths_are_inside_the_package() -> None:
    assert Path(__file__).parent.parent / "data" == FOLDER
