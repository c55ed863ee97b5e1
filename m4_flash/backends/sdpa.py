"""PyTorch's fused attention over gathered blocks: what a CPU runs, and any GPU can.

``scaled_dot_product_attention`` is an IO-aware kernel (on a CPU too: it walks the keys in tiles
and keeps no score matrix), but it knows no block tables. So contexts are gathered first, which
moves each key twice more than a kernel that reads blocks in place. Decodes need no repeated keys
for grouped-query attention: the query heads of one KV head are query rows of that head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from m3_paged.paged_attention import gather_blocks
from m4_flash.backends.base import AttentionBackend, AttentionMetadata, HostLengths


@dataclass(frozen=True)
class _Decodes:
    """The decodes of a step as one rectangle.

    Attributes:
        metadata: The step.
        slots: ``[num_seqs, longest]`` int64: where each token of each context lies.
        mask: ``[num_seqs, 1, 1, longest]`` bool, False behind a sequence's end; None for one.
    """

    metadata: AttentionMetadata
    slots: Tensor
    mask: Tensor | None


class SdpaBackend(AttentionBackend):
    """Decodes as one padded rectangle, longer slices one by one."""

    name = "sdpa"
    _decodes: _Decodes | None = None

    def forward(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, metadata: AttentionMetadata
    ) -> Tensor:
        """Gather, then attend; a first chunk uses its own k and v and gathers nothing."""
        host = metadata.host
        assert host is not None, "the sdpa backend loops on the host"
        out = torch.zeros_like(q)
        begin = count = host.num_decodes
        if count:
            if self._decodes is None or self._decodes.metadata is not metadata:
                self._decodes = self._lay_out(metadata, host)
            out[:count] = self._decode(layer, q[:count], self._decodes)
        for row in range(count, len(host.query_lens)):
            query, context = host.query_lens[row], host.context_lens[row]
            part = slice(begin, begin + query)
            if query == context:
                out[part] = self.prompt_attention(q[part], k[part], v[part])
            else:
                out[part] = self._chunk(layer, q[part], metadata.block_tables[row], context)
            begin += query
        return out

    def _lay_out(self, metadata: AttentionMetadata, host: HostLengths) -> _Decodes:
        """Once per step, for all layers.

        Places behind a sequence's end may never have been written, and neither an added −inf nor a
        weight of zero hides a NaN. So a place behind the end repeats the last token, masked.
        """
        count, size = host.num_decodes, self.cache.block_size
        lens, tables = metadata.seq_lens[:count, None].long(), metadata.block_tables[:count].long()
        places = torch.arange(max(host.context_lens[:count]), device=lens.device)
        known = torch.minimum(places, lens - 1)
        slots = tables.gather(1, known // size) * size + known % size
        mask = (places < lens)[:, None, None] if count > 1 else None
        return _Decodes(metadata, slots, mask)

    def _decode(self, layer: int, q: Tensor, decodes: _Decodes) -> Tensor:
        """One query per sequence; ``[num_seqs, num_heads, head_dim]``."""
        (seqs, heads, dim), slots = q.shape, decodes.slots
        # [num_blocks, block_size, kv_heads, dim] -> [seqs, kv_heads, longest, dim]
        keys, values = (
            cache.flatten(0, 1).index_select(0, slots.flatten())
            .view(*slots.shape, *cache.shape[2:])
            .transpose(1, 2)
            for cache in self.layer_cache(layer)
        )  # fmt: skip
        grouped = q.view(seqs, keys.shape[1], -1, dim)
        attended = F.scaled_dot_product_attention(
            grouped, keys, values, attn_mask=decodes.mask, scale=self.scale
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
