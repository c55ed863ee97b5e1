"""The device's sampler against M1's: same order, same supports, same distributions, same penalties.

Its filters are plain PyTorch and run here on CPU tensors; a few draws go through the interpreted
kernel.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.request import Request, SamplingParams, Sequence
from common.seeds import sequence_seed
from m1_basic.sampler import Sampler, apply_penalties, sampling_distribution
from m4_flash.sampler import DeviceSampler, FilteredRow, SamplingRows
from m4_flash.tests.sample_cases import race

VOCAB = 24
EOS = (3, 4)
WIDTH = 16
GARBAGE = 10**6  # stands behind the known ids, and would fail if it were read

kernel_test = pytest.mark.skipif(
    torch.cuda.is_available(), reason="kernels are compiled here: test_gpu_sampler.py"
)


class RecordingSampler(DeviceSampler):
    """Keeps the scores that reach the draw and takes their largest instead of drawing."""

    def __init__(self, rows: SamplingRows) -> None:
        super().__init__(rows, EOS)
        self.drawn: list[tuple[Tensor, Tensor, Tensor]] = []

    def draw(self, logits: Tensor, row_index: Tensor, seq_lens: Tensor, out: Tensor) -> None:
        self.drawn.append((logits.clone(), row_index, seq_lens))
        out.copy_(logits.argmax(dim=-1))

    @property
    def scores(self) -> Tensor:
        ((scores, _, _),) = self.drawn
        return scores


def sequence(
    params: SamplingParams, prompt: tuple[int, ...] = (0,), output: tuple[int, ...] = (), n: int = 0
) -> Sequence:
    """A sequence that has already produced ``output``."""
    return Sequence(n, Request(str(n), prompt, params), token_ids=[*prompt, *output])


def rows_of(sequences: list[Sequence], places: list[int] | None = None) -> SamplingRows:
    """Sequence i in device row places[i]; everything else is rubbish."""
    places = list(range(len(sequences))) if places is None else places
    num_rows = max(places) + 2
    rows = SamplingRows(
        token_ids=torch.full((num_rows + 1, WIDTH), GARBAGE, dtype=torch.int32),
        prompt_lens=torch.full((num_rows,), 77, dtype=torch.int32),
        temperature=torch.full((num_rows,), 3.0),
        seeds=torch.full((num_rows,), 2**61),
    )
    for place, seq in zip(places, sequences, strict=True):
        params = seq.sampling_params
        rows.token_ids[place, : seq.num_tokens] = torch.tensor(seq.token_ids, dtype=torch.int32)
        rows.prompt_lens[place] = seq.num_prompt_tokens
        rows.temperature[place] = 0.0 if params.is_greedy else params.temperature
        rows.seeds[place] = sequence_seed(0, seq)
    return rows


def pick(seq: Sequence, index: int, row: int | None = None) -> FilteredRow:
    return FilteredRow(
        index=index,
        row=index if row is None else row,
        seq_id=seq.seq_id,
        params=seq.sampling_params,
        num_tokens=seq.num_tokens,
        num_prompt_tokens=seq.num_prompt_tokens,
    )


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filtered_scores(logits: Tensor, sequences: list[Sequence]) -> Tensor:
    """What reaches the draw when every row is picked."""
    sampler = RecordingSampler(rows_of(sequences))
    before = logits.clone()
    out = torch.full((len(logits),), -1)
    sampler.draw_filtered(logits, [pick(seq, i) for i, seq in enumerate(sequences)], out)
    assert torch.equal(logits, before), "the raw logits are left alone"
    assert torch.equal(out, sampler.scores.argmax(dim=-1))
    return sampler.scores


def m1_scores(logits: Tensor, sequences: list[Sequence]) -> Tensor:
    """M1's scores before temperature: stops held back, then penalties."""
    scores = logits.clone()
    for row, seq in enumerate(sequences):
        params = seq.sampling_params
        if seq.num_output_tokens < params.min_tokens:
            eos = () if params.ignore_eos else EOS
            scores[row, list({*eos, *params.stop_token_ids})] = float("-inf")
    return apply_penalties(scores, sequences)


