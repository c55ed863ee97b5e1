"""M3's operator as a backend: one rectangle (or M3's first kernel) for decodes, naive prefills."""

from __future__ import annotations

from torch import Tensor

from m3_paged.engine import kernel_supports
from m3_paged.kv_cache import PagedKVCache
from m3_paged.paged_attention import PagedMetadata, attend_blocks
from m4_flash.backends.base import AttentionBackend, AttentionMetadata, AttentionShape


class PagedBackend(AttentionBackend):
    """What M3 does, for comparison in the same engine."""

    name = "paged"

    def __init__(self, cache: PagedKVCache, shape: AttentionShape, *, pdl: bool = True) -> None:
        """Use M3's kernel where it can run, its gathering reference elsewhere."""
        super().__init__(cache, shape, pdl=pdl)
        self.use_kernel = kernel_supports(shape.device, shape.head_dim, cache.block_size)

    def forward(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, metadata: AttentionMetadata
    ) -> Tensor:
        """Decodes in one call, prefills one by one."""
        host = metadata.host
        assert host is not None, "the paged backend loops on the host"
        real, tokens = len(host.query_lens), host.num_tokens
        step = PagedMetadata(
            slot_mapping=metadata.slot_mapping[:tokens],
            block_tables=metadata.block_tables[:real],
            seq_lens=metadata.seq_lens[:real],
            query_lens=host.query_lens,
            context_lens=host.context_lens,
            num_decodes=host.num_decodes,
        )
        out = q.new_zeros(q.shape)
        k_cache, v_cache = self.layer_cache(layer)
        attend_blocks(q[:tokens], k_cache, v_cache, step, out[:tokens], use_kernel=self.use_kernel)
        return out
