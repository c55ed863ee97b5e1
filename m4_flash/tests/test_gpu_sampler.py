"""The sampler compiled: whole vocabularies, 100,000 draws, CUDA graphs, and nobody waits.

Every test skips itself where there is no GPU.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from common.profiling import profile_kernels
from common.request import SamplingParams, Sequence
from m1_basic.sampler import sampling_distribution
from m4_flash.sampler import DeviceSampler, FilteredRow, SamplingRows
from m4_flash.tests.op_cases import captured
from m4_flash.tests.sample_cases import (
    CRITICAL,
    WORDS,
    chi_square,
    expected_noise,
    exponential_of,
)

pytestmark = pytest.mark.gpu

VOCAB = 151_936
EOS = (151_645,)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).cuda()


def new_rows(
    num_rows: int, temperature: float | list[float] = 1.0, first_seed: int = 0
) -> SamplingRows:
    """Row i has seed ``first_seed + i`` and a prompt of 4 tokens, all id 1."""
    temperatures = temperature if isinstance(temperature, list) else [temperature] * num_rows
    return SamplingRows(
        token_ids=torch.ones(num_rows + 1, 64, dtype=torch.int32, device="cuda"),
        prompt_lens=torch.full((num_rows,), 4, dtype=torch.int32, device="cuda"),
        temperature=torch.tensor(temperatures, device="cuda"),
        seeds=torch.arange(first_seed, first_seed + num_rows, device="cuda"),
    )


def draw(
    rows: SamplingRows, logits: Tensor, index: Tensor | None = None, num_tokens: int = 4
) -> Tensor:
    count = len(logits)
    index = torch.arange(count, device="cuda") if index is None else index
    lens = torch.full((count,), num_tokens, dtype=torch.int32, device="cuda")
    out = torch.full((count,), -1, device="cuda")
    DeviceSampler(rows, EOS).draw(logits, index, lens, out)
    return out


def lowest_argmax(logits: Tensor) -> Tensor:
    ids = torch.arange(logits.shape[-1], device="cuda")
    return torch.where(logits == logits.amax(dim=-1, keepdim=True), ids, 2**40).amin(dim=-1)


def test_known_noise() -> None:
    """Every number is the one that plain Python computes from its counter."""
    from m4_flash.kernels.noise import exponential_noise
    from m4_flash.tests.words_kernel import noise_of

    drawn = noise_of(WORDS, "cuda")
    assert drawn.tolist() == pytest.approx([exponential_of(word) for word in WORDS], rel=1e-5)
    assert (drawn.diff() > 0).all()
    seeds, index = [0, 2**63 - 1, 2**40 + 3], [0, 5, 40_959]
    table = exponential_noise(
        torch.tensor(seeds, device="cuda"),
        torch.tensor(index, dtype=torch.int32, device="cuda"),
        VOCAB,
    ).cpu()
    for row, (seed, output_index) in enumerate(zip(seeds, index, strict=True)):
        for token in (0, 255, 256, 767, 1024, 100_000, VOCAB - 1):
            expected = expected_noise(seed, output_index, token)
            assert float(table[row, token]) == pytest.approx(expected, rel=1e-5)


def test_moments_of_the_noise() -> None:
    """64 × 151,936 draws leave 0.03 % and 0.09 % of error."""
    from m4_flash.kernels.noise import exponential_noise

    index = torch.zeros(64, dtype=torch.int32, device="cuda")
    drawn = exponential_noise(torch.arange(64, device="cuda"), index, VOCAB).double()
    assert float(drawn.mean()) == pytest.approx(1.0, abs=0.002)
    assert float(drawn.var()) == pytest.approx(1.0, abs=0.005)
    assert float(drawn.min()) > 0
    assert bool(torch.isfinite(drawn).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("count", [1, 4, 5, 64, 65, 256])
def test_greedy_takes_the_lowest_of_the_largest(count: int, dtype: torch.dtype) -> None:
    """bfloat16 logits tie by themselves; every third row ties over its whole length."""
    logits = random(count, VOCAB, dtype=dtype)
    logits[2::3] = 1.0
    assert torch.equal(draw(new_rows(count, 0.0), logits), lowest_argmax(logits))


def test_each_id_is_drawn_as_often_as_its_probability() -> None:
    """131,072 draws from 16 ids, in one batch."""
    count = 2**17
    logits = random(16, seed=4)
    drawn = draw(new_rows(count, 0.8), logits.expand(count, -1))
    probabilities = torch.softmax(logits.double() / 0.8, dim=-1).tolist()
    assert chi_square(drawn, probabilities) < CRITICAL[15]


def test_output_indices_are_as_good_as_seeds() -> None:
    """131,072 draws of one seed."""
    count = 2**17
    logits = random(16, seed=5)
    rows = new_rows(1)
    lens = torch.arange(4, 4 + count, dtype=torch.int32, device="cuda")
    out = torch.empty(count, dtype=torch.int64, device="cuda")
    index = torch.zeros(count, dtype=torch.int32, device="cuda")
    DeviceSampler(rows, EOS).draw(logits.expand(count, -1), index, lens, out)
    assert chi_square(out, torch.softmax(logits.double(), dim=-1).tolist()) < CRITICAL[15]


def test_a_flat_vocabulary_is_drawn_evenly() -> None:
    """The winner of 151,936 equals is the smallest draw: coarse noise would favour low ids."""
    count = 2**15
    flat = torch.zeros(1, VOCAB, dtype=torch.bfloat16, device="cuda").expand(count, -1)
    drawn = draw(new_rows(count), flat)
    assert int(drawn.max()) < VOCAB
    sixteenth = VOCAB // 16
    assert chi_square(drawn // sixteenth, [1 / 16] * 16) < CRITICAL[15]
    # Within one program's words, too: id modulo 1,024 says which lane and word it was.
    within = drawn[drawn < VOCAB // 1024 * 1024] % 1024 // 128
    assert chi_square(within, [1 / 8] * 8) < CRITICAL[7]


@pytest.mark.parametrize("count", [2, 5, 64, 65, 256])
def test_same_ids_alone_and_in_any_batch(count: int) -> None:
    """All tilings, rows in another order, padding behind them."""
    logits = random(count, VOCAB, dtype=torch.bfloat16)
    rows = new_rows(count, 0.8)
    together = draw(rows, logits, num_tokens=9)
    ids = torch.arange(count, device="cuda")
    alone = [draw(rows, logits[i : i + 1], ids[i : i + 1], 9) for i in range(min(3, count))]
    assert torch.equal(torch.cat(alone), together[: len(alone)])
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).cuda()
    assert torch.equal(draw(rows, logits[order], order, 9), together[order])
    padded = torch.cat((logits, logits.new_full((3, VOCAB), float("nan"))))
    index = torch.cat((torch.arange(count), torch.zeros(3, dtype=torch.int64))).cuda()
    lens = torch.tensor([9] * count + [0] * 3, dtype=torch.int32, device="cuda")
    out = torch.full((count + 3,), -1, device="cuda")
    DeviceSampler(rows, EOS).draw(padded, index, lens, out)
    assert torch.equal(out[:count], together)
    assert bool(((out >= 0) & (out < VOCAB)).all())


def test_seeds_and_steps_differ() -> None:
    flat = torch.zeros(64, VOCAB, device="cuda")
    first, second = draw(new_rows(64), flat), draw(new_rows(64), flat, num_tokens=5)
    assert len(set(first.tolist())) >= 63
    assert int((first == second).sum()) <= 1


def test_two_kernels_a_draw() -> None:
    rows, logits = new_rows(8), random(8, VOCAB)
    sampler = DeviceSampler(rows, EOS)
    index = torch.arange(8, device="cuda")
    lens = torch.full((8,), 4, dtype=torch.int32, device="cuda")
    out = torch.empty(8, dtype=torch.int64, device="cuda")
    sampler.draw(logits, index, lens, out)
    assert profile_kernels(lambda: sampler.draw(logits, index, lens, out)).num_kernels == 2


def test_replays_in_a_graph() -> None:
    """Logits, rows, lengths and temperatures are values: a replay draws what they say now."""
    count = 5
    rows, logits = new_rows(8, 0.9), random(count, VOCAB, dtype=torch.bfloat16)
    sampler = DeviceSampler(rows, EOS)
    index = torch.arange(count, device="cuda")
    lens = torch.full((count,), 4, dtype=torch.int32, device="cuda")
    out = torch.empty(count, dtype=torch.int64, device="cuda")
    graph, _ = captured(lambda: sampler.draw(logits, index, lens, out))
    for seed in range(3):
        logits.copy_(random(count, VOCAB, dtype=torch.bfloat16, seed=seed))
        index.copy_(index.roll(1) + seed)
        lens.add_(1)
        lens[-1] = 0
        rows.temperature[seed] = 0.0
        graph.replay()
        eager = torch.empty_like(out)
        sampler.draw(logits, index, lens, eager)
        assert torch.equal(out, eager)


PARAMS = [
    SamplingParams(top_k=50),
    SamplingParams(top_p=0.9, temperature=0.7),
    SamplingParams(min_p=0.02),
    SamplingParams(top_k=20, top_p=0.95, temperature=0.6, repetition_penalty=1.2),
    SamplingParams(frequency_penalty=0.5, presence_penalty=0.4, temperature=0),
    SamplingParams(min_tokens=50, max_tokens=99, stop_token_ids=(3, 4)),
    SamplingParams(top_k=VOCAB, logprobs=5),
    SamplingParams(logprobs=0),
]


def picks_of(count: int) -> list[FilteredRow]:
    """Row i of the batch lies in device row i; 4 prompt tokens and 6 more."""
    return [
        FilteredRow(
            index=i,
            row=i,
            seq_id=100 + i,
            params=PARAMS[i % len(PARAMS)],
            num_tokens=10,
            num_prompt_tokens=4,
        )
        for i in range(count)
    ]


def rows_for(picks: list[FilteredRow]) -> SamplingRows:
    temperatures = [0.0 if p.params.is_greedy else p.params.temperature for p in picks]
    rows = new_rows(len(picks), temperatures)
    generator = torch.Generator().manual_seed(0)
    rows.token_ids.copy_(torch.randint(VOCAB, rows.token_ids.shape, generator=generator))
    return rows


def m1_scores(logits: Tensor, rows: SamplingRows, picks: list[FilteredRow]) -> Tensor:
    """M1's scores before temperature, on the CPU."""
    from common.request import Request
    from m1_basic.sampler import apply_penalties

    scores, sequences = logits.cpu().float(), list[Sequence]()
    for pick in picks:
        ids = rows.token_ids[pick.row, : pick.num_tokens].tolist()
        request = Request("r", tuple(ids[: pick.num_prompt_tokens]), pick.params)
        sequences.append(Sequence(0, request, token_ids=ids))
        if pick.num_output_tokens < pick.params.min_tokens:
            scores[pick.index, [*EOS, *pick.params.stop_token_ids]] = float("-inf")
    return apply_penalties(scores, sequences)


