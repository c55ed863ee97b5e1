"""SamplingParams' ranges, and the counters and states of a Sequence."""

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given

from common.errors import InvalidRequestError
from common.request import Request, SamplingParams, Sequence, SequenceStatus
from common.seeds import sequence_seed
from common.testing.strategies import sampling_params

ACCEPTED: dict[str, list[Any]] = {
    "n": [1, 2, 1000],
    "temperature": [0, 0.0, 1e-6, 1e-5, 1, 2.5, 1e6],
    "top_k": [-1, 0, 1, 10**9],
    "top_p": [1e-9, 0.5, 1, 1.0],
    "min_p": [0, 0.0, 0.5, 1.0],
    "presence_penalty": [-2, -2.0, 0, 2.0],
    "frequency_penalty": [-2, -2.0, 0, 2.0],
    "repetition_penalty": [1e-9, 1, 1.0, 100.0],
    "seed": [None, 0, 2**63 - 1],
    "max_tokens": [1, 10**9],
    "min_tokens": [0, 16],
    "stop": ["a", "\n", (), ("a",), ["a", "bc"], None],
    "stop_token_ids": [(), (0,), [5, 6], None],
    "ignore_eos": [False, True],
    "logprobs": [None, 0, 20],
    "skip_special_tokens": [False, True],
    "include_stop_str_in_output": [False, True],
}
INF, NAN = math.inf, math.nan
REFUSED: list[tuple[str, list[Any], str]] = [
    ("n", [0, -1, 1.0, True, "2", None], "n must be an integer of at least 1, got "),
    ("temperature", [-0.1, -1e-9, INF, NAN, "1", None, True], r"temperature must be in \[0, inf\)"),
    ("top_k", [-2, 1.5, True, "5"], "top_k must be an integer of at least -1, got "),
    ("top_p", [0, 0.0, -0.5, 1.0001, NAN, "x"], r"top_p must be in \(0, 1\], got "),
    ("min_p", [-0.1, 1.1, NAN, True], r"min_p must be in \[0, 1\], got "),
    ("presence_penalty", [-2.1, 2.1, NAN, INF], r"presence_penalty must be in \[-2, 2\], got "),
    ("frequency_penalty", [-2.1, 2.1, NAN, INF], r"frequency_penalty must be in \[-2, 2\], got "),
    ("repetition_penalty", [0, -1, INF, NAN], r"repetition_penalty must be in \(0, inf\), got "),
    ("seed", [-1, 2**63, 1.0, "1", True], r"seed must be an integer in \[0, 9223372036854775807\]"),
    ("max_tokens", [0, -5, 1.5, None, True], "max_tokens must be an integer of at least 1, got "),
    ("min_tokens", [-1, 0.5, True], "min_tokens must be an integer of at least 0, got "),
    ("min_tokens", [17], r"min_tokens \(17\) must not exceed max_tokens \(16\)"),
    ("stop", ["", ("",), ("a", ""), [3]], "stop must hold non-empty strings, got "),
    ("stop", [3, 1.5, True], "stop must be a list, got "),
    ("stop_token_ids", [3, True], "stop_token_ids must be a list, got "),
    ("ignore_eos", [1, "no", None], "ignore_eos must be True or False, got "),
    ("skip_special_tokens", [0], "skip_special_tokens must be True or False, got 0"),
    ("include_stop_str_in_output", [0], "include_stop_str_in_output must be True or False"),
    ("stop_token_ids", [(-1,), ("a",), (1.0,)], "stop_token_ids must be an integer of at least 0"),
    ("logprobs", [-1, 21, 1.0, True], r"logprobs must be an integer in \[0, 20\], got "),
]


class TestSamplingParams:
    def test_every_field_is_covered_here(self) -> None:
        names = {field.name for field in dataclasses.fields(SamplingParams)}
        assert set(ACCEPTED) == names
        assert {name for name, _, _ in REFUSED} == names

    @pytest.mark.parametrize(
        "name, value", [(name, value) for name, values in ACCEPTED.items() for value in values]
    )
    def test_accepted(self, name: str, value: Any) -> None:
        params = SamplingParams(**{name: value})
        kept = getattr(params, name)
        if name == "stop":
            assert kept == ((value,) if isinstance(value, str) else tuple(value or ()))
            assert params.stop_strings == kept
        elif name == "stop_token_ids":
            assert kept == tuple(value or ())
        else:
            assert kept == value

    @pytest.mark.parametrize(
        "name, value, message",
        [(name, value, message) for name, values, message in REFUSED for value in values],
    )
    def test_refused(self, name: str, value: Any, message: str) -> None:
        with pytest.raises(InvalidRequestError, match=message):
            SamplingParams(**{name: value})

    def test_the_message_shows_the_value(self) -> None:
        with pytest.raises(InvalidRequestError, match=r"got 1\.5$"):
            SamplingParams(top_p=1.5)

    def test_greedy_below_one_hundred_thousandth(self) -> None:
        assert SamplingParams(temperature=0).is_greedy
        assert SamplingParams(temperature=9e-6).is_greedy
        assert not SamplingParams(temperature=1e-5).is_greedy
        assert not SamplingParams().is_greedy

    def test_several_greedy_completions_would_all_be_equal(self) -> None:
        with pytest.raises(InvalidRequestError, match=r"n must be 1 .* \(temperature 0\), got 2"):
            SamplingParams(n=2, temperature=0)

    def test_frozen_and_hashable(self) -> None:
        params = SamplingParams(stop=["a"], stop_token_ids=[1])  # type: ignore[arg-type]
        assert {params: 1}[SamplingParams(stop=("a",), stop_token_ids=(1,))] == 1
        with pytest.raises(dataclasses.FrozenInstanceError):
            params.n = 3  # type: ignore[misc]

    @given(sampling_params())
    def test_the_strategy_draws_valid_parameters(self, params: SamplingParams) -> None:
        assert dataclasses.replace(params) == params
        assert params.min_tokens <= params.max_tokens


