"""What an engine gives back: text, ids, reasons, and the times at which tokens appeared."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

FinishReason = Literal["stop", "length", "abort"]
"""Why a sequence ended: EOS, a stop id or a stop string; a limit; its reader went away."""


@dataclass(frozen=True)
class Logprob:
    """One candidate at one position.

    Attributes:
        logprob: Natural logarithm of its probability under the raw logits.
        rank: 1 for the most likely token.
        decoded_token: Its text, or None without a tokenizer.
    """

    logprob: float
    rank: int
    decoded_token: str | None = None


@dataclass(frozen=True)
class CompletionOutput:
    """One of a request's ``n`` completions, possibly still growing.

    Attributes:
        index: Which of the ``n`` it is.
        text: All text that may be shown so far.
        token_ids: The generated ids so far.
        finish_reason: ``stop``, ``length`` or ``abort``; None while it runs.
        stop_reason: The stop string or id that ended it; None after EOS or by length.
        logprobs: Per position, candidates by token id; None if the request did not ask.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    logprobs: tuple[dict[int, Logprob], ...] | None = None


@dataclass(frozen=True)
class RequestMetrics:
    """When things happened to one request, in ``time.perf_counter()`` seconds.

    Attributes:
        arrival_time: When the engine took the request.
        token_times: When each output token of completion 0 was known.
        finished_time: When the last completion ended, or None.
        num_cached_tokens: Prompt tokens whose KV came from a prefix cache.
    """

    arrival_time: float
    token_times: tuple[float, ...] = field(default=())
    finished_time: float | None = None
    num_cached_tokens: int = 0

    @property
    def ttft(self) -> float | None:
        """Time to first token, seconds: queueing plus prefill plus one sample."""
        return self.token_times[0] - self.arrival_time if self.token_times else None

    @property
    def itl(self) -> tuple[float, ...]:
        """Inter-token latencies, seconds: the gaps between consecutive tokens."""
        times = self.token_times
        return tuple(later - earlier for earlier, later in pairwise(times))

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first, seconds: (last − first) / (n − 1)."""
        times = self.token_times
        return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None


@dataclass(frozen=True)
class RequestOutput:
    """The state of one request, as ``generate`` returns and ``stream`` yields it.

    Attributes:
        request_id: The request's name.
        prompt: Its text, where there was one.
        prompt_token_ids: Its ids.
        outputs: The ``n`` completions.
        finished: Whether all of them have ended.
        metrics: When its tokens appeared.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
    finished: bool
    metrics: RequestMetrics


@dataclass(frozen=True)
class EngineStats:
    """What an engine has done since it was built.

    Attributes:
        num_requests: Requests finished, aborted ones included.
        prompt_tokens: Prompt tokens of those requests.
        generated_tokens: Tokens generated for all of their completions.
        num_steps: Forward passes.
        prefill_seconds: Wall time of steps that computed prompt tokens.
        decode_seconds: Wall time of all other steps.
        weight_bytes: Bytes of the model's parameters and buffers.
        kv_bytes: Bytes reserved for K and V.
        peak_memory_bytes: Most memory held: the device allocator's peak on a GPU, the process's
            resident peak on a CPU.
    """

    num_requests: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    num_steps: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    weight_bytes: int = 0
    kv_bytes: int = 0
    peak_memory_bytes: int = 0
