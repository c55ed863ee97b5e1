"""PyTorch's fused attention over gathered blocks: what a CPU runs, and any GPU can.

``scaled_dot_product_attention`` is an IO-aware kernel (on a CPU too: it walks the keys in tiles
and keeps no score matrix), but it knows no block tables. So contexts are gathered first, which
moves each key twice more than a kernel that reads blocks in place. Decodes need no repeated keys
for grouped-query attention: the query heads of one KV head are query rows of that head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from m3_paged.paged_attention import gather_blocks
from m4_flash.backends.base import AttentionBackend, AttentionMetadata


class SdpaBackend(AttentionBackend):
    """Decodes as one padded rectangle, longer slices one by one."""

    name = "sdpa"

    def forward(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, metadata: AttentionMetadata
    ) -> Tensor:
        """Gather, then attend; a first chunk uses its own k and v and gathers nothing."""
        host = metadata.host
        assert host is not None, "the sdpa backend loops on the host"
        out = torch.zeros_like(q)
        count = host.num_decodes
        if count:
            longest = max(host.context_lens[:count])
            out[:count] = self._decode(layer, q[:count], metadata, longest)
        begin = count
        for row in range(count, len(host.query_lens)):
            query, context = host.query_lens[row], host.context_lens[row]
            part = slice(begin, begin + query)
            if query == context:
                out[part] = self.prompt_attention(q[part], k[part], v[part])
            else:
                out[part] = self._chunk(layer, q[part], metadata.block_tables[row], context)
            begin += query
        return out

    def _decode(self, layer: int, q: Tensor, metadata: AttentionMetadata, longest: int) -> Tensor:
        """One query per sequence; ``[num_seqs, num_heads, head_dim]``.

        Contexts shorter than the longest are masked. Places behind a sequence's end may never have
        been written, and neither an added −inf nor a weight of zero hides a NaN: they are cleared.
        """
        seqs, heads, dim = q.shape
        blocks = -(-longest // self.cache.block_size)
        tables = metadata.block_tables[:seqs, :blocks]
        known = torch.arange(longest, device=q.device) < metadata.seq_lens[:seqs, None]
        # [seqs, blocks, block_size, kv_heads, dim] -> [seqs, kv_heads, longest, dim]
        keys, values = (
            cache[tables].flatten(1, 2)[:, :longest].transpose(1, 2)
            for cache in self.layer_cache(layer)
        )
        mask = None
        if seqs > 1:
            unknown = ~known[:, None, :, None]
            keys, values = (part.masked_fill_(unknown, 0.0) for part in (keys, values))
            mask = known[:, None, None]
        grouped = q.view(seqs, keys.shape[1], -1, dim)
        attended = F.scaled_dot_product_attention(
            grouped, keys, values, attn_mask=mask, scale=self.scale
        )
        return attended.reshape(seqs, heads, dim)

    def _chunk(self, layer: int, q: Tensor, table: Tensor, context: int) -> Tensor:
        """A slice behind a computed past: bottom-right causal, ``[query, num_heads, head_dim]``.

        ::

            keys     0 … past … past + i … context      query i sees the keys up to past + i
        """
        keys, values = (
            gather_blocks(cache, table, context).transpose(0, 1).unsqueeze(0)
            for cache in self.layer_cache(layer)
        )
        places = torch.arange(context, device=q.device)
        mask = places <= places[context - len(q) :, None]  # [query, context]
        # With a batch dimension: without one, PyTorch keeps the whole score matrix on a CPU.
        attended = F.scaled_dot_product_attention(
            q.transpose(0, 1).unsqueeze(0),
            keys,
            values,
            attn_mask=mask[None, None],
            scale=self.scale,
            enable_gqa=True,
        )
        return attended[0].transpose(0, 1)
