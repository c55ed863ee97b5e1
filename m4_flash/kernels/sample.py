"""Greedy and temperature sampling in one pass over the logits, without softmax, sort or sum.

The reference draws by the exponential race: of clocks with rates p_i, clock i rings first with
probability p_i, so the sampled id is ``argmax(p_i / E_i)`` with E_i from Exp(1). Its logarithm::

    log(p_i / E_i) = logit_i / temperature − log(E_i) − log(sum)

The last term is the same for all i, so ``argmax(logit_i / temperature − log E_i)`` is the same draw
(Gumbel's trick), and it needs no normalisation: every logit is read once. Two launches: programs
over chunks of the vocabulary keep their best score and id, then one program per row takes the best
of those. Noise comes from :mod:`m4_flash.kernels.noise`. vLLM has the same idea in
``v1/worker/gpu/sample/gumbel.py``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from common.request import GREEDY_EPSILON
from m4_flash.kernels.noise import GROUP, LANES, exponential, log, philox_words


@triton.jit
def _scores(logits_ptr, token, vocab):
    """Logits in float32; what is behind the vocabulary loses against everything."""
    return tl.load(logits_ptr + token, mask=token < vocab, other=-float("inf")).to(tl.float32)


@triton.jit
def _better(best, best_id, score, token):
    """Keep the larger score; called with ascending ids, so a tie keeps the lower one."""
    wins = score > best  # never true of a NaN
    return tl.where(wins, score, best), tl.where(wins, token, best_id)


@triton.jit
def _race_kernel(
    logits_ptr, row_ptr, len_ptr, prompt_len_ptr, temperature_ptr, seed_ptr,
    best_ptr, id_ptr,
    vocab, logits_stride,
    GREEDY_BELOW: tl.constexpr, LANES: tl.constexpr, TILE: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    index, chunk = tl.program_id(0), tl.program_id(1)
    row = tl.load(row_ptr + index)
    temperature = tl.load(temperature_ptr + row)
    seed = tl.load(seed_ptr + row)
    output_index = tl.load(len_ptr + index) - tl.load(prompt_len_ptr + row)
    logits_ptr += index.to(tl.int64) * logits_stride
    lane = tl.arange(0, LANES)[None, :]
    first = chunk * (STEPS * TILE) + tl.arange(0, TILE)[:, None]
    best = tl.full([TILE, LANES], -float("inf"), dtype=tl.float32)
    best_id = first * (4 * LANES) + lane
    for step in range(STEPS):
        group = first + step * TILE
        token = group * (4 * LANES) + lane
        score0 = _scores(logits_ptr, token, vocab)
        score1 = _scores(logits_ptr, token + LANES, vocab)
        score2 = _scores(logits_ptr, token + 2 * LANES, vocab)
        score3 = _scores(logits_ptr, token + 3 * LANES, vocab)
        if temperature >= GREEDY_BELOW:
            inverse = 1.0 / temperature
            word0, word1, word2, word3 = philox_words(seed, output_index, group * LANES + lane)
            score0 = score0 * inverse - log(exponential(word0))
            score1 = score1 * inverse - log(exponential(word1))
            score2 = score2 * inverse - log(exponential(word2))
            score3 = score3 * inverse - log(exponential(word3))
        best, best_id = _better(best, best_id, score0, token)
        best, best_id = _better(best, best_id, score1, token + LANES)
        best, best_id = _better(best, best_id, score2, token + 2 * LANES)
        best, best_id = _better(best, best_id, score3, token + 3 * LANES)
    top = tl.max(best)
    lowest = tl.min(tl.where(best == top, best_id, 2147483647))
    place = index * tl.num_programs(1) + chunk
    tl.store(best_ptr + place, top)
    tl.store(id_ptr + place, lowest)


@triton.jit
def _race_winner_kernel(best_ptr, id_ptr, out_ptr, CHUNKS: tl.constexpr, CHUNKS_P2: tl.constexpr):
    index = tl.program_id(0)
    chunk = tl.arange(0, CHUNKS_P2)
    known = chunk < CHUNKS
    best = tl.load(best_ptr + index * CHUNKS + chunk, mask=known, other=-float("inf"))
    ids = tl.load(id_ptr + index * CHUNKS + chunk, mask=known, other=2147483647)
    top = tl.max(best, axis=0)
    lowest = tl.min(tl.where(best == top, ids, 2147483647), axis=0)
    tl.store(out_ptr + index, lowest.to(tl.int64))


def sample(
    logits: Tensor,
    row_index: Tensor,
    seq_lens: Tensor,
    prompt_lens: Tensor,
    temperature: Tensor,
    seeds: Tensor,
    out: Tensor,
) -> None:
    """Draw one id per row of logits; every tie goes to the lowest id.

    The grid comes from shapes alone and nothing is read back, so it can be captured in a graph.
    Ids do not depend on the batch: only on a row's logits, seed, temperature and output index.
    NaN and −inf are never drawn where there is anything else; a row of nothing else gives id 0.

    Args:
        logits: ``[num_seqs, vocab_size]``, any float dtype, the last dimension contiguous.
        row_index: ``[num_seqs]`` int, the parameters' row of each sequence; padding names any row.
        seq_lens: ``[num_seqs]`` int, known tokens; output index is this minus the prompt's length.
            Padding has 0.
        prompt_lens: ``[num_rows]`` int.
        temperature: ``[num_rows]`` float32; below 1e-5 the largest logit is taken.
        seeds: ``[num_rows]`` int64.
        out: ``[num_seqs]`` int64, written.
    """
    num_seqs, vocab = logits.shape
    assert row_index.shape == seq_lens.shape == out.shape == (num_seqs,)
    assert logits.stride(-1) == out.stride(0) == row_index.stride(0) == seq_lens.stride(0) == 1
    tile, steps = tiling(num_seqs)
    chunks = triton.cdiv(vocab, tile * steps * GROUP)
    best = torch.empty(num_seqs, chunks, dtype=torch.float32, device=logits.device)
    ids = torch.empty(num_seqs, chunks, dtype=torch.int32, device=logits.device)
    _race_kernel[(num_seqs, chunks)](
        logits, row_index, seq_lens, prompt_lens, temperature, seeds,
        best, ids,
        vocab, logits.stride(0),
        GREEDY_BELOW=GREEDY_EPSILON, LANES=LANES, TILE=tile, STEPS=steps,
        num_warps=tile,  # 8 ids of each word, or 16 bytes, per thread
    )  # fmt: skip
    _race_winner_kernel[(num_seqs,)](
        best, ids, out, CHUNKS=chunks, CHUNKS_P2=triton.next_power_of_2(chunks), num_warps=1
    )


def tiling(num_seqs: int) -> tuple[int, int]:
    """Groups of 1,024 ids that a program takes at once, and how often.

    A vocabulary of 151,936 has 149 groups: one program each for a few rows, so that every SM of a
    GPU has one; larger chunks for many rows, so that programs are not too many.
    """
    if num_seqs <= 4:
        return 1, 1
    return (4, 1) if num_seqs <= 64 else (4, 2)
