"""Every way a token ends a sequence, and which one wins when several apply."""

from typing import Any

import pytest

from common.request import Request, SamplingParams, Sequence, SequenceStatus
from common.stopping import check_stop

EOS = (90, 91)
LONG = 1000


def after(
    output: list[int], max_model_len: int = LONG, eos: tuple[int, ...] = EOS, **params: Any
) -> Sequence:
    """A sequence with a prompt of 3 after each token of ``output`` was checked."""
    merged = {"max_tokens": 50, **params}
    sequence = Sequence(0, Request("r", (1, 2, 3), SamplingParams(**merged)))
    for token in output:
        sequence.append(token, 0.0)
        check_stop(sequence, eos, max_model_len)
    return sequence


def ended(sequence: Sequence) -> tuple[str, int | str | None] | None:
    reason = sequence.finish_reason
    return None if reason is None else (reason, sequence.stop_reason)


def test_an_ordinary_token_changes_nothing() -> None:
    sequence = after([5, 6, 7])
    assert ended(sequence) is None
    assert sequence.status is SequenceStatus.WAITING


@pytest.mark.parametrize("token", EOS)
def test_each_eos_ends_without_a_reason(token: int) -> None:
    assert ended(after([5, token])) == ("stop", None)


def test_eos_in_the_prompt_does_not_end_anything() -> None:
    assert ended(after([5], eos=(3,))) is None


def test_ignore_eos() -> None:
    assert ended(after([90, 91], ignore_eos=True)) is None


def test_no_eos_in_the_model() -> None:
    assert ended(after([90], eos=())) is None


def test_a_stop_id_is_the_reason() -> None:
    assert ended(after([5, 6], stop_token_ids=(6, 7))) == ("stop", 6)


def test_eos_wins_over_an_equal_stop_id() -> None:
    assert ended(after([90], stop_token_ids=(90,))) == ("stop", None)


def test_an_ignored_eos_may_still_be_a_stop_id() -> None:
    assert ended(after([90], ignore_eos=True, stop_token_ids=(90,))) == ("stop", 90)


class TestLength:
    def test_max_tokens(self) -> None:
        assert ended(after([5, 6], max_tokens=3)) is None
        assert ended(after([5, 6, 7], max_tokens=3)) == ("length", None)

    def test_max_tokens_of_one(self) -> None:
        assert ended(after([5], max_tokens=1)) == ("length", None)

    def test_max_model_len_counts_the_prompt(self) -> None:
        assert ended(after([5], max_model_len=5)) is None
        assert ended(after([5, 6], max_model_len=5)) == ("length", None)

    def test_eos_in_the_last_place_counts_as_stop(self) -> None:
        assert ended(after([5, 90], max_tokens=2)) == ("stop", None)
        assert ended(after([5, 90], max_model_len=5)) == ("stop", None)

    def test_a_stop_id_in_the_last_place_counts_as_stop(self) -> None:
        assert ended(after([5, 6], max_tokens=2, stop_token_ids=(6,))) == ("stop", 6)


class TestMinTokens:
    def test_eos_and_stop_ids_wait(self) -> None:
        params: dict[str, Any] = {"min_tokens": 3, "stop_token_ids": (6,)}
        assert ended(after([90], **params)) is None
        assert ended(after([6, 90], **params)) is None
        assert ended(after([6, 90, 90], **params)) == ("stop", None)
        assert ended(after([90, 90, 6], **params)) == ("stop", 6)

    def test_the_context_limit_does_not_wait(self) -> None:
        assert ended(after([5, 6], min_tokens=10, max_model_len=5)) == ("length", None)

    def test_an_early_eos_is_not_remembered(self) -> None:
        assert ended(after([90, 5, 5, 5], min_tokens=2)) is None

    def test_min_equal_to_max(self) -> None:
        assert ended(after([90, 5], min_tokens=2, max_tokens=2)) == ("length", None)
        assert ended(after([5, 90], min_tokens=2, max_tokens=2)) == ("stop", None)
