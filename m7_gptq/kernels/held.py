"""What the two kernels for few rows share: a weight that is in registers before x is there.

At decode a matrix is read once for one row or sixteen, and the bytes are the cost. A program takes
``8 · blocks`` outputs; its warps share out the inputs, so that even 1024 outputs fill an H100
without cutting K between programs::

    one chunk of a program          words [8 lanes, warps, blocks, 16]

      warp w       lane 0   |w w w w|w w w w|w w w w|w w w w|    4 threads of 16 bytes
      (tile t+w)   lane 1   |       |       |       |       |
                    …    7  512 consecutive bytes of a warp, once per block

    in time     | read all chunks' words, scales, zeros; unpack | wait | read x, multiply |
                | the kernel that makes x is still running      |      |

All chunks of a program are under way at once: a memory of 3 TB/s that answers after 0.7 µs needs
16 KB under way per multiprocessor. And nothing of a weight depends on the kernel in front, so words
are read *and unpacked* before its end (see :mod:`m4_flash.kernels.launch`); what stands behind the
wait is a fraction of the work. K of more chunks than registers hold is walked through in groups,
of which one is multiplied while the next is under way.

The order in time must be forced: to a compiler the wait orders memory alone, and it moves the
arithmetic of unpacking behind it, next to its use, to spare registers. It never moves arithmetic
*into* a loop. So the wait, x and the products stand in a loop over rows, even where that runs once.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from common.errors import ConfigError
from m4_flash.kernels.launch import launch_options
from m7_gptq.kernels.repack import SLICE, PackedWeight
from m7_gptq.kernels.tiles import load_grid
from m7_gptq.packing import per_word

LANES = 8
"""Outputs of a block."""
FEW_SMS = 16
"""Where the interpreter stands in for a device."""


@dataclass(frozen=True)
class HeldConfig:
    """Launch of a kernel.

    Attributes:
        blocks: Blocks of 8 outputs per program; even where gate and up are computed together.
        num_warps: Warps per program, and tiles of K per chunk.
        depth: Chunks in registers at a time.
    """

    blocks: int
    num_warps: int
    depth: int

    def __post_init__(self) -> None:
        """Sides of a Triton tile are powers of two.

        Raises:
            ConfigError: One is not, or a value is out of range.
        """
        for name, most in (("blocks", 8), ("num_warps", 32)):
            value = getattr(self, name)
            if not 1 <= value <= most or value & (value - 1):
                raise ConfigError(f"{name} must be a power of two in 1 … {most}, got {value}")
        if self.depth < 1:
            raise ConfigError(f"depth must be at least 1, got {self.depth}")


def held_config(blocks: int, num_warps: int, tiles: int, most: int) -> HeldConfig:
    """The deepest launch that leaves no group of chunks half empty.

    Args:
        blocks: As in :class:`HeldConfig`.
        num_warps: As many as wanted; fewer where K has fewer tiles.
        tiles: Tiles of K.
        most: Chunks that fit in registers.
    """
    num_warps = min(triton.next_power_of_2(tiles), num_warps)
    chunks = triton.cdiv(tiles, num_warps)
    depth = max(d for d in range(1, max(most, 1) + 1) if chunks % d == 0)
    return HeldConfig(blocks, num_warps, depth)


@functools.cache
def num_sms(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; a small number where kernels are interpreted."""
    if device.type == "cuda":  # gpu-only: m7_gptq/tests/test_gpu_kernels.py::test_qwen3_shapes
        return torch.cuda.get_device_properties(device).multi_processor_count
    return FEW_SMS


def span_of(weight: PackedWeight) -> int:
    """How many values of a word in a row share a group: all, or as many as a group has slices."""
    count = per_word(weight.bits)
    if weight.group_width % (SLICE * count) == 0:  # a tile is in one group
        return count
    if SLICE * count % weight.group_width == 0:  # a group is part of a tile
        return weight.group_width // SLICE
    return 1


