"""Text, stop strings, reasons and times of a request, token by token, with a byte tokenizer."""

from pathlib import Path
from typing import Any

import pytest

from common.output_processor import RequestState
from common.outputs import CompletionOutput, Logprob, RequestMetrics
from common.request import Request, SamplingParams, Sequence, SequenceStatus
from common.stopping import check_stop
from common.testing.byte_tokenizer import write_byte_tokenizer
from common.tokenizer import Tokenizer

EOS = 257  # <|im_end|> of the byte tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = write_byte_tokenizer(tmp_path_factory.mktemp("bytes"), 320)
    return Tokenizer.from_pretrained(folder)


class Run:
    """One request fed with chosen tokens, as an engine would."""

    def __init__(self, tokenizer: Tokenizer | None, **params: Any) -> None:
        merged = {"max_tokens": 50, **params}
        request = Request("r", (72, 105), SamplingParams(**merged), "Hi", arrival_time=1.0)
        count = request.sampling_params.n
        self.sequences = [Sequence(i, request, i) for i in range(count)]
        self.state = RequestState(request, self.sequences, tokenizer)
        self.now = 1.0

    def feed(self, tokens: bytes | list[int], index: int = 0) -> CompletionOutput:
        sequence = self.sequences[index]
        for token in tokens:
            self.now += 1.0
            sequence.append(token, self.now)
            check_stop(sequence, (EOS,), 1000)
            self.state.on_token(sequence)
            if sequence.is_finished:
                break
        return self.state.output().outputs[index]


class TestText:
    def test_grows_with_every_token(self, tokenizer: Tokenizer) -> None:
        run = Run(tokenizer)
        assert [run.feed([byte]).text for byte in b"abc"] == ["a", "ab", "abc"]
        output = run.state.output()
        assert output.outputs[0].token_ids == (97, 98, 99)
        assert output.outputs[0].finish_reason is None
        assert not output.finished
        assert (output.prompt, output.prompt_token_ids) == ("Hi", (72, 105))

    def test_half_a_character_waits(self, tokenizer: Tokenizer) -> None:
        run = Run(tokenizer)
        texts = [run.feed([byte]).text for byte in "aé漢".encode()]
        assert texts == ["a", "a", "aé", "aé", "aé", "aé漢"]

    def test_half_a_character_shows_when_the_end_comes(self, tokenizer: Tokenizer) -> None:
        output = Run(tokenizer, max_tokens=2).feed("é".encode()[:1] + b"\xc3")
        assert output.text.count("�") == len(output.text) > 0
        assert output.finish_reason == "length"

    def test_without_a_tokenizer_text_stays_empty(self) -> None:
        output = Run(None, max_tokens=2).feed(b"ab")
        assert (output.text, output.token_ids) == ("", (97, 98))
        assert output.finish_reason == "length"

    def test_special_tokens(self, tokenizer: Tokenizer) -> None:
        assert Run(tokenizer).feed([97, 256, 98]).text == "ab"
        shown = Run(tokenizer, skip_special_tokens=False).feed([97, 256, 98])
        assert shown.text == "a<|im_start|>b"


class TestEndByToken:
    def test_eos_has_no_text_but_stays_in_the_ids(self, tokenizer: Tokenizer) -> None:
        output = Run(tokenizer, skip_special_tokens=False).feed([97, EOS])
        assert (output.text, output.token_ids) == ("a", (97, EOS))
        assert (output.finish_reason, output.stop_reason) == ("stop", None)

    def test_a_stop_id_has_no_text_either(self, tokenizer: Tokenizer) -> None:
        output = Run(tokenizer, stop_token_ids=(98,)).feed(b"abc")
        assert (output.text, output.stop_reason) == ("a", 98)

    def test_unless_it_is_to_be_included(self, tokenizer: Tokenizer) -> None:
        params = {"include_stop_str_in_output": True, "skip_special_tokens": False}
        assert Run(tokenizer, stop_token_ids=(98,), **params).feed(b"abc").text == "ab"
        assert Run(tokenizer, **params).feed([97, EOS]).text == "a<|im_end|>"

    def test_length_keeps_the_last_tokens_text(self, tokenizer: Tokenizer) -> None:
        output = Run(tokenizer, max_tokens=2).feed(b"abc")
        assert (output.text, output.finish_reason) == ("ab", "length")


