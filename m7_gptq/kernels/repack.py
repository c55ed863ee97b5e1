"""Packed weights in the order in which the kernels read them, made once when a model is loaded.

A checkpoint's ``qweight [in/8, out]`` puts neighbouring outputs side by side: 16 consecutive bytes
belong to four outputs. Here they belong to one output. Inputs are cut into slices of 16, and a
tile is as many slices as a word has values (8 of 4 bits: 128 inputs, 4 of 8 bits: 64)::

    words [tiles, out, 16]     word i of output o in tile t, 4 bits:

      bits   31 … 28      …     7 … 4         3 … 0
           | 128t+112+i | … | 128t+16+i | 128t+i |        value j is input i of slice j

    in memory:  tile 0: output 0 (64 bytes), output 1 (64 bytes), …   tile 1: …

Programs that share out the outputs read disjoint ranges of 64 · outputs bytes, 16 bytes a thread
(4 words of one output). Value j of those four words belongs to four neighbouring inputs, so a
thread reads x in short runs as well, and a whole slice (of one value j) is one tile of ``tl.dot``.

A slice must not hold inputs of two groups. Inputs are sorted by group (act-order scatters them),
and a group whose size is no multiple of 16 is padded; ``source`` says which input lies in each
place. Files without act-order and with groups of 16 · n need neither, and have no ``source``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from m7_gptq.packing import (
    Format,
    pack_columns,
    per_word,
    unpack_columns,
    unpack_rows,
    unpack_zeros,
)

SLICE = 16
"""Inputs of a slice, words of an output in a tile: the smallest tile of ``tl.dot``."""


@dataclass(frozen=True)
class PackedWeight:
    """One quantised matrix for the kernels: ``Ŵ[o, i] = scale · (q − zero)``.

    Attributes:
        words: ``[tiles, out, 16]`` int32, as drawn above.
        zeros: ``[groups, out · bits / 32]`` int32, true zero points packed along the outputs.
        scales: ``[groups, out]`` float, contiguous, as stored.
        source: ``[tiles · 16 · 32 / bits]`` int32, the input channel at each place and −1 for
            padding; None where place and channel are the same.
        bits: 4 or 8.
        group_width: Places of each group, a multiple of 16.
        in_features: Width of the input.
    """

    words: Tensor
    zeros: Tensor
    scales: Tensor
    source: Tensor | None
    bits: int
    group_width: int
    in_features: int

    def __post_init__(self) -> None:
        """The shapes agree, and 32-bit offsets reach every word and every dense element."""
        count, (groups, outputs) = per_word(self.bits), self.scales.shape
        assert self.words.shape[1:] == (outputs, SLICE), self.words.shape
        assert self.zeros.shape == (groups, outputs // count), self.zeros.shape
        assert outputs % count == self.group_width % SLICE == 0
        assert groups * self.group_width >= self.in_features or self.source is not None
        for tensor in (self.words, self.zeros, self.scales):
            assert tensor.is_contiguous()
        assert self.words.numel() < 2**31
        assert self.places * outputs < 2**31, (self.places, outputs)
        assert self.source is None or self.source.shape == (self.places,)

    @classmethod
    def from_checkpoint(
        cls,
        qweight: Tensor,
        qzeros: Tensor,
        scales: Tensor,
        g_idx: Tensor | None,
        bits: int,
        group_size: int,
        stored_zero_offset: int,
    ) -> PackedWeight:
        """Repack what a GPTQ checkpoint holds; runs on the tensors' device.

        Args:
            qweight: ``[in · bits / 32, out]`` int32.
            qzeros: ``[groups, out · bits / 32]`` int32.
            scales: ``[groups, out]`` float.
            g_idx: ``[in]`` integers, group of each input; None for ``i // group_size``.
            bits: 4 or 8.
            group_size: Inputs of a whole group; −1 for all of them. Only read without ``g_idx``.
            stored_zero_offset: 1 where ``zero − 1`` is stored (format ``gptq``), 0 where ``zero``
                is (``gptq_v2``, and what :class:`m7_gptq.linear.GPTQLinear` keeps).
        """
        assert stored_zero_offset in (0, 1), stored_zero_offset
        form: Format = "gptq" if stored_zero_offset else "gptq_v2"
        ints = unpack_rows(qweight, bits)
        if g_idx is None:
            size = group_size if group_size > 0 else len(ints)
            g_idx = torch.arange(len(ints), device=ints.device) // size
        return cls.from_integers(ints, unpack_zeros(qzeros, bits, form), scales, g_idx, bits)

    @classmethod
    def from_integers(
        cls, ints: Tensor, zeros: Tensor, scales: Tensor, g_idx: Tensor, bits: int
    ) -> PackedWeight:
        """Pack integers that are apart.

        Args:
            ints: ``[in, out]`` uint8.
            zeros: ``[groups, out]`` uint8, true zero points.
            scales: ``[groups, out]`` float.
            g_idx: ``[in]`` integers, group of each input.
            bits: 4 or 8.
        """
        inputs, groups = len(ints), len(scales)
        source, width = _places(g_idx, groups, SLICE * per_word(bits))
        known = source >= 0
        placed = ints[source.clamp(min=0).long()]  # padding holds anything: its x counts as 0
        plain = torch.arange(inputs, dtype=torch.int32, device=ints.device)
        moved = not (torch.equal(source[:inputs], plain) and not bool(known[inputs:].any()))
        return cls(
            words=pack_tiles(placed, bits),
            zeros=pack_columns(zeros, bits),
            scales=scales.contiguous(),
            source=source if moved else None,
            bits=bits,
            group_width=width,
            in_features=inputs,
        )

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self.scales.shape[1]

    @property
    def places(self) -> int:
        """Input places, padding included: whole tiles."""
        return len(self.words) * SLICE * per_word(self.bits)

    @property
    def size(self) -> int:
        """Elements of the dense weight."""
        return self.in_features * self.out_features

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        extra = 0 if self.source is None else self.source.nbytes
        return self.words.nbytes + self.zeros.nbytes + self.scales.nbytes + extra

    def to(self, device: torch.device | str) -> PackedWeight:
        """The same weight on another device."""
        return replace(
            self,
            words=self.words.to(device),
            zeros=self.zeros.to(device),
            scales=self.scales.to(device),
            source=None if self.source is None else self.source.to(device),
        )

    def integers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Undo :meth:`from_integers`.

        Returns:
            ``ints [in, out]`` uint8, ``zeros [groups, out]`` uint8 and ``g_idx [in]`` int64.
        """
        placed = unpack_tiles(self.words, self.bits)
        places = torch.arange(self.places, device=self.words.device)
        if self.source is None:
            channels = places[: self.in_features]
        else:
            places = places[self.source >= 0]
            channels = torch.empty_like(places)
            channels[self.source[places].long()] = places
        return placed[channels], unpack_columns(self.zeros, self.bits), channels // self.group_width

    def dequantised(self) -> Tensor:
        """Ŵ, ``[out, in]`` float32, in plain PyTorch: what the kernels are tested against."""
        ints, zeros, g_idx = self.integers()
        return ((ints.float() - zeros.float()[g_idx]) * self.scales.float()[g_idx]).T.contiguous()


