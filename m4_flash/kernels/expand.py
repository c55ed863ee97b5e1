"""A step's tensors from its index list in one launch, and the sampled ids back into their rows.

The arithmetic of :meth:`m4_flash.input_batch.InputBatch.expand` is some thirty operations on a few
hundred numbers each: about 70 µs of a decode step on a GPU, none of it work. Here one program per
sequence sums the counts before it, writes its own slice and copies its block table, and one more
fills the padding behind the last token::

    counts            1   1   5   0          program 2 finds its first token: 1 + 1
    token_ids       | a | b | c c c c c | . . . |
                      0   1   2               padding: program 4
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from m4_flash.kernels.launch import chain, launch_options

TILE = 128


@triton.jit(do_not_specialize=["num_seqs", "num_tokens", "header_stride"])
def _expand_kernel(
    header_ptr, known_ptr, table_ptr,
    ids_ptr, position_ptr, slot_ptr, start_ptr, len_ptr, last_ptr, seq_table_ptr,
    num_seqs, num_tokens, header_stride, known_stride, table_width,
    BLOCK_SIZE: tl.constexpr, MAX_SEQS: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    chain(PDL)
    seq = tl.program_id(0)
    others = tl.arange(0, MAX_SEQS)
    counts = tl.load(header_ptr + 2 * header_stride + others, mask=others < num_seqs, other=0)
    first = tl.sum(tl.where(others < seq, counts, 0), axis=0)
    place = tl.arange(0, TILE)
    if seq == num_seqs:  # padding: computed, stored nowhere, read by nobody
        tl.store(start_ptr + num_seqs, first.to(tl.int32))
        for begin in range(first, num_tokens, TILE):
            token = begin + place
            inside = token < num_tokens
            tl.store(ids_ptr + token, tl.zeros([TILE], tl.int64), mask=inside)
            tl.store(position_ptr + token, tl.zeros([TILE], tl.int64), mask=inside)
            tl.store(slot_ptr + token, tl.zeros([TILE], tl.int64) - 1, mask=inside)
        return
    row = tl.load(header_ptr + seq)
    start = tl.load(header_ptr + header_stride + seq)
    count = tl.load(header_ptr + 2 * header_stride + seq)
    tl.store(start_ptr + seq, first.to(tl.int32))
    tl.store(len_ptr + seq, tl.where(count > 0, start + count, 0).to(tl.int32))
    tl.store(last_ptr + seq, tl.maximum(first + count - 1, 0))
    for begin in range(0, count, TILE):
        inside = begin + place < count
        position = start + begin + place
        token = first + begin + place
        known = tl.load(known_ptr + row * known_stride + position, mask=inside, other=0)
        table = table_ptr + row * table_width + position // BLOCK_SIZE
        block = tl.load(table, mask=inside, other=0).to(tl.int64)
        tl.store(ids_ptr + token, known.to(tl.int64), mask=inside)
        tl.store(position_ptr + token, position, mask=inside)
        tl.store(slot_ptr + token, block * BLOCK_SIZE + position % BLOCK_SIZE, mask=inside)
    for begin in range(0, table_width, TILE):
        column = begin + place
        inside = column < table_width
        block = tl.load(table_ptr + row * table_width + column, mask=inside, other=0)
        tl.store(seq_table_ptr + seq.to(tl.int64) * table_width + column, block, mask=inside)


@triton.jit(do_not_specialize=["num_seqs"])
def _append_kernel(
    rows_ptr, draws_ptr, len_ptr, sampled_ptr, known_ptr,
    num_seqs, known_stride,
    MAX_SEQS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    chain(PDL)
    seq = tl.arange(0, MAX_SEQS)
    inside = seq < num_seqs
    draws = inside & (tl.load(draws_ptr + seq, mask=inside, other=0) > 0)
    row = tl.load(rows_ptr + seq, mask=draws, other=0)
    column = tl.load(len_ptr + seq, mask=draws, other=0)
    token = tl.load(sampled_ptr + seq, mask=draws, other=0)
    tl.store(known_ptr + row * known_stride + column, token.to(tl.int32), mask=draws)


@dataclass(frozen=True)
class ExpandedStep:
    """What :func:`expand_step` computes; shapes as in :class:`m4_flash.input_batch.StepTensors`.

    Attributes:
        token_ids: ``[num_tokens]`` int64; 0 for padding.
        positions: ``[num_tokens]`` int64; 0 for padding.
        slot_mapping: ``[num_tokens]`` int64; −1 for padding.
        cu_seqlens_q: ``[num_seqs + 1]`` int32.
        seq_lens: ``[num_seqs]`` int32; 0 for padding.
        last: ``[num_seqs]`` int64.
        block_tables: ``[num_seqs, max_blocks]`` int32.
    """

    token_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    cu_seqlens_q: Tensor
    seq_lens: Tensor
    last: Tensor
    block_tables: Tensor


def expand_step(
    header: Tensor,
    known: Tensor,
    block_tables: Tensor,
    num_tokens: int,
    num_seqs: int,
    block_size: int,
    *,
    pdl: bool = False,
) -> ExpandedStep:
    """Everything of a step that is arithmetic on its index list.

    Reference: the CPU's path of :meth:`m4_flash.input_batch.InputBatch.expand`.

    Args:
        header: ``[4, num_rows]`` int64: rows, starts, counts, draws; ``num_seqs`` of each count.
        known: ``[rows, columns]`` int32, the ids of every row.
        block_tables: ``[num_rows, max_blocks]`` int32.
        num_tokens: Tokens of the step, padding included.
        num_seqs: Sequences of the step, padding included; padding has a count of 0.
        block_size: Tokens per KV block.
        pdl: Launch programmatically, see :mod:`m4_flash.kernels.launch`.
    """
    assert header.stride(-1) == known.stride(-1) == block_tables.stride(-1) == 1
    width = block_tables.shape[1]
    assert block_tables.stride(0) == width

    def new(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=header.device)

    step = ExpandedStep(
        token_ids=new(num_tokens, dtype=torch.int64),
        positions=new(num_tokens, dtype=torch.int64),
        slot_mapping=new(num_tokens, dtype=torch.int64),
        cu_seqlens_q=new(num_seqs + 1, dtype=torch.int32),
        seq_lens=new(num_seqs, dtype=torch.int32),
        last=new(num_seqs, dtype=torch.int64),
        block_tables=new(num_seqs, width, dtype=torch.int32),
    )
    _expand_kernel[(num_seqs + 1,)](
        header, known, block_tables,
        step.token_ids, step.positions, step.slot_mapping,
        step.cu_seqlens_q, step.seq_lens, step.last, step.block_tables,
        num_seqs, num_tokens, header.stride(0), known.stride(0), width,
        BLOCK_SIZE=block_size, MAX_SEQS=triton.next_power_of_2(num_seqs), TILE=TILE, PDL=pdl,
        num_warps=4, **launch_options(pdl),
    )  # fmt: skip
    return step


def append_ids(
    header: Tensor, seq_lens: Tensor, sampled: Tensor, known: Tensor, *, pdl: bool = False
) -> None:
    """Write each sampled id behind its row's known ids; rows that do not draw are left alone.

    Args:
        header: As in :func:`expand_step`.
        seq_lens: ``[num_seqs]`` int32, known ids, the step's included.
        sampled: ``[num_seqs]`` int64.
        known: ``[rows, columns]`` int32, written.
        pdl: Launch programmatically, see :mod:`m4_flash.kernels.launch`.
    """
    num_seqs = len(seq_lens)
    assert sampled.shape == (num_seqs,)
    _append_kernel[(1,)](
        header[0], header[3], seq_lens, sampled, known, num_seqs, known.stride(0),
        MAX_SEQS=triton.next_power_of_2(num_seqs), PDL=pdl, num_warps=4, **launch_options(pdl),
    )  # fmt: skip
