"""The KV tensor of all blocks, and the two operations on whole blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from common.model.interfaces import TORCH_DTYPES, KVSink
from common.model_config import KVSpec
from m2_batching.plan import BlockCopy


class PagedKVCache:
    """K and V of every block, for every layer, in one tensor.

    Attributes:
        kv: ``[2, num_layers, num_blocks, block_size, num_kv_heads, head_dim]``; index 0 is K.
        num_blocks: Blocks.
        block_size: Tokens per block.
    """

    def __init__(
        self, spec: KVSpec, num_blocks: int, block_size: int, device: torch.device | str
    ) -> None:
        """Reserve the memory; its content is undefined until a token is stored.

        Raises:
            torch.OutOfMemoryError: A GPU has no room; a CPU raises RuntimeError.
        """
        heads = (spec.num_kv_heads, spec.head_dim)
        shape = (2, spec.num_layers, num_blocks, block_size, *heads)
        self.kv = torch.empty(shape, dtype=TORCH_DTYPES[spec.dtype], device=device)
        self.num_blocks, self.block_size = num_blocks, block_size

    @property
    def nbytes(self) -> int:
        """Bytes reserved."""
        return self.kv.nbytes

    def sink(self, layer: int, slot_mapping: torch.Tensor) -> KVSink:
        """Where one layer's new K and V go.

        Args:
            layer: Which decoder layer.
            slot_mapping: ``[num_tokens]`` int64, block · block_size + place, −1 for padding.
        """
        return KVSink(self.kv[0, layer], self.kv[1, layer], slot_mapping)

    def copy_blocks(self, copies: Sequence[BlockCopy]) -> None:
        """Copy whole blocks in every layer, K and V, as one indexed copy.

        All sources are read before any target is written, so a block may be both.
        """
        if copies:
            sources = torch.tensor([copy.source for copy in copies], device=self.kv.device)
            targets = torch.tensor([copy.target for copy in copies], device=self.kv.device)
            self.kv[:, :, targets] = self.kv[:, :, sources]