def test_filtered_rows_draw_from_m1_s_distribution_under_this_noise() -> None:
    """Logits of float32, whose sort has one order; whole vocabulary, two slices of rows."""
    from m4_flash.kernels.noise import exponential_noise

    picks = picks_of(72)
    rows, logits = rows_for(picks), random(72, VOCAB) * 3
    out = torch.full((72,), -1, device="cuda")
    DeviceSampler(rows, EOS).draw_filtered(logits, picks, out)
    scores = m1_scores(logits, rows, picks)
    index = torch.full((72,), 6, dtype=torch.int32, device="cuda")
    noise = exponential_noise(rows.seeds, index, VOCAB).cpu().double()
    expected = scores.argmax(dim=-1)
    drawn = [p.index for p in picks if not p.params.is_greedy]
    probabilities = sampling_distribution(scores[drawn], [picks[i].params for i in drawn])
    expected[drawn] = (probabilities.double() / noise[drawn]).argmax(dim=-1)
    assert torch.equal(out.cpu(), expected)


def test_a_filter_that_removes_nothing_changes_nothing() -> None:
    logits = random(16, VOCAB, dtype=torch.bfloat16)
    rows = new_rows(16, 0.7)
    params = SamplingParams(temperature=0.7, top_k=VOCAB)
    picks = [FilteredRow(i, i, i, params, 9, 4) for i in range(16)]
    fast = draw(rows, logits, num_tokens=9)
    out = torch.full((16,), -1, device="cuda")
    DeviceSampler(rows, EOS).draw_filtered(logits, picks, out)
    assert torch.equal(out, fast)