class TestWhoIsFiltered:
    @pytest.mark.parametrize(
        ("params", "expected"),
        [
            ({}, False),
            ({"temperature": 0.0}, False),
            ({"top_k": 0}, False),
            ({"top_k": -1}, False),
            ({"top_k": 5}, True),
            ({"top_p": 0.9}, True),
            ({"min_p": 0.1}, True),
            ({"top_k": 5, "top_p": 0.5, "min_p": 0.1, "temperature": 0.0}, False),
            ({"repetition_penalty": 1.1}, True),
            ({"frequency_penalty": -0.1, "temperature": 0.0}, True),
            ({"presence_penalty": 0.1}, True),
            ({"min_tokens": 3}, True),
            ({"min_tokens": 2}, False),
            ({"logprobs": 5}, False),
        ],
        ids=str,
    )
    def test_rows_that_change_more_than_the_temperature(
        self, params: dict[str, Any], expected: bool
    ) -> None:
        """Two tokens are out: a minimum of two is reached, one of three is not."""
        seq = sequence(SamplingParams(**params), output=(1, 2))
        sampler = DeviceSampler(rows_of([seq]), EOS)
        assert sampler.needs_filtering(pick(seq, 0)) is expected


class TestScores:
    """What reaches the draw, without drawing."""

    @pytest.mark.parametrize(
        "params",
        [
            {"repetition_penalty": 1.3},
            {"repetition_penalty": 0.7, "temperature": 0.0},
            {"frequency_penalty": 0.4},
            {"presence_penalty": -0.9},
            {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": 0.5},
        ],
        ids=str,
    )
    def test_penalties_equal_m1_bit_for_bit(self, params: dict[str, Any]) -> None:
        """Beside rows without, with repeated ids, in prompt and output."""
        asking = SamplingParams(**params)
        sequences = [
            sequence(asking, (1, 2, 2, 5), (7, 7, 7, 2), n=0),
            sequence(SamplingParams(top_k=3), (1, 2), (7,), n=1),
            sequence(asking, (9,), (), n=2),
            sequence(asking, (0,), (0, 1, 2, 3), n=3),
        ]
        logits = random(4, VOCAB) * 3
        scores = filtered_scores(logits, sequences)
        expected = apply_penalties(logits, sequences)
        assert torch.equal(scores[[0, 2, 3]], expected[[0, 2, 3]])
        assert not torch.equal(scores[0], logits[0])

    @pytest.mark.parametrize(
        ("params", "output", "held"),
        [
            ({"min_tokens": 2, "max_tokens": 9}, (1,), {3, 4}),
            ({"min_tokens": 2, "max_tokens": 9}, (1, 1), set()),
            ({"min_tokens": 2, "stop_token_ids": (8, 4)}, (), {3, 4, 8}),
            ({"min_tokens": 2, "stop_token_ids": (8,), "ignore_eos": True}, (), {8}),
            ({"min_tokens": 2, "ignore_eos": True}, (), set()),
            ({"min_tokens": 2, "stop_token_ids": (VOCAB, 10**5)}, (), {3, 4}),
        ],
        ids=str,
    )
    def test_min_tokens_holds_stops_back(
        self, params: dict[str, Any], output: tuple[int, ...], held: set[int]
    ) -> None:
        seq = sequence(SamplingParams(**params), output=output)
        scores = filtered_scores(random(1, VOCAB), [seq])
        assert set(torch.isinf(scores[0]).nonzero().flatten().tolist()) == held

    def test_greedy_rows_ignore_the_filters(self) -> None:
        params = SamplingParams(temperature=0, top_k=1, top_p=0.1, min_p=0.9, presence_penalty=0.1)
        seq = sequence(params, output=(1,))
        scores = filtered_scores(random(1, VOCAB), [seq])
        assert torch.isfinite(scores).all()

    @pytest.mark.parametrize(
        "params",
        [
            {"top_k": 3},
            {"top_k": 1000, "top_p": 0.8},
            {"top_p": 0.3, "temperature": 2.0},
            {"min_p": 0.2, "temperature": 0.5},
            {"top_k": 10, "top_p": 0.7, "min_p": 0.05, "temperature": 1.5},
        ],
        ids=str,
    )
    def test_filters_keep_what_m1_keeps_in_its_proportions(self, params: dict[str, Any]) -> None:
        sequences = [sequence(SamplingParams(**params), n=n) for n in range(5)]
        logits = random(5, VOCAB) * 2
        scores = filtered_scores(logits, sequences)
        expected = sampling_distribution(logits, [SamplingParams(**params)] * 5)
        assert torch.equal(torch.isfinite(scores), expected > 0)
        assert 0 < int((expected > 0).sum()) < expected.numel(), "something is removed"
        kept = torch.isfinite(scores)
        assert torch.equal(scores[kept], logits[kept]), "what stays is not touched"
        temperature = params.get("temperature", 1.0)
        torch.testing.assert_close(torch.softmax(scores / temperature, dim=-1), expected)

    def test_ties_with_the_kth_stay(self) -> None:
        logits = torch.tensor([[2.0, 1.0, 1.0, 0.0]])
        scores = filtered_scores(logits, [sequence(SamplingParams(top_k=2))])
        assert torch.isfinite(scores[0]).tolist() == [True, True, True, False]

    def test_only_picked_rows_are_drawn_again(self) -> None:
        """Their index in the batch and their device row are two things."""
        sequences = [sequence(SamplingParams(top_k=1), output=(1,) * n, n=n) for n in range(3)]
        places = [4, 0, 2]
        sampler = RecordingSampler(rows_of(sequences, places))
        logits = random(6, VOCAB)
        out = torch.full((6,), -1)
        picks = [pick(s, i, row) for s, i, row in zip(sequences, (5, 1, 2), places, strict=True)]
        sampler.draw_filtered(logits, picks, out)
        largest = logits.argmax(dim=-1)
        assert out.tolist() == [-1, int(largest[1]), int(largest[2]), -1, -1, int(largest[5])]
        ((_, rows, lens),) = sampler.drawn
        assert rows.tolist() == places
        assert lens.tolist() == [1, 2, 3]
        assert lens.dtype is torch.int32

    def test_many_rows_go_in_slices(self) -> None:
        sequences = [sequence(SamplingParams(presence_penalty=2.0), (n % 7,)) for n in range(150)]
        sampler = RecordingSampler(rows_of(sequences))
        logits = random(150, VOCAB)
        out = torch.full((150,), -1)
        sampler.draw_filtered(logits, [pick(s, i) for i, s in enumerate(sequences)], out)
        assert [len(scores) for scores, _, _ in sampler.drawn] == [64, 64, 22]
        assert torch.equal(out, logits.argmax(dim=-1)), "a prompt's ids are not penalised"

    def test_nobody_asks(self) -> None:
        sampler = RecordingSampler(rows_of([sequence(SamplingParams())]))
        out = torch.tensor([5])
        sampler.draw_filtered(random(1, VOCAB), [], out)
        assert out.tolist() == [5]

    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_any_mix_of_parameters_has_m1_s_distribution(self, data: st.DataObject) -> None:
        sequences = [data.draw(a_sequence(n), label=str(n)) for n in range(4)]
        logits = random(4, VOCAB, seed=data.draw(st.integers(0, 99))) * 2
        scores = filtered_scores(logits, sequences)
        expected = m1_scores(logits, sequences)
        for row, seq in enumerate(sequences):
            params = seq.sampling_params
            if params.is_greedy:
                assert torch.equal(scores[row], expected[row])
                continue
            distribution = sampling_distribution(expected[row : row + 1], [params])[0]
            assert torch.equal(torch.isfinite(scores[row]), distribution > 0)
            ours = torch.softmax(scores[row] / params.temperature, dim=-1)
            torch.testing.assert_close(ours, distribution)


@st.composite
def a_sequence(draw: st.DrawFn, n: int) -> Sequence:
    ids = st.lists(st.integers(0, VOCAB - 1), max_size=6)
    output = draw(ids)
    params = SamplingParams(
        temperature=draw(st.sampled_from([0.0, 0.6, 1.0, 2.0])),
        top_k=draw(st.sampled_from([-1, 0, 1, 5, VOCAB, 99])),
        top_p=draw(st.sampled_from([1.0, 0.9, 0.4])),
        min_p=draw(st.sampled_from([0.0, 0.1])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.3])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.5])),
        presence_penalty=draw(st.sampled_from([0.0, -0.5])),
        min_tokens=draw(st.integers(0, 6)),
        stop_token_ids=tuple(draw(ids)),
        ignore_eos=draw(st.booleans()),
    )
    return sequence(params, (1, *draw(ids)), tuple(output), n)