def make(prompt: tuple[int, ...] = (1, 2, 3), index: int = 0, **params: Any) -> Sequence:
    return Sequence(7, Request("r", prompt, SamplingParams(**params)), index)


class TestSequence:
    def test_starts_with_the_prompt(self) -> None:
        sequence = make()
        assert sequence.token_ids == [1, 2, 3]
        assert (sequence.num_tokens, sequence.num_prompt_tokens) == (3, 3)
        assert (sequence.num_output_tokens, sequence.num_computed_tokens) == (0, 0)
        assert sequence.output_token_ids == []
        assert sequence.status is SequenceStatus.WAITING
        assert not sequence.is_finished

    def test_append_counts_and_remembers_the_time(self) -> None:
        sequence = make()
        sequence.append(9, 1.5)
        sequence.append(8, 2.5)
        assert sequence.token_ids == [1, 2, 3, 9, 8]
        assert sequence.output_token_ids == [9, 8]
        assert (sequence.num_tokens, sequence.num_output_tokens) == (5, 2)
        assert sequence.token_times == [1.5, 2.5]

    def test_two_sequences_of_a_request_do_not_share_state(self) -> None:
        request = Request("r", (1, 2), SamplingParams(n=2))
        first, second = Sequence(0, request, 0), Sequence(1, request, 1)
        first.append(5, 0.0)
        assert second.token_ids == [1, 2]
        assert request.prompt_token_ids == (1, 2)

    def test_output_ids_are_a_copy(self) -> None:
        sequence = make()
        sequence.append(4, 0.0)
        sequence.output_token_ids.append(99)
        assert sequence.output_token_ids == [4]

    def test_finish_keeps_the_reason(self) -> None:
        sequence = make()
        sequence.finish(SequenceStatus.FINISHED_STOPPED, "END")
        assert sequence.is_finished
        assert (sequence.finish_reason, sequence.stop_reason) == ("stop", "END")
        with pytest.raises(AssertionError, match="sequence 7 has finished"):
            sequence.append(1, 0.0)

    def test_finish_takes_finished_states_only(self) -> None:
        with pytest.raises(AssertionError):
            make().finish(SequenceStatus.RUNNING)

    def test_finished_states_and_their_reasons(self) -> None:
        reasons = {}
        for status in SequenceStatus:
            sequence = make()
            if status.is_finished:
                sequence.finish(status)
                reasons[status.name] = sequence.finish_reason
            else:
                sequence.status = status
                assert sequence.finish_reason is None
        assert reasons == {
            "FINISHED_STOPPED": "stop",
            "FINISHED_LENGTH_CAPPED": "length",
            "FINISHED_ABORTED": "abort",
        }

    def test_identity_not_value_decides_equality(self) -> None:
        assert make() != make()

    def test_an_empty_prompt_is_refused(self) -> None:
        with pytest.raises(InvalidRequestError, match="the prompt of request 'r' has no token"):
            make(prompt=())


class TestCacheSalt:
    def test_none_or_any_text(self) -> None:
        assert Request("r", (1,), SamplingParams()).cache_salt is None
        assert Request("r", (1,), SamplingParams(), cache_salt="tenant 7").cache_salt == "tenant 7"

    @pytest.mark.parametrize("salt", ["", 7, b"x", False])
    def test_anything_else_is_refused(self, salt: Any) -> None:
        with pytest.raises(InvalidRequestError, match="cache_salt must be a non-empty string, got"):
            Request("r", (1,), SamplingParams(), cache_salt=salt)


class TestSequenceSeed:
    def test_a_seeded_request_keeps_its_seed_whatever_the_engines_is(self) -> None:
        assert sequence_seed(0, make(seed=5)) == sequence_seed(99, make(seed=5)) == 5
        assert sequence_seed(0, make(index=3, n=4, seed=5)) == 8

    def test_the_largest_seed_wraps_around(self) -> None:
        assert sequence_seed(0, make(index=1, n=2, seed=2**63 - 1)) == 0

    def test_an_unseeded_one_depends_on_engine_request_and_index(self) -> None:
        base = sequence_seed(1, make())
        assert base == sequence_seed(1, make())
        assert base != sequence_seed(2, make())
        assert base != sequence_seed(1, make(index=1, n=2))
        other = Sequence(7, Request("s", (1, 2, 3), SamplingParams()))
        assert base != sequence_seed(1, other)
        assert 0 <= base < 2**63
