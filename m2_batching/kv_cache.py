"""KV memory as fixed slots: one row of ``max_model_len`` places per running sequence.

A slot is M1's contiguous cache, many times over. It is simple, and it wastes what a sequence does
not use; M3 measures how much that is::

    slot 0  | prompt | output |                reserved, unused                 |
    slot 1  | prompt          | output |       reserved, unused                 |
    slot 2  |                              free                                 |
            0                                                            max_model_len

Heads come before places here, so that a batch of rows is one view for a batched matrix product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.model.interfaces import TORCH_DTYPES
from common.model_config import KVSpec


class SlotKVCache:
    """K and V of up to ``num_slots`` sequences, for every layer.

    Attributes:
        kv: ``[2, num_layers, num_slots, num_kv_heads, max_len, head_dim]``; index 0 is K, 1 is V.
        num_slots: Sequences it can hold.
        max_len: Tokens of each.
    """

    def __init__(
        self, spec: KVSpec, num_slots: int, max_len: int, device: torch.device | str
    ) -> None:
        """Reserve the memory.

        Args:
            spec: Layers, heads, head_dim and dtype.
            num_slots: Sequences to hold.
            max_len: Tokens of each.
            device: Where it lives.

        Raises:
            torch.OutOfMemoryError: A GPU has no room; a CPU raises RuntimeError.
        """
        shape = (2, spec.num_layers, num_slots, spec.num_kv_heads, max_len, spec.head_dim)
        self.kv = torch.empty(shape, dtype=TORCH_DTYPES[spec.dtype], device=device)
        self.num_slots, self.max_len = num_slots, max_len
        self._clean = 0

    @property
    def nbytes(self) -> int:
        """Bytes reserved."""
        return self.kv.nbytes

    def open_places(self, length: int) -> None:
        """Make places below ``length`` finite in every slot, before any of them is first used.

        A masked place has weight 0, but 0 · NaN is NaN, and fresh memory may hold anything. Each
        place is zeroed once, when the longest context of a batch first reaches it.
        """
        if length > self._clean:
            self.kv[:, :, :, :, self._clean : length].zero_()
            self._clean = length

    def write(self, layer: int, slots: Tensor, positions: Tensor, k: Tensor, v: Tensor) -> None:
        """Store the K and V of some tokens.

        Args:
            layer: Which decoder layer.
            slots: ``[n]`` int64, the slot of each token.
            positions: ``[n]`` int64, the position of each token in its sequence.
            k: ``[n, num_kv_heads, head_dim]``, rotated.
            v: Same shape as ``k``.
        """
        self.kv[0, layer, slots, :, positions] = k
        self.kv[1, layer, slots, :, positions] = v

    def read(self, layer: int, num_slots: int, length: int) -> tuple[Tensor, Tensor]:
        """K and V of the first ``num_slots`` slots, places 0 … length − 1, without a copy.

        Returns:
            ``[num_slots, num_kv_heads, length, head_dim]`` each.
        """
        keys, values = self.kv[:, layer, :num_slots, :, :length]
        return keys, values
