"""Reproducible request sets: the same prompts, limits and arrivals for every stage and machine.

A workload is a name, a seed and a list of requests; its hash names the list, so that two results
are comparable exactly when their hashes are equal. Prompts are token ids, most of them random:
speed depends on lengths, not on meaning, and ``ignore_eos`` makes the output lengths exact.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from dataclasses import dataclass
from functools import cached_property

from common.errors import ConfigError
from common.records import non_default
from common.request import SamplingParams

DEFAULT_VOCAB = 10_000


@dataclass(frozen=True)
class WorkloadRequest:
    """One request of a workload.

    Attributes:
        prompt_token_ids: The prompt.
        sampling_params: How to sample and when to stop.
        arrival: Seconds after the start at which it arrives, in whole microseconds.
    """

    prompt_token_ids: tuple[int, ...]
    sampling_params: SamplingParams
    arrival: float = 0.0

    def __post_init__(self) -> None:
        """Round the arrival, so that the last bits of a logarithm cannot change the hash.

        Raises:
            ConfigError: The prompt has no token.
        """
        object.__setattr__(self, "prompt_token_ids", tuple(self.prompt_token_ids))
        if not self.prompt_token_ids:
            raise ConfigError("a prompt of a workload needs at least one token")
        object.__setattr__(self, "arrival", round(float(self.arrival), 6))


@dataclass(frozen=True)
class WorkloadInfo:
    """What a result file says about its workload."""

    name: str
    hash: str
    seed: int
    num_requests: int
    prompt_tokens: int
    max_output_tokens: int


@dataclass(frozen=True)
class Workload:
    """A named list of requests, in order of arrival.

    Attributes:
        name: Says how the list was made; a subset says so.
        seed: Seed of the generator that made it.
        requests: The list.
    """

    name: str
    seed: int
    requests: tuple[WorkloadRequest, ...]

    def __post_init__(self) -> None:
        """Check that there is something to serve, in order.

        Raises:
            ConfigError: No requests, or one that arrives before its predecessor.
        """
        if not self.requests:
            raise ConfigError(f"workload {self.name!r} has no request")
        arrivals = [item.arrival for item in self.requests]
        if arrivals != sorted(arrivals) or arrivals[0] < 0:
            raise ConfigError(f"workload {self.name!r} is not in order of arrival")

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the canonical list: ids, sampling parameters, arrivals. The name is out."""
        # Only what differs from the defaults: a parameter added later changes no old hash.
        canonical = [
            [item.prompt_token_ids, non_default(item.sampling_params), item.arrival]
            for item in self.requests
        ]
        text = json.dumps(canonical, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def prompts(self) -> list[list[int]]:
        """The prompts, as ``generate`` takes them."""
        return [list(item.prompt_token_ids) for item in self.requests]

    @property
    def sampling_params(self) -> list[SamplingParams]:
        """One ``SamplingParams`` per request."""
        return [item.sampling_params for item in self.requests]

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens of all requests."""
        return sum(len(item.prompt_token_ids) for item in self.requests)

    @property
    def max_output_tokens(self) -> int:
        """Output tokens if every completion runs to its limit, as under ``ignore_eos``."""
        params = self.sampling_params
        return sum(item.max_tokens * item.n for item in params)

    @property
    def info(self) -> WorkloadInfo:
        """The facts for a result file."""
        return WorkloadInfo(
            self.name,
            self.hash,
            self.seed,
            len(self.requests),
            self.prompt_tokens,
            self.max_output_tokens,
        )

    def subset(self, count: int) -> Workload:
        """The first ``count`` requests, under a name that says so.

        Raises:
            ConfigError: There are not that many.
        """
        if not 1 <= count <= len(self.requests):
            raise ConfigError(f"count must be in [1, {len(self.requests)}], got {count}")
        if count == len(self.requests):
            return self
        return Workload(f"{self.name}[:{count}]", self.seed, self.requests[:count])

    def with_poisson_arrivals(self, rate: float, seed: int | None = None) -> Workload:
        """The same requests, arriving as a Poisson process of ``rate`` requests per second.

        The first arrives at 0; gaps are exponential with mean ``1 / rate``.

        Raises:
            ConfigError: ``rate`` is not positive.
        """
        if rate <= 0:
            raise ConfigError(f"rate must be positive, got {rate}")
        rng, now, requests = random.Random(self.seed if seed is None else seed), 0.0, []
        for item in self.requests:
            requests.append(dataclasses.replace(item, arrival=now))
            now += rng.expovariate(rate)
        return Workload(f"{self.name}-poisson-{rate:g}/s", self.seed, tuple(requests))


def _ids(rng: random.Random, count: int, vocab: int) -> tuple[int, ...]:
    return tuple(rng.randint(0, vocab - 1) for _ in range(count))


def _params(max_tokens: int, temperature: float = 0.0) -> SamplingParams:
    return SamplingParams(temperature=temperature, max_tokens=max_tokens, ignore_eos=True)


def fixed(
    num_requests: int,
    prompt_len: int,
    output_len: int,
    *,
    temperature: float = 0.0,
    vocab: int = DEFAULT_VOCAB,
    seed: int = 0,
) -> Workload:
    """Random prompts of one length, outputs of one length, all at once."""
    rng = random.Random(seed)
    params = _params(output_len, temperature)
    requests = (WorkloadRequest(_ids(rng, prompt_len, vocab), params) for _ in range(num_requests))
    return Workload(f"fixed-{num_requests}x{prompt_len}+{output_len}", seed, tuple(requests))


def random_lengths(
    num_requests: int = 256,
    prompt_range: tuple[int, int] = (100, 1024),
    output_range: tuple[int, int] = (100, 1024),
    *,
    temperature: float = 0.6,
    vocab: int = DEFAULT_VOCAB + 1,
    seed: int = 0,
) -> Workload:
    """Prompts and outputs of uniformly random lengths, all at once.

    The defaults are nano-vllm's ``bench.py``, draw for draw: 256 prompts of 100–1024 ids in
    [0, 10000], then 256 output lengths of 100–1024; 133,966 output tokens.
    """
    rng = random.Random(seed)
    prompts = [_ids(rng, rng.randint(*prompt_range), vocab) for _ in range(num_requests)]
    params = [_params(rng.randint(*output_range), temperature) for _ in range(num_requests)]
    pairs = zip(prompts, params, strict=True)
    (low, high), (short, long) = prompt_range, output_range
    name = f"random-{num_requests}x{low}-{high}+{short}-{long}"
    return Workload(name, seed, tuple(WorkloadRequest(*pair) for pair in pairs))


def shared_prefix(
    num_requests: int,
    prefix_len: int,
    suffix_len: int,
    output_len: int,
    *,
    num_prefixes: int = 1,
    vocab: int = DEFAULT_VOCAB,
    seed: int = 0,
) -> Workload:
    """Few-shot prompting: requests take turns on ``num_prefixes`` long prefixes, own suffixes."""
    rng = random.Random(seed)
    prefixes = [_ids(rng, prefix_len, vocab) for _ in range(num_prefixes)]
    requests = tuple(
        WorkloadRequest(
            prefixes[i % num_prefixes] + _ids(rng, suffix_len, vocab), _params(output_len)
        )
        for i in range(num_requests)
    )
    name = f"prefix-{num_requests}x({num_prefixes}:{prefix_len}+{suffix_len})+{output_len}"
    return Workload(name, seed, requests)


def multi_turn_chat(
    num_conversations: int,
    num_turns: int,
    *,
    system_len: int = 64,
    user_len: int = 32,
    reply_len: int = 64,
    think_time: float = 0.0,
    vocab: int = DEFAULT_VOCAB,
    seed: int = 0,
) -> Workload:
    """Conversations: every turn repeats the system prompt and the whole history before it.

    The history holds replies drawn in advance, not what an engine answered, so that every engine
    serves the same prompts. Turn t of all conversations arrives at ``t · think_time`` seconds.
    """
    rng = random.Random(seed)
    system = _ids(rng, system_len, vocab)
    history = [system] * num_conversations
    requests = []
    for turn in range(num_turns):
        for i in range(num_conversations):
            prompt = history[i] + _ids(rng, user_len, vocab)
            requests.append(WorkloadRequest(prompt, _params(reply_len), turn * think_time))
            history[i] = prompt + _ids(rng, reply_len, vocab)
    lengths = f"{system_len}+{user_len}+{reply_len}"
    return Workload(f"chat-{num_conversations}x{num_turns}x({lengths})", seed, tuple(requests))


def long_among_short(
    num_short: int = 32,
    short_len: int = 128,
    short_output: int = 256,
    *,
    num_long: int = 1,
    long_len: int = 8192,
    long_output: int = 1,
    first_long: float = 0.0,
    interval: float = 0.25,
    vocab: int = DEFAULT_VOCAB,
    seed: int = 0,
) -> Workload:
    """Short streams that decode while long prompts land on them.

    The streams arrive at 0, long prompt i at ``first_long + i · interval`` seconds.
    """
    rng = random.Random(seed)
    short = [
        WorkloadRequest(_ids(rng, short_len, vocab), _params(short_output))
        for _ in range(num_short)
    ]
    long = [
        WorkloadRequest(_ids(rng, long_len, vocab), _params(long_output), first_long + i * interval)
        for i in range(num_long)
    ]
    name = f"long-{num_long}x{long_len}+{long_output}-among-{num_short}x{short_len}+{short_output}"
    return Workload(name, seed, (*short, *long))
