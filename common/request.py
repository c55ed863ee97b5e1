"""A user's wish (``Request``), its policy (``SamplingParams``), its state (``Sequence``).

A request is frozen: it is what was asked for. A sequence is what an engine does about it; one
request has ``n`` of them. Two counters carry every algorithm of this project::

    | computed            | to compute       |
    0          num_computed_tokens         num_tokens

A prompt that was just admitted has a gap of its whole length (prefill), a decoding sequence has a
gap of one. Everything later (chunked prefill, prefix hits, preemption) only moves
``num_computed_tokens``. Names follow vLLM 0.33.0, ``v1/request.py`` and ``sampling_params.py``.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from common.errors import InvalidRequestError
from common.outputs import FinishReason, Logprob

GREEDY_EPSILON = 1e-5
MAX_LOGPROBS = 20


@dataclass(frozen=True)
class SamplingParams:
    """How one request is sampled and when it stops. Names and meaning are vLLM's.

    Attributes:
        n: Completions of the same prompt; sample i of a seeded request uses ``seed + i``.
        temperature: Divides the logits; below 1e-5 means greedy.
        top_k: Keep the k largest logits (ties with the k-th survive); 0 or -1 keeps all.
        top_p: Keep the smallest set of tokens whose probability reaches p (the token that crosses
            p is kept).
        min_p: Drop tokens less likely than ``min_p`` times the most likely one.
        presence_penalty: Subtracted once from the logit of every token already generated.
        frequency_penalty: Subtracted once per occurrence in the output.
        repetition_penalty: Divides positive and multiplies negative logits of tokens that are in
            the prompt or the output.
        seed: Seed of this request's own generator; None derives one from the engine's seed.
        max_tokens: Output tokens at most.
        min_tokens: Output tokens before any stop token or stop string may end the sequence.
        stop: Strings that end the output (removed from it).
        stop_token_ids: Ids that end the output besides the model's EOS (kept in ``token_ids``).
        ignore_eos: Go on after EOS.
        logprobs: How many of the most likely tokens to report per position (0: only the sampled
            one; None: nothing). Taken from the raw logits, before penalties and temperature.
        skip_special_tokens: Leave special tokens out of the text.
        include_stop_str_in_output: Keep the stop string (or stop token's text) in the text.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int = 16
    min_tokens: int = 0
    stop: str | tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        """Normalise ``stop`` and ``stop_token_ids`` to tuples and check every range.

        Raises:
            InvalidRequestError: The message names the field, the value and the range.
        """
        stop = (self.stop,) if isinstance(self.stop, str) else _tuple("stop", self.stop)
        object.__setattr__(self, "stop", stop)
        ids = _tuple("stop_token_ids", self.stop_token_ids)
        object.__setattr__(self, "stop_token_ids", ids)
        _integer("n", self.n, 1)
        _number("temperature", self.temperature, 0.0, math.inf)
        _integer("top_k", self.top_k, -1)
        _number("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _number("repetition_penalty", self.repetition_penalty, 0.0, math.inf, open_low=True)
        if self.seed is not None:
            _integer("seed", self.seed, 0, 2**63 - 1)
        _integer("max_tokens", self.max_tokens, 1)
        _integer("min_tokens", self.min_tokens, 0)
        if self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens ({self.min_tokens}) must not exceed max_tokens ({self.max_tokens})"
            )
        if self.logprobs is not None:
            _integer("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        for text in stop:
            if not isinstance(text, str) or not text:
                raise InvalidRequestError(f"stop must hold non-empty strings, got {text!r}")
        for token in self.stop_token_ids:
            _integer("stop_token_ids", token, 0)
        for name in ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidRequestError(
                    f"{name} must be True or False, got {getattr(self, name)!r}"
                )
        if self.n > 1 and self.is_greedy:
            raise InvalidRequestError(
                f"n must be 1 with greedy sampling (temperature {self.temperature}), got {self.n}"
            )

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken without a draw."""
        return self.temperature < GREEDY_EPSILON

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """``stop`` as the tuple that ``__post_init__`` made of it."""
        assert isinstance(self.stop, tuple)
        return self.stop


class SequenceStatus(enum.Enum):
    """Where a sequence stands; vLLM's names."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED_STOPPED = "finished_stopped"
    FINISHED_LENGTH_CAPPED = "finished_length_capped"
    FINISHED_ABORTED = "finished_aborted"

    @property
    def is_finished(self) -> bool:
        """Whether no further step will touch the sequence."""
        return self in _FINISHED


# A tuple: membership is by identity, where a set would call Enum's hash, which is Python code.
_FINISHED = (
    SequenceStatus.FINISHED_STOPPED,
    SequenceStatus.FINISHED_LENGTH_CAPPED,
    SequenceStatus.FINISHED_ABORTED,
)

_FINISH_REASONS: dict[SequenceStatus, FinishReason] = {
    SequenceStatus.FINISHED_STOPPED: "stop",
    SequenceStatus.FINISHED_LENGTH_CAPPED: "length",
    SequenceStatus.FINISHED_ABORTED: "abort",
}


@dataclass(frozen=True)
class Request:
    """What a user asked for. Never changes.

    Attributes:
        request_id: Unique name within an engine.
        prompt_token_ids: The prompt, at least one id.
        sampling_params: How to sample and when to stop.
        prompt: The text the ids came from, where there was one.
        arrival_time: ``time.perf_counter()`` seconds when the engine took it.
        priority: Smaller is served first under the priority policy.
        cache_salt: Requests share cached prefixes only with requests of the same salt; None is a
            salt of its own.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling_params: SamplingParams
    prompt: str | None = None
    arrival_time: float = 0.0
    priority: int = 0
    cache_salt: str | None = None

    def __post_init__(self) -> None:
        """An empty prompt has no last token to continue from, an empty salt separates nobody.

        Raises:
            InvalidRequestError: The prompt has no token, or the salt is no text.
        """
        if not self.prompt_token_ids:
            raise InvalidRequestError(f"the prompt of request {self.request_id!r} has no token")
        salt = self.cache_salt
        if salt is not None and (not isinstance(salt, str) or not salt):
            raise InvalidRequestError(f"cache_salt must be a non-empty string, got {salt!r}")


@dataclass(eq=False)
class Sequence:
    """The mutable state of one completion.

    Attributes:
        seq_id: Number that is unique within an engine and grows with arrival.
        request: The request it answers.
        index: Which of the request's ``n`` completions this is.
        token_ids: Prompt and output ids together.
        num_computed_tokens: Leading ids whose K and V exist.
        status: Where it stands.
        stop_reason: The stop string or stop id that ended it; None after EOS or by length.
        logprobs: One entry per output token, if the request asked for them.
        token_times: ``time.perf_counter()`` seconds at which each output token was known.
        num_prompt_tokens: Ids that came with the request.
    """

    seq_id: int
    request: Request
    index: int = 0
    token_ids: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    status: SequenceStatus = SequenceStatus.WAITING
    stop_reason: int | str | None = None
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    token_times: list[float] = field(default_factory=list)
    num_prompt_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        """A new sequence starts with the prompt's ids."""
        self.num_prompt_tokens = len(self.request.prompt_token_ids)
        if not self.token_ids:
            self.token_ids = list(self.request.prompt_token_ids)

    @property
    def sampling_params(self) -> SamplingParams:
        """The request's sampling parameters."""
        return self.request.sampling_params

    @property
    def num_tokens(self) -> int:
        """Known ids, prompt and output."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Ids generated so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def output_token_ids(self) -> list[int]:
        """The generated ids (a copy)."""
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def is_finished(self) -> bool:
        """Whether no further step will touch it."""
        return self.status in _FINISHED

    @property
    def finish_reason(self) -> FinishReason | None:
        """``stop``, ``length`` or ``abort``; None while it runs."""
        return _FINISH_REASONS.get(self.status)

    def append(self, token_id: int, now: float) -> None:
        """Add a sampled id, known at ``now`` (``time.perf_counter()`` seconds)."""
        assert not self.is_finished, f"sequence {self.seq_id} has finished"
        self.token_ids.append(token_id)
        self.token_times.append(now)

    def finish(self, status: SequenceStatus, reason: int | str | None = None) -> None:
        """End the sequence with a finished ``status``."""
        assert status.is_finished, status
        self.status, self.stop_reason = status, reason


def _tuple(name: str, value: object) -> tuple[Any, ...]:
    """None is nothing, as in vLLM; anything else must be a collection."""
    if value is None:
        return ()
    if not isinstance(value, Iterable):
        raise InvalidRequestError(f"{name} must be a list, got {value!r}")
    return tuple(value)


def _integer(name: str, value: object, low: int, high: int | None = None) -> None:
    accepted = f"an integer of at least {low}" if high is None else f"an integer in [{low}, {high}]"
    valid = isinstance(value, int) and not isinstance(value, bool)
    if not valid or value < low or (high is not None and value > high):  # type: ignore[operator]
        raise InvalidRequestError(f"{name} must be {accepted}, got {value!r}")


def _number(name: str, value: object, low: float, high: float, *, open_low: bool = False) -> None:
    bracket = "(" if open_low else "["
    close = ")" if math.isinf(high) else "]"
    valid = isinstance(value, (int, float)) and not isinstance(value, bool)
    if valid:
        number = float(value)  # type: ignore[arg-type]
        valid = (
            low <= number <= high and not math.isinf(number) and not (open_low and number == low)
        )
    if not valid:
        raise InvalidRequestError(
            f"{name} must be in {bracket}{low:g}, {high:g}{close}, got {value!r}"
        )
