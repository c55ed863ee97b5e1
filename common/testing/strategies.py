"""Hypothesis strategies for what users pass in: ids, prompts, sampling parameters."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from common.request import MAX_LOGPROBS, SamplingParams

VOCAB_SIZE = 320
"""Default vocabulary, that of :func:`common.testing.checkpoints.tiny_config`."""


def token_ids(vocab_size: int = VOCAB_SIZE) -> SearchStrategy[int]:
    """One id of a vocabulary, its first and last ones often."""
    return st.integers(0, vocab_size - 1)


def prompt_token_ids(
    vocab_size: int = VOCAB_SIZE, min_size: int = 1, max_size: int = 48
) -> SearchStrategy[list[int]]:
    """A prompt as token ids."""
    return st.lists(token_ids(vocab_size), min_size=min_size, max_size=max_size)


def prompt_texts(max_size: int = 48) -> SearchStrategy[str]:
    """A prompt as text: any characters that UTF-8 can carry, emoji and combining marks included."""
    characters = st.characters(exclude_categories=["Cs"])
    return st.text(characters, min_size=1, max_size=max_size)


def stop_strings() -> SearchStrategy[tuple[str, ...]]:
    """Up to three short stop strings over a small alphabet, so that they overlap and hit."""
    return st.lists(st.text("ab \n", min_size=1, max_size=3), max_size=3).map(tuple)


@st.composite
def sampling_params(
    draw: DrawFn,
    vocab_size: int = VOCAB_SIZE,
    max_tokens: int = 24,
    max_n: int = 3,
    seeded: bool = False,
    text: bool = True,
) -> SamplingParams:
    """Any valid combination of sampling parameters.

    Args:
        draw: Hypothesis' own.
        vocab_size: Vocabulary of the stop ids.
        max_tokens: Largest ``max_tokens``.
        max_n: Largest ``n``.
        seeded: Always give a seed, so that the output is reproducible.
        text: Whether stop strings may occur (they need a tokenizer).
    """
    greedy = draw(st.booleans())
    limit = draw(st.integers(1, max_tokens))
    penalty = st.sampled_from([0.0, 0.0, -2.0, 0.7, 2.0])
    seeds = st.integers(0, 2**63 - 1)
    return SamplingParams(
        n=1 if greedy else draw(st.integers(1, max_n)),
        temperature=0.0 if greedy else draw(st.floats(0.1, 3.0)),
        top_k=draw(st.sampled_from([0, -1, 1, 2, 7, vocab_size, 10 * vocab_size])),
        top_p=draw(st.floats(0.0, 1.0, exclude_min=True)),
        min_p=draw(st.sampled_from([0.0, 0.0, 0.05, 0.5, 1.0])),
        presence_penalty=draw(penalty),
        frequency_penalty=draw(penalty),
        repetition_penalty=draw(st.sampled_from([1.0, 1.0, 0.5, 1.3, 2.0])),
        seed=draw(seeds) if seeded else draw(st.none() | seeds),
        max_tokens=limit,
        min_tokens=draw(st.integers(0, limit)),
        stop=draw(stop_strings()) if text else (),
        stop_token_ids=tuple(draw(st.lists(token_ids(vocab_size), max_size=3))),
        ignore_eos=draw(st.booleans()),
        logprobs=draw(st.none() | st.integers(0, MAX_LOGPROBS)),
        skip_special_tokens=draw(st.booleans()),
        include_stop_str_in_output=draw(st.booleans()),
    )
