"""A kernel that only reads: the floor for whatever must read the same bytes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

SMALL, LARGE = 1024, 8192
"""Words per program: many programs where there is little to read, many reads in flight else."""


@triton.jit
def _read_kernel(words_ptr, out_ptr, size, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    words = tl.load(words_ptr + at, mask=at < size, other=-(2**31))
    tl.store(out_ptr + tl.program_id(0), tl.max(words, axis=0))  # else nothing would be read


def read_words(words: Tensor) -> Tensor:
    """Read every word once; the largest of each program's share.

    Args:
        words: ``[size]`` int32, contiguous, fewer than 2³¹.

    Returns:
        ``[programs]`` int32.
    """
    size = words.numel()
    assert 0 < size < 2**31, size
    block = SMALL if size < 256 * LARGE else LARGE
    programs = triton.cdiv(size, block)
    out = torch.empty(programs, dtype=torch.int32, device=words.device)
    _read_kernel[(programs,)](words, out, size, BLOCK=block, num_warps=8)
    return out