class TestStopStrings:
    def test_across_token_borders(self, tokenizer: Tokenizer) -> None:
        run = Run(tokenizer, stop="END")
        assert [run.feed([byte]).text for byte in b"xEN"] == ["x", "x", "x"]
        output = run.feed(b"D...")
        assert (output.text, output.finish_reason, output.stop_reason) == ("x", "stop", "END")
        assert output.token_ids == tuple(b"xEND")

    def test_what_was_held_back_is_released(self, tokenizer: Tokenizer) -> None:
        run = Run(tokenizer, stop="END")
        assert run.feed(b"xEN").text == "x"
        assert run.feed(b"s").text == "xENs"

    def test_and_at_the_end_of_the_sequence(self, tokenizer: Tokenizer) -> None:
        assert Run(tokenizer, stop="END", max_tokens=3).feed(b"xEN").text == "xEN"
        assert Run(tokenizer, stop="END").feed([*b"xEN", EOS]).text == "xEN"

    def test_included(self, tokenizer: Tokenizer) -> None:
        output = Run(tokenizer, stop="END", include_stop_str_in_output=True).feed(b"xEND.")
        assert (output.text, output.stop_reason) == ("xEND", "END")

    def test_a_match_in_the_last_place_counts_as_stop(self, tokenizer: Tokenizer) -> None:
        output = Run(tokenizer, stop="b", max_tokens=2).feed(b"ab")
        assert (output.text, output.finish_reason, output.stop_reason) == ("a", "stop", "b")

    def test_not_within_min_tokens(self, tokenizer: Tokenizer) -> None:
        output = Run(tokenizer, stop="b", min_tokens=3, max_tokens=9).feed(b"abbb.")
        assert (output.text, output.token_ids) == ("abb", tuple(b"abbb"))

    def test_abort_releases_the_text(self, tokenizer: Tokenizer) -> None:
        run = Run(tokenizer, stop="END")
        run.feed(b"xE")
        run.sequences[0].finish(SequenceStatus.FINISHED_ABORTED)
        run.state.close(run.sequences[0])
        output = run.state.output()
        assert output.outputs[0].text == "xE"
        assert output.outputs[0].finish_reason == "abort"
        assert output.finished


class TestSeveralCompletions:
    def test_each_has_its_own_text_and_end(self, tokenizer: Tokenizer) -> None:
        run = Run(tokenizer, n=2, stop="!")
        run.feed(b"ab!", index=1)
        assert not run.state.finished
        assert run.state.finished_time is None
        run.feed([*b"c", EOS], index=0)
        output = run.state.output()
        assert [o.text for o in output.outputs] == ["c", "ab"]
        assert [o.index for o in output.outputs] == [0, 1]
        assert [o.stop_reason for o in output.outputs] == [None, "!"]
        assert output.finished
        assert output.metrics.finished_time == run.now
        assert run.state.num_output_tokens == 5


class TestMetrics:
    def test_times_of_completion_zero(self, tokenizer: Tokenizer) -> None:
        run = Run(tokenizer, max_tokens=3)
        run.state.num_cached_tokens = 1
        run.feed(b"abc")
        metrics = run.state.output().metrics
        assert metrics == RequestMetrics(1.0, (2.0, 3.0, 4.0), 4.0, 1)
        assert (metrics.ttft, metrics.tpot, metrics.itl) == (1.0, 1.0, (1.0, 1.0))

    def test_aborted_before_the_first_token(self) -> None:
        run = Run(None)
        run.sequences[0].finish(SequenceStatus.FINISHED_ABORTED)
        run.state.close(run.sequences[0])
        metrics = run.state.output().metrics
        assert metrics.finished_time == metrics.arrival_time == 1.0
        assert (metrics.ttft, metrics.tpot, metrics.itl) == (None, None, ())

    def test_one_token_has_no_pace(self) -> None:
        metrics = RequestMetrics(1.0, (1.5,))
        assert (metrics.ttft, metrics.tpot, metrics.itl) == (0.5, None, ())

    def test_tpot_divides_by_the_gaps_not_by_the_tokens(self) -> None:
        metrics = RequestMetrics(0.0, (10.0, 11.0, 15.0))
        assert metrics.tpot == 2.5
        assert metrics.itl == (1.0, 4.0)


def test_logprobs_are_shown_to_those_who_asked() -> None:
    for asked in (None, 0):
        run = Run(None, logprobs=asked)
        run.sequences[0].logprobs.append({97: Logprob(-0.5, 1)})
        output = run.feed(b"a")
        assert output.logprobs == (None if asked is None else ({97: Logprob(-0.5, 1)},))
