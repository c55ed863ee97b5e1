"""What both attention kernels do with a tile of scores, and how they find a tile's keys.

The online softmax (Milakov and Gimelshein 2018, algorithm 3; Dao 2023, FlashAttention-2,
algorithm 1) never holds a whole row of scores. Per row it keeps a maximum m, a sum l and the
weighted values so far; a new tile with a larger maximum rescales what is there::

    m' = max(m, max(scores))      l' = l · 2^(m − m') + Σ 2^(scores − m')
    acc' = acc · 2^(m − m') + 2^(scores − m') · V           at the end: out = acc / l

A GPU computes 2^x in one instruction and e^x in two, so scores are multiplied by
``scale · log2(e)`` and everything is a power of two.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

LOG2_E = 1.4426950408889634


@triton.jit
def accumulate(scores, scale, v, m, total, acc):
    """Take one tile of scores and its values into the running softmax.

    * ``scores``: ``[rows, keys]`` float32, −inf where a key is hidden. Each row sees a key of its
      first tile, so that m is never −inf twice.
    * ``scale``: ``scale · log2(e)``, above 0.
    * ``v``: ``[keys, head_dim]``, finite even where hidden: weight 0 times NaN is NaN.
    * ``m``: ``[rows]`` float32, running maximum in units of log2.
    * ``total``: ``[rows]`` float32, running sum.
    * ``acc``: ``[rows, head_dim]`` float32, running weighted values.
    """
    new_m = tl.maximum(m, tl.max(scores, axis=1) * scale)
    rescale = tl.exp2(m - new_m)
    weights = tl.exp2(scores * scale - new_m[:, None])
    total = total * rescale + tl.sum(weights, axis=1)
    # As FlashAttention does, weights meet the values in the values' own precision.
    acc = tl.dot(weights.to(v.dtype), v, acc * rescale[:, None], input_precision="ieee")
    return new_m, total, acc


@triton.jit
def load_tile(pointers, UPCAST: tl.constexpr):
    """Rows of K or V. Never masked: pointers of hidden keys are clamped to a known key's."""
    tile = tl.load(pointers)
    if UPCAST:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def load_blocks(
    table_ptr, first, last, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """Blocks of the keys ``first … first + BLOCK_N − 1``, those behind ``last`` as ``last``.

    One number where a tile lies in one block, else one per key. Loops load them a tile ahead, so
    that the loads of K and V do not wait for them.

    * ``table_ptr``: The sequence's row of the block tables.
    * ``first``: First key of the tile, a multiple of ``BLOCK_N``.
    * ``last``: Last known key.
    * ``BLOCK_SIZE``: Tokens per block, a power of two.
    * ``BLOCK_N``: Keys per tile, a power of two.
    """
    if BLOCK_SIZE % BLOCK_N == 0:
        keys = tl.minimum(first, last)
    else:
        keys = tl.minimum(first + tl.arange(0, BLOCK_N), last)
    return tl.load(table_ptr + keys // BLOCK_SIZE)


@triton.jit
def page_rows(
    blocks, keys, BLOCK_STRIDE: tl.constexpr, PLACE_STRIDE: tl.constexpr, BLOCK_SIZE: tl.constexpr
):  # fmt: skip
    """Offset of each key's row in a paged cache, int64: a pool can exceed 2^31 elements.

    * ``blocks``: From :func:`load_blocks`.
    * ``keys``: ``[BLOCK_N]`` int32, keys of the tile, clamped to known ones.
    * ``BLOCK_STRIDE``: Elements between two blocks.
    * ``PLACE_STRIDE``: Elements between two tokens of a block.
    * ``BLOCK_SIZE``: Tokens per block, a power of two.
    """
    place = keys & (BLOCK_SIZE - 1)
    return blocks.to(tl.int64) * BLOCK_STRIDE + place * PLACE_STRIDE


def upcast(dtype: torch.dtype) -> bool:
    """Whether a kernel must compute in float32 throughout.

    Triton's interpreter gets bfloat16 arithmetic wrong; a GPU multiplies the inputs as they are
    and adds in float32.
    """
    return bool(triton.knobs.runtime.interpret) and dtype is not torch.float32
