"""A kernel that turns given random words into noise: the words at the ends are never drawn."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from m4_flash.kernels.noise import exponential


@triton.jit
def _words_kernel(word_ptr, out_ptr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    lane = tl.arange(0, 8)
    tl.store(out_ptr + lane, exponential(tl.load(word_ptr + lane).to(tl.uint32)))


def noise_of(words: list[int], device: str = "cpu") -> Tensor:
    """Eight words below 2³² to ``[8]`` float32 draws from Exp(1)."""
    out = torch.empty(8, dtype=torch.float32, device=device)
    _words_kernel[(1,)](torch.tensor(words, device=device), out)
    return out
