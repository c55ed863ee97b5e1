"""The oracle: M1's written-out attention over gathered blocks, one sequence after another."""

from __future__ import annotations

import torch
from torch import Tensor

from m1_basic.attention import naive_attention
from m3_paged.paged_attention import gather_blocks
from m4_flash.backends.base import AttentionBackend, AttentionMetadata


class NaiveBackend(AttentionBackend):
    """Scores, mask, softmax, weighted sum, as the formula says. Every other backend equals it."""

    name = "naive"

    @classmethod
    def prompt_attention(cls, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The whole score matrix at once; ``[num_tokens, num_heads, head_dim]``."""
        return naive_attention(q, k, v, q.shape[-1] ** -0.5)

    def forward(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, metadata: AttentionMetadata
    ) -> Tensor:
        """Gather each context into one tensor and attend to it."""
        assert metadata.host is not None, "the naive backend loops on the host"
        caches = self.layer_cache(layer)
        out = torch.zeros_like(q)  # rows of padding stay zero
        begin = 0
        pairs = zip(metadata.host.query_lens, metadata.host.context_lens, strict=True)
        for row, (query, context) in enumerate(pairs):
            table = metadata.block_tables[row]
            keys, values = (gather_blocks(cache, table, context) for cache in caches)
            end = begin + query
            out[begin:end] = naive_attention(q[begin:end], keys, values, self.scale)
            begin = end
        return out