@kernel_test
class TestDraw:
    """Through the interpreted kernel."""

    @pytest.fixture(autouse=True)
    def _needs_triton(self) -> None:
        pytest.importorskip("triton")

    def draw(self, sequences: list[Sequence], logits: Tensor, places: list[int]) -> list[int]:
        sampler = DeviceSampler(rows_of(sequences, places), EOS)
        lens = torch.tensor([seq.num_tokens for seq in sequences], dtype=torch.int32)
        out = torch.full((len(sequences),), -1)
        sampler.draw(logits, torch.tensor(places), lens, out)
        ids: list[int] = out.tolist()
        return ids

    def noise(self, sequences: list[Sequence]) -> Tensor:
        from m4_flash.kernels.noise import exponential_noise

        seeds = torch.tensor([sequence_seed(0, seq) for seq in sequences])
        index = torch.tensor([seq.num_output_tokens for seq in sequences], dtype=torch.int32)
        return exponential_noise(seeds, index, VOCAB)

    def test_the_fast_path_is_m1_s_distribution_under_this_noise(self) -> None:
        params = [SamplingParams(temperature=t, seed=7) for t in (0.5, 1.0, 2.0)]
        sequences = [sequence(p, output=(1,) * n, n=n) for n, p in enumerate(params)]
        sequences.append(sequence(SamplingParams(temperature=0), n=3))
        logits = random(4, VOCAB)
        expected = race(sampling_distribution(logits[:3], params), self.noise(sequences[:3]))
        drawn = self.draw(sequences, logits, [2, 0, 3, 1])
        assert drawn == [*expected, int(logits[3].argmax())]

    def test_filtered_rows_draw_from_m1_s_distribution_under_this_noise(self) -> None:
        params = [
            SamplingParams(top_k=4, seed=1),
            SamplingParams(top_p=0.6, temperature=1.7, seed=2),
            SamplingParams(min_p=0.3, seed=3),
            SamplingParams(repetition_penalty=1.8, seed=4, temperature=0.7),
            SamplingParams(frequency_penalty=1.0, presence_penalty=0.5, top_p=0.9),
            SamplingParams(min_tokens=9, stop_token_ids=(1, 2)),
        ]
        sequences = [sequence(p, (5, 6), (7, 7, 8), n=n) for n, p in enumerate(params)]
        logits = random(6, VOCAB)
        scores = m1_scores(logits, sequences)
        expected = race(sampling_distribution(scores, params), self.noise(sequences))
        sampler = DeviceSampler(rows_of(sequences), EOS)
        out = torch.full((6,), -1)
        sampler.draw_filtered(logits, [pick(s, i) for i, s in enumerate(sequences)], out)
        assert out.tolist() == expected

    def test_a_filter_that_removes_nothing_changes_nothing(self) -> None:
        params = SamplingParams(temperature=0.7, top_k=VOCAB)
        sequences = [sequence(params, output=(2,) * n, n=n) for n in range(6)]
        logits = random(6, VOCAB)
        fast = self.draw(sequences, logits, list(range(6)))
        out = torch.full((6,), -1)
        sampler = DeviceSampler(rows_of(sequences), EOS)
        sampler.draw_filtered(logits, [pick(s, i) for i, s in enumerate(sequences)], out)
        assert out.tolist() == fast
        assert len(set(fast)) > 2

    def test_a_seeded_sequence_goes_its_way_in_any_company(self) -> None:
        """Six steps alone; then beside others, in other rows, preempted and resumed."""
        logits = random(8, VOCAB) * 0.5
        params = SamplingParams(seed=5, temperature=1.3)

        def step(seq: Sequence, others: int, place: int) -> int:
            crowd = [sequence(SamplingParams(seed=9 + n), n=1 + n) for n in range(others)]
            places = [place, *(p for p in range(others + 1) if p != place)][: others + 1]
            rows = logits[seq.num_output_tokens].expand(others + 1, -1).contiguous()
            return self.draw([seq, *crowd], rows, places)[0]

        alone, crowded = sequence(params), sequence(params)
        for others, place in ((0, 0), (3, 2), (1, 1), (1, 0), (4, 4), (0, 3)):
            alone.append(step(alone, 0, 0), 0.0)
            crowded.append(step(crowded, others, place), 0.0)
        assert crowded.output_token_ids == alone.output_token_ids
        assert len(set(alone.output_token_ids)) > 2

    def test_parallel_samples_are_seeds_in_a_row(self) -> None:
        request = Request("r", (1,), SamplingParams(n=2, seed=30))
        second = Sequence(1, request, index=1)
        single = sequence(SamplingParams(seed=31))
        logits = random(1, VOCAB)
        assert self.draw([second], logits, [0]) == self.draw([single], logits, [0])


