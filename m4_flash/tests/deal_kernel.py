"""A kernel that shows how the decode kernel deals its places; a kernel cannot be a closure."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from m4_flash.kernels.decode import deal


@triton.jit
def _kernel(len_ptr, out_ptr, num_seqs, places):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    seqs, parts = deal(len_ptr, None, num_seqs, places, 16, 4)
    tl.store(out_ptr + seqs, parts)


def dealt(tiles: list[int], places: int) -> list[int]:
    """Parts of four sequences whose contexts fill so many tiles of 16 keys."""
    parts = torch.zeros(4, dtype=torch.int32)
    lengths = torch.tensor([max(16 * count - 3, 0) for count in tiles], dtype=torch.int32)
    _kernel[(1,)](lengths, parts, 4, places)
    return [int(part) for part in parts]
