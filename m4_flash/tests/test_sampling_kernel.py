"""The noise and the sampling kernel in Triton's interpreter.

``test_gpu_sampler.py`` runs them compiled, with whole vocabularies and many more draws.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from m4_flash.tests.sample_cases import (
    CRITICAL,
    WORDS,
    chi_square,
    expected_noise,
    exponential_of,
    philox,
    race,
)

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="kernels are compiled here: test_gpu_sampler.py"
)


def noise(seeds: list[int], output_index: list[int], vocab: int) -> Tensor:
    from m4_flash.kernels.noise import exponential_noise

    index = torch.tensor(output_index, dtype=torch.int32)
    return exponential_noise(torch.tensor(seeds), index, vocab)


def sample(
    logits: Tensor,
    temperature: float | list[float] = 1.0,
    *,
    seeds: list[int] | None = None,
    rows: list[int] | None = None,
    output_index: list[int] | None = None,
    prompt_len: int = 3,
) -> list[int]:
    """Row i of the batch has seed, temperature and output index i, kept in device row rows[i]."""
    from m4_flash.kernels.sample import sample as kernel

    count = len(logits)
    seeds = list(range(count)) if seeds is None else seeds
    rows = list(range(count)) if rows is None else rows
    index = [0] * count if output_index is None else output_index
    temperatures = temperature if isinstance(temperature, list) else [temperature] * count
    table_seeds = torch.full((max(rows) + 1,), 2**62)
    table_temperature = torch.full((max(rows) + 1,), 7.0)
    table_prompt = torch.full((max(rows) + 1,), 99, dtype=torch.int32)
    for row, seed, value in zip(rows, seeds, temperatures, strict=True):
        table_seeds[row], table_temperature[row], table_prompt[row] = seed, value, prompt_len
    out = torch.full((count,), -1)
    lens = torch.tensor(index, dtype=torch.int32) + prompt_len
    kernel(logits, torch.tensor(rows), lens, table_prompt, table_temperature, table_seeds, out)
    ids: list[int] = out.tolist()
    return ids


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestNoise:
    def test_the_reference_gives_the_published_words(self) -> None:
        """Random123's known answer for counter 0 and key 0."""
        assert philox(0, (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)

    def test_known_answer(self) -> None:
        """The four words of the first counter serve ids 0, 256, 512 and 768."""
        row = noise([0], [0], 1024)[0]
        words = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
        for token, word in zip((0, 256, 512, 768), words, strict=True):
            assert float(row[token]) == pytest.approx(exponential_of(word), rel=1e-5)

    @settings(max_examples=8, deadline=None)
    @given(seed=st.integers(0, 2**63 - 1), output_index=st.integers(0, 2**31 - 10), data=st.data())
    def test_each_number_is_a_function_of_its_counter(
        self, seed: int, output_index: int, data: st.DataObject
    ) -> None:
        vocab = data.draw(st.integers(1, 2100))
        token = data.draw(st.integers(0, vocab - 1))
        row = noise([seed], [output_index], vocab)
        assert row.shape == (1, vocab)
        expected = expected_noise(seed, output_index, token)
        assert float(row[0, token]) == pytest.approx(expected, rel=1e-5)

    def test_the_ends_are_finite_and_fine(self) -> None:
        from m4_flash.tests.words_kernel import noise_of

        drawn = noise_of(WORDS)
        assert drawn.tolist() == pytest.approx([exponential_of(word) for word in WORDS], rel=1e-5)
        assert (drawn.diff() > 0).all()

    def test_moments(self) -> None:
        """Mean 1, variance 1, median log 2; 65,536 draws leave 0.4 % and 1.1 % of error."""
        drawn = noise([1234567890123], [5], 65536)[0]
        assert float(drawn.mean()) == pytest.approx(1.0, abs=0.016)
        assert float(drawn.var()) == pytest.approx(1.0, abs=0.045)
        assert float((drawn < math.log(2)).float().mean()) == pytest.approx(0.5, abs=0.008)

    def test_its_race_draws_each_id_as_often_as_its_probability(self) -> None:
        probabilities = torch.softmax(random(16), dim=-1)
        drawn = noise([3], [0], 65536)[0].view(4096, 16)
        ids = torch.tensor(race(probabilities.expand_as(drawn), drawn))
        assert chi_square(ids, probabilities.tolist()) < CRITICAL[15]


class TestGreedy:
    @pytest.mark.parametrize("count", [1, 5, 66])
    def test_takes_the_largest_and_the_lowest_of_equals(self, count: int) -> None:
        """Ties within a program, between its words, and between programs, at every tiling."""
        logits = random(count, 9000).clamp_(max=2.0)
        ties = [(0, 8999), (5, 300), (700, 8500), (8191, 8192), (4095, 4097), (1, 2)]
        for row in range(count):
            logits[row, list(ties[row % len(ties)])] = 3.0
        assert sample(logits, 0.0) == [ties[row % len(ties)][0] for row in range(count)]

    def test_all_equal(self) -> None:
        assert sample(torch.zeros(2, 1500), 0.0) == [0, 0]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
    def test_any_float_dtype(self, dtype: torch.dtype) -> None:
        logits = random(3, 40).to(dtype)
        assert sample(logits, 0.0) == logits.float().argmax(dim=-1).tolist()

    def test_a_tiny_temperature_is_greedy(self) -> None:
        """Below 1e-5 by definition, and close above it because no noise spans the gap."""
        logits = random(4, 50)
        largest = logits.argmax(dim=-1).tolist()
        top = logits.topk(2).values
        assert float((top[:, 0] - top[:, 1]).min()) > 0.01
        assert sample(logits, [0.0, 9e-6, 1e-5, 1e-4]) == largest

    def test_rows_of_logits_may_lie_apart(self) -> None:
        wide = random(3, 2, 30)
        assert sample(wide[:, 1], 0.0) == wide[:, 1].argmax(dim=-1).tolist()


class TestDraw:
    def test_is_the_race_with_its_noise(self) -> None:
        """Temperatures above and below 1, several programs a row."""
        logits = random(6, 1300) * 2
        temperatures = [0.3, 0.7, 1.0, 1.5, 3.0, 10.0]
        seeds, index = [9, 2**40 + 1, 2**63 - 1, 0, 77, 5], [0, 1, 2, 1000, 4, 40959]
        probabilities = torch.softmax(logits / torch.tensor(temperatures)[:, None], dim=-1)
        expected = race(probabilities, noise(seeds, index, 1300))
        drawn = sample(logits, temperatures, seeds=seeds, output_index=index)
        assert drawn == expected
        assert len(set(drawn)) > 3

    def test_draws_each_id_as_often_as_its_probability(self) -> None:
        probabilities = [0.5, 0.25, 0.125, 0.0625, 0.0625]
        logits = torch.tensor([probabilities]).log().expand(4, -1)
        drawn = []
        for first in range(0, 120, 4):  # four rows of a small vocabulary are quick to interpret
            drawn += sample(logits, seeds=list(range(first, first + 4)))
        assert chi_square(torch.tensor(drawn), probabilities) < CRITICAL[4]

    def test_output_indices_and_seeds_draw_anew(self) -> None:
        flat = torch.zeros(8, 1000)
        by_index = sample(flat, seeds=[1] * 8, output_index=list(range(8)))
        by_seed = sample(flat, seeds=list(range(8)))
        assert len(set(by_index)) >= 7
        assert len(set(by_seed)) >= 7
        assert sample(flat, seeds=[1] * 8, output_index=[3] * 8) == [by_index[3]] * 8

    def test_seeds_that_share_their_low_half_differ(self) -> None:
        flat = torch.zeros(3, 1000)
        assert len(set(sample(flat, seeds=[1, 1 + 2**32, 1 + 2**62]))) == 3

    def test_the_prompt_s_length_does_not_matter(self) -> None:
        """Only how many tokens were generated."""
        logits = random(1, 500)
        short = sample(logits, prompt_len=1, output_index=[4])
        assert sample(logits, prompt_len=900, output_index=[4]) == short

    def test_same_id_in_any_batch_row_and_tiling(self) -> None:
        logits, others = random(1, 9000), random(70, 9000, seed=1)
        alone = sample(logits, 0.8, seeds=[42], output_index=[6])
        for count, place in ((2, 1), (5, 0), (70, 33)):
            batch = others[:count].clone()
            batch[place] = logits
            temperatures, seeds, index = [0.0] * count, [7] * count, [1] * count
            temperatures[place], seeds[place], index[place] = 0.8, 42, 6
            rows = list(reversed(range(count)))
            drawn = sample(batch, temperatures, seeds=seeds, output_index=index, rows=rows)
            assert drawn[place] == alone[0]

    def test_padding_gives_some_id_and_disturbs_nobody(self) -> None:
        """Row 0 of the parameters, no tokens, and logits that may be anything."""
        from m4_flash.kernels.sample import sample as kernel

        logits = random(4, 700)
        logits[2], logits[3] = float("nan"), float("inf")
        out = torch.full((4,), -1)
        rows = torch.tensor([1, 0, 0, 0], dtype=torch.int32)
        lens = torch.tensor([5, 4, 0, 0], dtype=torch.int32)
        prompt_lens = torch.tensor([4, 3], dtype=torch.int32)
        kernel(logits, rows, lens, prompt_lens, torch.ones(2), torch.tensor([11, 12]), out)
        assert out[:2].tolist() == sample(logits[:2], seeds=[12, 11], output_index=[2, 0])
        assert ((out >= 0) & (out < 700)).all()

    def test_minus_infinity_is_never_drawn(self) -> None:
        logits = torch.full((6, 2000), float("-inf"))
        logits[:, [3, 1999]] = 0.0
        drawn = sample(logits, [1.0, 1.0, 1.0, 50.0, 50.0, 0.0])
        assert set(drawn[:5]) == {3, 1999}
        assert drawn[5] == 3

    def test_rows_without_any_finite_logit(self) -> None:
        logits = torch.full((2, 1100), float("-inf"))
        logits[1] = float("nan")
        assert sample(logits, [1.0, 0.0]) == [0, 0]
        assert sample(logits, [0.0, 1.0]) == [0, 0]

    def test_large_logits_do_not_overflow(self) -> None:
        logits = torch.tensor([[1e4, -1e4, 9.9e3], [-1e30, -1e30, -1e31]])
        assert sample(logits, [1e-5, 1.0])[0] == 0
        assert sample(logits, [1.0, 1e-3])[1] in (0, 1)

    def test_one_id(self) -> None:
        assert sample(random(2, 1), [0.0, 1.0]) == [0, 0]