def test_logprobs() -> None:
    picks = picks_of(16)
    rows, logits = rows_for(picks), random(16, VOCAB)
    ids = logits.argmax(dim=-1)
    ids[6] = 12
    pending = DeviceSampler(rows, EOS).logprobs(logits, ids, picks)
    assert pending is not None
    assert pending.values.device.type == "cpu"
    assert pending.values.is_pinned()
    token_ids = {p.seq_id: t for p, t in zip(picks, ids.tolist(), strict=True)}
    entries = pending.to_host(token_ids)
    assert {seq_id: len(row) for seq_id, row in entries.items()} == {106: 6, 107: 1, 114: 5, 115: 1}
    expected = torch.log_softmax(logits.double(), dim=-1).cpu()
    rounded = torch.log_softmax(logits, dim=-1).cpu()
    for pick in picks:
        for token, entry in entries.get(pick.seq_id, {}).items():
            row = rounded[pick.index]
            assert entry.logprob == pytest.approx(float(expected[pick.index, token]), abs=1e-4)
            assert entry.rank == int((row > row[token]).sum()) + 1


def test_filters_and_logprobs_never_wait() -> None:
    """PyTorch raises at the first operation that synchronises host and device."""
    picks = picks_of(72)
    rows, logits = rows_for(picks), random(72, VOCAB)
    sampler = DeviceSampler(rows, EOS)
    index = torch.arange(72, device="cuda")
    lens = torch.full((72,), 10, dtype=torch.int32, device="cuda")
    out = torch.full((72,), -1, device="cuda")

    def step() -> Any:
        sampler.draw(logits, index, lens, out)
        sampler.draw_filtered(logits, picks, out)
        return sampler.logprobs(logits, out, picks)

    step()  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        pending = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert pending is not None
    assert bool((out >= 0).all())
