"""Random numbers that are computed from a counter instead of drawn from a state.

A generator's n-th number depends on the n − 1 draws before it, so a sequence's tokens would depend
on what else was drawn, and a draw cannot be replayed. Philox (Salmon et al. 2011) is a keyed
function: ten rounds of multiply and xor turn a 128-bit counter into 128 random bits::

    key     = the sequence's seed, 64 bits
    counter = (place of a group of four ids in the vocabulary, output index, 0, 0)

Whoever knows (seed, output index, token id) knows the noise: alone or in a batch, in any row, after
a preemption, in a padded graph.

The four 32-bit words of one counter serve four token ids that lie 256 apart, so that each is a
contiguous load of its own and no word has to move between threads::

    id      0 … 255    256 … 511    512 … 767    768 … 1023  |  1024 …
    word       0           1            2             3      |     0
    counter 0 … 255     0 … 255      0 … 255       0 … 255   |  256 …
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

LANES = 256  # ids per word; the map above is part of a seed's meaning, so it is never tuned
GROUP = 4 * LANES
COMPILED = tl.constexpr(not triton.knobs.runtime.interpret)


@triton.jit
def philox_words(seed, output_index, place):
    """Four blocks of uint32 for counters ``(place, output_index, 0, 0)`` under key ``seed``."""
    zero = place * 0
    return tl.philox(seed, place, zero + output_index.to(tl.int32), zero, zero)


@triton.jit
def log(x):
    """Natural logarithm; on a GPU one instruction instead of twenty, off by 2⁻²² at most.

    That is absolute between ½ and 2, relative elsewhere. The interpreter has no such instruction.
    """
    if COMPILED:  # gpu-only: m4_flash/tests/test_gpu_sampler.py::test_known_noise
        return libdevice.fast_logf(x)
    else:
        return tl.log(x)


@triton.jit
def exponential(word):
    """A draw from Exp(1) for each 32-bit word: finite, positive, exact to about 1e-5 everywhere.

    With ``w = (word + ½) / 2³²`` in (0, 1) it is ``−log(1 − w)``. The smallest draw of a vocabulary
    of 150,000 is about 1/150,000, and it decides the race, so small draws must be fine: 1 − w in
    float32 would leave steps of 6e-8, 1 % of that. Below 1/16 the series of the logarithm keeps w's
    own steps of 2⁻³². Above, 1 − w is computed from the inverted word, which never rounds to 0.
    """
    unit: tl.constexpr = 1.0 / 4294967296.0
    w = (word.to(tl.float32) + 0.5) * unit
    series = w * (1.0 + w * (0.5 + w * (0.33333333 + w * 0.25)))
    rest = ((word ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * unit
    return tl.where(w < 0.0625, series, -log(rest))


@triton.jit
def _noise_kernel(
    seed_ptr, index_ptr, out_ptr, vocab, out_stride, LANES: tl.constexpr,
):  # fmt: skip
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lane = tl.arange(0, LANES)
    place = group * LANES + lane
    word0, word1, word2, word3 = philox_words(
        tl.load(seed_ptr + row), tl.load(index_ptr + row), place
    )  # fmt: skip
    token = group * (4 * LANES) + lane
    out_ptr += row * out_stride + token
    tl.store(out_ptr, exponential(word0), mask=token < vocab)
    tl.store(out_ptr + LANES, exponential(word1), mask=token + LANES < vocab)
    tl.store(out_ptr + 2 * LANES, exponential(word2), mask=token + 2 * LANES < vocab)
    tl.store(out_ptr + 3 * LANES, exponential(word3), mask=token + 3 * LANES < vocab)


def exponential_noise(seeds: Tensor, output_index: Tensor, vocab: int) -> Tensor:
    """The noise that the sampling kernel draws with, written out; the sampler itself never does.

    ``(logits / temperature).softmax(-1) / exponential_noise(…)`` is largest at the sampled id.

    Args:
        seeds: ``[rows]`` int64.
        output_index: ``[rows]`` int32, how many tokens each row had generated before the draw.
        vocab: Vocabulary size.

    Returns:
        ``[rows, vocab]`` float32, independent draws from Exp(1).
    """
    out = torch.empty(len(seeds), vocab, dtype=torch.float32, device=seeds.device)
    _noise_kernel[(len(seeds), triton.cdiv(vocab, GROUP))](
        seeds, output_index, out, vocab, out.stride(0), LANES=LANES, num_warps=1
    )
    return out