def pack_tiles(values: Tensor, bits: int) -> Tensor:
    """Pack integers in the order of the places.

    Args:
        values: ``[places, out]`` uint8, places a multiple of ``16 · 32 / bits``.
        bits: 4 or 8.

    Returns:
        ``[tiles, out, 16]`` int32.
    """
    count, outputs = per_word(bits), values.shape[1]
    slices = values.view(-1, count, SLICE, outputs)
    words = torch.zeros(len(slices), SLICE, outputs, dtype=torch.int32, device=values.device)
    for value in range(count):
        words |= slices[:, value].to(torch.int32) << (bits * value)
    return words.transpose(1, 2).contiguous()


def unpack_tiles(words: Tensor, bits: int) -> Tensor:
    """Undo :func:`pack_tiles`; ``[places, out]`` uint8."""
    outputs = words.shape[1]
    flat = words.transpose(1, 2).reshape(-1, outputs)  # [tiles · 16, out]
    values = unpack_rows(flat, bits).view(len(words), SLICE, per_word(bits), outputs)
    return values.transpose(1, 2).reshape(-1, outputs)


def _places(g_idx: Tensor, groups: int, tile: int) -> tuple[Tensor, int]:
    """Which input lies where, and how wide a group is.

    Args:
        g_idx: ``[in]`` integers.
        groups: How many there are.
        tile: Inputs of a tile.

    Returns:
        ``source [places]`` int32 (−1 is padding), and the places of each group.
    """
    g_idx = g_idx.long()
    counts = torch.bincount(g_idx, minlength=groups)
    assert len(counts) == groups, (len(counts), groups)
    width = -(-int(counts.max()) // SLICE) * SLICE
    order = torch.argsort(g_idx, stable=True)
    group = g_idx[order]
    rank = torch.arange(len(g_idx), device=g_idx.device) - (counts.cumsum(0) - counts)[group]
    at = group * width + rank
    places = -(-(int(at.max()) + 1) // tile) * tile
    source = torch.full((places,), -1, dtype=torch.int32, device=g_idx.device)
    source[at] = order.to(torch.int32)
    return source, places if groups == 1 else width
