"""Philox in plain Python, the race in double precision, and statistics, for the sampler's tests."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
# Both ends, both sides of the noise's border at 1/16, and small draws in fine steps.
WORDS = [0, 1, 2, 1000, 2**28 - 10**5, 2**28 + 10**5, 2**31, 2**32 - 1]

# Chi-square quantiles at 0.999, by degrees of freedom: one seed in a thousand fails by chance, and
# the tests' seeds are fixed.
CRITICAL = {4: 18.47, 7: 24.32, 15: 37.70}


def philox(seed: int, counter: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 (Salmon et al. 2011, §3.3) on the counter ``(*counter, 0, 0)``."""
    c0, c1, c2, c3 = (*counter, 0, 0)
    k0, k1 = seed & MASK, seed >> 32
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def expected_noise(seed: int, output_index: int, token: int) -> float:
    """Exp(1) of one (seed, output index, token id), in double precision."""
    group, place = divmod(token, 1024)
    words = philox(seed, (group * 256 + place % 256, output_index & MASK))
    return exponential_of(words[place // 256])


def exponential_of(word: int) -> float:
    """``−log(1 − w)`` of the word's place in (0, 1)."""
    return -math.log1p(-(word + 0.5) / 2**32)


def race(probabilities: Tensor, noise: Tensor) -> list[int]:
    """``argmax(p / E)`` per row."""
    ids: list[int] = (probabilities.double() / noise.double()).argmax(dim=-1).tolist()
    return ids


def chi_square(ids: Tensor, probabilities: Sequence[float]) -> float:
    """Pearson's statistic of drawn ids against the probabilities they were drawn from."""
    counts = torch.bincount(ids.cpu(), minlength=len(probabilities)).double()
    assert len(counts) == len(probabilities), "an id outside the vocabulary was drawn"
    expected = torch.tensor(probabilities, dtype=torch.float64) * len(ids)
    return float(((counts - expected) ** 2 / expected).sum())