class TestLogprobs:
    def test_equal_m1_s(self) -> None:
        """Counts of their own, raw logits whatever the penalties, and rows that do not ask."""
        counts = [None, 0, 3, 1, 20]
        sequences = [
            sequence(SamplingParams(temperature=0, logprobs=c, repetition_penalty=9.0), n=10 + n)
            for n, c in enumerate(counts)
        ]
        logits = random(5, VOCAB)

        def text(token: int) -> str:
            return f"<{token}>"

        theirs = Sampler(0, EOS, text)(logits, sequences)
        sampler = DeviceSampler(rows_of(sequences), EOS, text)
        picks = [pick(seq, i) for i, seq in enumerate(sequences)]
        pending = sampler.logprobs(logits, torch.tensor(theirs.token_ids), picks)
        assert pending is not None
        ids = {seq.seq_id: t for seq, t in zip(sequences, theirs.token_ids, strict=True)}
        ours = pending.to_host(ids)
        assert list(ours) == [11, 12, 13, 14]
        for seq, expected in zip(sequences[1:], theirs.logprobs[1:], strict=True):
            assert expected is not None
            entries = ours[seq.seq_id]
            assert list(entries) == list(expected)
            for token, entry in entries.items():
                assert entry.rank == expected[token].rank
                assert entry.decoded_token == f"<{token}>"
                assert entry.logprob == pytest.approx(expected[token].logprob, abs=1e-5)

    def test_the_sampled_id_comes_first_with_its_own_rank(self) -> None:
        seq = sequence(SamplingParams(logprobs=2), n=4)
        logits = torch.tensor([[0.0, 3.0, 2.0, 1.0]])
        sampler = DeviceSampler(rows_of([seq]), ())
        pending = sampler.logprobs(logits, torch.tensor([3]), [pick(seq, 0)])
        assert pending is not None
        entries = pending.to_host({4: 3})[4]
        assert [(token, entry.rank) for token, entry in entries.items()] == [(3, 3), (1, 1), (2, 2)]
        assert entries[3].decoded_token is None

    def test_more_than_the_vocabulary(self) -> None:
        seq = sequence(SamplingParams(logprobs=20))
        sampler = DeviceSampler(rows_of([seq]), ())
        pending = sampler.logprobs(random(1, 5), torch.tensor([2]), [pick(seq, 0)])
        assert pending is not None
        assert set(pending.to_host({0: 2})[0]) == set(range(5))

    def test_nobody_asks(self) -> None:
        seq = sequence(SamplingParams())
        sampler = DeviceSampler(rows_of([seq]), ())
        assert sampler.logprobs(random(1, 5), torch.tensor([2]), [pick(seq, 0)]) is None


@pytest.mark.parametrize(
    "change",
    [
        {"prompt_lens": torch.zeros(3, dtype=torch.int32)},
        {"temperature": torch.zeros(2, dtype=torch.float64)},
        {"seeds": torch.zeros(2, dtype=torch.int32)},
        {"token_ids": torch.zeros(1, 5, dtype=torch.int32)},
        {"token_ids": torch.zeros(5, dtype=torch.int32)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_rows_must_fit_together(change: dict[str, Tensor]) -> None:
    parts = {
        "token_ids": torch.zeros(2, 5, dtype=torch.int32),
        "prompt_lens": torch.zeros(2, dtype=torch.int32),
        "temperature": torch.zeros(2),
        "seeds": torch.zeros(2, dtype=torch.int64),
    }
    SamplingRows(**parts)
    with pytest.raises(AssertionError):
        SamplingRows(**{**parts, **change})