def launch(
    kernel: Any,
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None,
    config: HeldConfig,
    *,
    gated: bool,
    pdl: bool,
    **constants: Any,
) -> Tensor:
    """Run one of the two kernels, whose arguments are the same.

    Args:
        kernel: A function of Triton.
        x: ``[rows, in]``, at least 1 row, neighbouring inputs adjacent.
        weight: On the same device; gate's outputs, then up's, if ``gated``.
        bias: ``[out]`` or None.
        config: The launch; of an even number of blocks if ``gated``.
        gated: Halve the outputs by SwiGLU's gate.
        pdl: Launch programmatically, see :mod:`m4_flash.kernels.launch`.
        constants: What the kernel has beyond the other one.

    Returns:
        ``[rows, out]``, or ``[rows, out / 2]`` if ``gated``, in the dtype of ``x``.
    """
    (rows, inputs), outputs = x.shape, weight.out_features
    assert rows >= 1
    assert inputs == weight.in_features, (inputs, weight.in_features)
    assert x.stride(1) == 1
    assert not gated or config.blocks % 2 == outputs % 2 == 0, (config, outputs)
    width = outputs // 2 if gated else outputs
    out = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    kernel[(triton.cdiv(outputs, LANES * config.blocks),)](
        x, weight.words, weight.scales, weight.zeros, weight.source, bias, out,
        rows, x.stride(0), outputs, len(weight.scales),
        BITS=weight.bits, WIDTH=weight.group_width, SLICE=SLICE, SPAN=span_of(weight),
        K=inputs, TILES=len(weight.words), LANES=LANES,
        BLOCKS=config.blocks, STEP=config.num_warps, DEPTH=config.depth,
        GATED=gated, PDL=pdl, **constants, num_warps=config.num_warps, **launch_options(pdl),
    )  # fmt: skip
    return out


@triton.jit
def outputs_of(outputs, LANES: tl.constexpr, BLOCKS: tl.constexpr, GATED: tl.constexpr):
    """Rows of Ŵ that a program reads, ``[LANES, BLOCKS]``; past the end the last one again.

    If ``GATED``, even blocks are rows of gate, and odd ones the same rows of up.
    """
    block, lane = tl.arange(0, BLOCKS)[None, :], tl.arange(0, LANES)[:, None]
    if GATED:
        n = (tl.program_id(0) * (BLOCKS // 2) + block // 2) * LANES + lane
        return tl.minimum(n, outputs // 2 - 1) + block % 2 * (outputs // 2)
    return tl.minimum((tl.program_id(0) * BLOCKS + block) * LANES + lane, outputs - 1)


@triton.jit
def load_weights(
    words_ptr, scales_ptr, zeros_ptr, first, n, outputs, groups,
    BITS: tl.constexpr, WIDTH: tl.constexpr, SLICE: tl.constexpr, SPAN: tl.constexpr,
    TILES: tl.constexpr, STEP: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Three tuples: words, scales (float32), zero points (int32) of the chunks from ``first`` on.

    Words are ``[LANES, STEP, BLOCKS, SLICE]``, one tile for each chunk. Scales and zero points are
    ``[LANES, STEP, BLOCKS]``, one tile for each SPAN values of each chunk's words.
    """
    slot = tl.arange(0, SLICE)[None, None, None, :]
    RUNS: tl.constexpr = 32 // BITS // SPAN
    o = n[:, None, :]
    words, scales, zeros = (), (), ()
    for chunk in tl.static_range(DEPTH):
        tile = first + chunk * STEP + tl.arange(0, STEP)[None, :, None]
        tile = tl.minimum(tile, TILES - 1)  # past the end the last one again: x counts as 0
        at = (tile * outputs + o) * SLICE
        words = words + (tl.load(words_ptr + at[:, :, :, None] + slot),)  # noqa: RUF005
        for run in tl.static_range(RUNS):
            place = (tile * RUNS + run) * SPAN * SLICE
            group = tl.minimum(place // WIDTH, groups - 1)
            scale, zero = load_grid(scales_ptr, zeros_ptr, group, o, outputs, None, BITS)
            scales, zeros = scales + (scale,), zeros + (zero,)  # noqa: RUF005
    return words, scales, zeros
