"""Integers of 4 or 8 bits in int32 words, as GPTQ checkpoints store them.

A word holds ``32 / bits`` neighbours, the first in the lowest bits. Weights are packed along the
input channels, zero points along the output channels (nibbles of 4 bits shown)::

    qweight [in/8, out]     word [r, o]:  | 8r+7 | … | 8r+1 | 8r |    input channels of output o
    qzeros  [groups, out/8] word [g, c]:  | 8c+7 | … | 8c+1 | 8c |    output channels of group g

Two formats differ only in the zero point (the "+1 trap"): ``gptq`` (v1) stores ``zero − 1``,
``gptq_v2`` stores ``zero``. Reading one as the other shifts every weight by one scale. Where a zero
point is 0, v1 itself has two readings, see :func:`unpack_zeros`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Format = Literal["gptq", "gptq_v2"]
FORMATS: tuple[Format, ...] = ("gptq", "gptq_v2")
SUPPORTED_BITS = (4, 8)
WORD = 32


def per_word(bits: int) -> int:
    """Values in one int32 word: 8 of 4 bits, 4 of 8 bits."""
    assert bits in SUPPORTED_BITS, bits
    return WORD // bits


def max_int(bits: int) -> int:
    """Largest stored value: 15 or 255."""
    return (1 << bits) - 1


def pack_rows(values: Tensor, bits: int) -> Tensor:
    """Pack along the first dimension: how ``qweight`` holds its input channels.

    Args:
        values: ``[rows, columns]``, any integer dtype, each in 0 … 2^bits − 1; rows a multiple of
            ``32 / bits``.
        bits: 4 or 8.

    Returns:
        ``[rows · bits / 32, columns]`` int32.
    """
    count = per_word(bits)
    rows, columns = values.shape
    assert rows % count == 0, (rows, count)
    words = torch.zeros(rows // count, columns, dtype=torch.int32, device=values.device)
    for place in range(count):
        # int32 suffices: a shift into the sign bit only sets that bit, and no two places overlap.
        words |= values[place::count].to(torch.int32) << (bits * place)
    return words


def unpack_rows(words: Tensor, bits: int) -> Tensor:
    """Undo :func:`pack_rows`.

    Args:
        words: ``[rows · bits / 32, columns]`` int32.
        bits: 4 or 8.

    Returns:
        ``[rows, columns]`` uint8.
    """
    count = per_word(bits)
    out = torch.empty(words.shape[0], count, words.shape[1], dtype=torch.uint8, device=words.device)
    for place in range(count):
        # The shift is arithmetic and drags the sign bit along; the mask drops its copies.
        out[:, place] = (words >> (bits * place)) & max_int(bits)
    return out.flatten(0, 1)


def pack_columns(values: Tensor, bits: int) -> Tensor:
    """Pack along the last dimension: how ``qzeros`` holds its output channels.

    Args:
        values: ``[groups, columns]`` integers, columns a multiple of ``32 / bits``.
        bits: 4 or 8.

    Returns:
        ``[groups, columns · bits / 32]`` int32.
    """
    return pack_rows(values.T, bits).T.contiguous()


def unpack_columns(words: Tensor, bits: int) -> Tensor:
    """Undo :func:`pack_columns`; ``[groups, columns]`` uint8."""
    return unpack_rows(words.T, bits).T.contiguous()


def pick_columns(words: Tensor, columns: Tensor, bits: int) -> Tensor:
    """Some columns of what :func:`pack_columns` packed.

    Args:
        words: ``[groups, columns · bits / 32]`` int32.
        columns: ``[n]`` int64, which ones.
        bits: 4 or 8.

    Returns:
        ``[groups, n]`` int64.
    """
    count = per_word(bits)
    return (words[:, columns // count] >> (columns % count * bits)) & max_int(bits)


def pack_zeros(zeros: Tensor, bits: int, form: Format) -> Tensor:
    """Zero points as a checkpoint of one format stores them.

    In v1 a zero of 0 becomes 15 (or 255): the subtraction wraps within its own bits.

    Args:
        zeros: ``[groups, out]`` integers in 0 … 2^bits − 1, out a multiple of ``32 / bits``.
        bits: 4 or 8.
        form: ``gptq`` or ``gptq_v2``.

    Returns:
        ``[groups, out · bits / 32]`` int32.
    """
    stored = zeros.to(torch.int32)
    if form == "gptq":
        stored = (stored - 1) & max_int(bits)
    return pack_columns(stored, bits)


def unpack_zeros(words: Tensor, bits: int, form: Format, *, whole_words: bool = False) -> Tensor:
    """Undo :func:`pack_zeros`, or what GPTQModel does in its place.

    In v1 a zero of 0 needs a 1 that is not there. :func:`pack_zeros` wraps within the value's own
    bits, so the 1 is added to each value apart. GPTQModel subtracts ``0x11111111`` from the word,
    which borrows from the neighbour; only the same sum over the whole word gives it back::

        zeros, highest first   … 5 0    each apart  → stored … 4 15
                                        whole words → stored … 3 15

    Args:
        words: ``[groups, out · bits / 32]`` int32.
        bits: 4 or 8.
        form: ``gptq`` or ``gptq_v2``.
        whole_words: The 1 of v1 was subtracted from whole words.

    Returns:
        ``[groups, out]`` uint8, the true zero points.
    """
    if form == "gptq" and whole_words:
        ones = sum(1 << (bits * place) for place in range(per_word(bits)))
        return unpack_columns(words + ones, bits)  # int32 wraps, as it did when written
    zeros = unpack_columns(words, bits)
    if form == "gptq":
        zeros = (zeros + 1) & max_int(bits)  # uint8 wraps at 256 by itself
    return zeros
