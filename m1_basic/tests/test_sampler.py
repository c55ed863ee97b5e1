"""Each filter against a distribution worked out by hand, and the draw against torch.multinomial."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.request import Request, SamplingParams, Sequence
from m1_basic.sampler import (
    Sampler,
    apply_min_p,
    apply_penalties,
    apply_top_k_top_p,
    sampling_distribution,
)

# Probabilities 0.5, 0.25, 0.125, 0.0625, 0.0625: every sum is exact in binary.
PROBABILITIES = [0.5, 0.25, 0.125, 0.0625, 0.0625]


def logits_of(probabilities: list[float]) -> torch.Tensor:
    """Logits whose softmax is ``probabilities``, ``[1, vocab]``."""
    return torch.tensor([probabilities]).log()


def sequence(
    params: SamplingParams, prompt: tuple[int, ...] = (0,), output: tuple[int, ...] = (), n: int = 0
) -> Sequence:
    """A sequence that has already produced ``output``."""
    request = Request(str(n), prompt, params)
    return Sequence(n, request, token_ids=[*prompt, *output])


def distribution(probabilities: list[float], **params: object) -> list[float]:
    """What one row is drawn from."""
    row = sampling_distribution(logits_of(probabilities), [SamplingParams(**params)])  # type: ignore[arg-type]
    return [round(value, 5) for value in row[0].tolist()]


def test_no_filter_leaves_the_softmax() -> None:
    assert distribution(PROBABILITIES) == pytest.approx(PROBABILITIES)


def test_temperature_sharpens_and_flattens() -> None:
    # At T = 0.5 probabilities are squared and renormalised: 1/4, 1/16, … over their sum.
    squares = [p * p for p in PROBABILITIES]
    expected = [round(s / sum(squares), 5) for s in squares]
    assert distribution(PROBABILITIES, temperature=0.5) == expected
    flat = distribution(PROBABILITIES, temperature=100.0)
    assert max(flat) - min(flat) < 0.01


@pytest.mark.parametrize(
    ("top_k", "kept"), [(1, 1), (2, 2), (3, 3), (5, 5), (0, 5), (-1, 5), (100, 5)]
)
def test_top_k_keeps_k(top_k: int, kept: int) -> None:
    row = distribution(PROBABILITIES, top_k=top_k)
    total = sum(PROBABILITIES[:kept])
    assert row == [round(p / total, 5) if i < kept else 0 for i, p in enumerate(PROBABILITIES)]


def test_top_k_keeps_ties_with_the_kth() -> None:
    # The fourth and fifth are equal: asking for four keeps both, as vLLM and transformers do.
    assert distribution(PROBABILITIES, top_k=4) == pytest.approx(PROBABILITIES)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (0.4, 1),  # the first token crosses 0.4 and is kept
        (0.5, 1),  # 0.5 is reached exactly by one token
        (0.51, 2),
        (0.75, 2),
        (0.76, 3),
        (1e-6, 1),  # the likeliest token is never removed
        (1.0, 5),
    ],
)
def test_top_p_keeps_the_token_that_crosses(top_p: float, kept: int) -> None:
    row = distribution(PROBABILITIES, top_p=top_p)
    assert sum(value > 0 for value in row) == kept
    assert sum(row) == pytest.approx(1.0, abs=1e-4)


def test_top_p_counts_what_top_k_left() -> None:
    # After top-k 2 the row is 2/3, 1/3: p = 0.6 is reached by the first alone, where p = 0.6 of the
    # full row needs two.
    assert distribution(PROBABILITIES, top_k=2, top_p=0.6) == [1.0, 0, 0, 0, 0]
    assert sum(v > 0 for v in distribution(PROBABILITIES, top_p=0.6)) == 2


def test_temperature_comes_before_top_p() -> None:
    # At T = 0.5 the likeliest has 73 %, so p = 0.7 is reached by it alone; at T = 1 it takes two.
    assert sum(v > 0 for v in distribution(PROBABILITIES, temperature=0.5, top_p=0.7)) == 1
    assert sum(v > 0 for v in distribution(PROBABILITIES, top_p=0.7)) == 2


def test_min_p_is_relative_to_the_likeliest() -> None:
    row = apply_min_p(logits_of(PROBABILITIES), torch.tensor([0.25]))
    assert torch.isinf(row[0]).tolist() == [False, False, False, True, True]


def test_rows_are_filtered_by_their_own_parameters() -> None:
    params = [SamplingParams(), SamplingParams(top_k=1), SamplingParams(top_p=0.75, min_p=0.01)]
    rows = sampling_distribution(logits_of(PROBABILITIES).repeat(3, 1), params)
    assert [(row > 0).sum().item() for row in rows] == [5, 1, 2]


def test_penalties_by_hand() -> None:
    scores = torch.tensor([[2.0, -2.0, 1.0, 0.5]])
    params = SamplingParams(
        repetition_penalty=2.0, frequency_penalty=0.25, presence_penalty=0.5, max_tokens=9
    )
    seq = sequence(params, prompt=(1,), output=(0, 0, 3))
    # token 0: 2.0 / 2 − 2·0.25 − 0.5; token 1 is in the prompt: −2·2; token 3: 0.5/2 − 0.25 − 0.5
    expected = [[0.0, -4.0, 1.0, -0.5]]
    assert apply_penalties(scores, [seq]).tolist() == expected
    assert scores.tolist() == [[2.0, -2.0, 1.0, 0.5]], "the raw logits are left alone"


def test_negative_penalties_reward() -> None:
    seq = sequence(SamplingParams(presence_penalty=-1.0), output=(2,))
    assert apply_penalties(torch.zeros(1, 4), [seq]).tolist() == [[0.0, 0.0, 1.0, 0.0]]


def test_greedy_rows_take_the_argmax_and_draw_nothing() -> None:
    sampler = Sampler(0, ())
    greedy = sequence(SamplingParams(temperature=0), n=0)
    drawn = sequence(SamplingParams(seed=1), n=1)
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    together = sampler(logits, [greedy, drawn]).token_ids
    assert together[0] == int(logits[0].argmax())
    alone = Sampler(0, ())(logits[1:], [sequence(SamplingParams(seed=1), n=1)]).token_ids
    assert together[1] == alone[0]


def test_the_draw_equals_multinomial() -> None:
    sampler = Sampler(0, ())
    seq = sequence(SamplingParams(seed=11, temperature=0.7))
    logits = torch.randn(20, 1000, generator=torch.Generator().manual_seed(3))
    ours = [sampler(row[None], [seq]).token_ids[0] for row in logits]
    torch.manual_seed(11)
    theirs = [int(torch.multinomial(torch.softmax(row / 0.7, -1), 1)) for row in logits]
    assert ours == theirs


def test_the_race_draws_each_token_as_often_as_its_probability() -> None:
    sampler = Sampler(0, ())
    seq = sequence(SamplingParams(seed=0))
    draws = 20_000
    counts = [0] * 5
    row = logits_of(PROBABILITIES)
    for _ in range(draws):
        counts[sampler(row, [seq]).token_ids[0]] += 1
    for count, probability in zip(counts, PROBABILITIES, strict=True):
        sigma = math.sqrt(draws * probability * (1 - probability))
        assert abs(count - draws * probability) < 4 * sigma


def test_min_tokens_masks_eos_and_stop_ids_until_reached() -> None:
    params = SamplingParams(temperature=0, min_tokens=1, stop_token_ids=(1,))
    logits = torch.tensor([[9.0, 8.0, 7.0, 1.0]])
    sampler = Sampler(0, eos_token_ids=(0,))
    assert sampler(logits, [sequence(params)]).token_ids == [2]
    assert sampler(logits, [sequence(params, output=(3,))]).token_ids == [0]
    ignoring = SamplingParams(temperature=0, min_tokens=1, ignore_eos=True)
    assert sampler(logits, [sequence(ignoring)]).token_ids == [0], "an ignored EOS may come"


def test_logprobs_only_for_rows_that_ask() -> None:
    sampler = Sampler(0, (), token_text=lambda token: f"<{token}>")
    rows = [
        sequence(SamplingParams(temperature=0), n=0),
        sequence(SamplingParams(temperature=0, logprobs=0), n=1),
        sequence(SamplingParams(temperature=0, logprobs=2, repetition_penalty=100.0), n=2),
    ]
    output = sampler(logits_of(PROBABILITIES).repeat(3, 1), rows)
    assert output.logprobs[0] is None
    first = output.logprobs[1]
    assert first is not None
    assert list(first) == [0]
    assert first[0].logprob == pytest.approx(math.log(0.5))
    assert (first[0].rank, first[0].decoded_token) == (1, "<0>")
    penalised = output.logprobs[2]
    assert penalised is not None
    assert output.token_ids[2] != 0, "the penalty moved the choice"
    assert set(penalised) == {0, 1}, "but logprobs are those of the raw logits"


def test_a_released_sequence_forgets_its_generator() -> None:
    sampler = Sampler(0, ())
    seq = sequence(SamplingParams(seed=5))
    logits = torch.zeros(1, 1000)
    first = sampler(logits, [seq]).token_ids
    second = sampler(logits, [seq]).token_ids
    assert first != second
    sampler.release(seq)
    assert sampler(logits, [seq]).token_ids == first


@given(
    seed=st.integers(0, 2**20),
    top_k=st.integers(1, 12),
    top_p=st.floats(0.01, 1.0),
    vocab=st.integers(1, 12),
)
def test_filters_keep_a_prefix_of_the_sorted_row(
    seed: int, top_k: int, top_p: float, vocab: int
) -> None:
    scores = torch.randn(1, vocab, generator=torch.Generator().manual_seed(seed))
    k = torch.tensor([min(top_k, vocab)])
    kept = apply_top_k_top_p(scores, k, torch.tensor([1.0 - top_p]))[0]
    order = scores[0].argsort(descending=True)
    alive = torch.isfinite(kept[order]).tolist()
    count = sum(alive)
    assert 1 <= count <= int(k)
    assert alive == [True] * count + [False] * (vocab - count)
    assert torch.equal(kept[order[:count]], scores[0][order[:count]]), "scores pass unchanged"
