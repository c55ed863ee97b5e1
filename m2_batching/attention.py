"""Attention over a rectangle of sequences of unequal length, with an explicit mask."""

from __future__ import annotations

import torch
from torch import Tensor

from common.model.interfaces import KVSink
from m2_batching.kv_cache import SlotKVCache


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """M1's attention with a batch dimension; the mask says who sees whom.

    Args:
        q: ``[batch, num_q, num_heads, head_dim]``.
        k: ``[batch, num_kv_heads, num_k, head_dim]``.
        v: Same shape as ``k``. Masked places must be finite.
        mask: ``[batch, num_q, num_k]`` bool, True where the query sees the key. Every row sees at
            least one key.
        scale: ``1 / sqrt(head_dim)``.

    Returns:
        ``[batch, num_q, num_heads, head_dim]`` in q's dtype.
    """
    batch, num_q, num_heads, head_dim = q.shape
    num_kv_heads, num_k = k.shape[1:3]
    group = num_heads // num_kv_heads
    rows = (q * scale).view(batch, num_q, num_kv_heads, group, head_dim).permute(0, 2, 3, 1, 4)
    rows = rows.reshape(batch * num_kv_heads, group * num_q, head_dim)
    keys, values = k.flatten(0, 1), v.flatten(0, 1)  # views: slots and heads are neighbours
    scores = (rows @ keys.transpose(1, 2)).view(batch, num_kv_heads, group, num_q, num_k)
    scores.masked_fill_(~mask[:, None, None], float("-inf"))
    weights = torch.softmax(scores, dim=-1)
    out = weights.view(batch * num_kv_heads, group * num_q, num_k) @ values
    out = out.view(batch, num_kv_heads, group, num_q, head_dim).permute(0, 3, 1, 2, 4)
    return out.reshape(batch, num_q, num_heads, head_dim)


def prefill_mask(lengths: Tensor, width: int) -> Tensor:
    """Causal within each row, and nothing beyond its length.

    ::

        lengths [3, 1], width 3      row 0   ✓ · ·     row 1   ✓ · ·
                                             ✓ ✓ ·             ✓ · ·   padding queries see
                                             ✓ ✓ ✓             ✓ · ·   key 0, never NaN

    Args:
        lengths: ``[batch]`` int64, at least 1.
        width: Length of the longest row.

    Returns:
        ``[batch, width, width]`` bool.
    """
    places = torch.arange(width, device=lengths.device)
    causal = places[None, :] <= places[:, None]
    return causal[None] & (places[None, None, :] < lengths[:, None, None])


def decode_mask(lengths: Tensor, width: int) -> Tensor:
    """One query per row, which sees the first ``length`` keys.

    Args:
        lengths: ``[batch]`` int64, at least 1, the new token included.
        width: Length of the longest context.

    Returns:
        ``[batch, 1, width]`` bool.
    """
    places = torch.arange(width, device=lengths.device)
    return (places[None, :] < lengths[:, None])[:, None]


class PrefillAttend:
    """Whole prompts: the keys of a row are its own tokens, so the cache is written, not read."""

    def __init__(self, cache: SlotKVCache, slots: Tensor, lengths: Tensor, width: int) -> None:
        """Bind one forward pass.

        Args:
            cache: Where K and V go.
            slots: ``[batch]`` int64, the slot of each row.
            lengths: ``[batch]`` int64, real tokens of each row.
            width: Columns of the padded batch.
        """
        self.cache, self.mask = cache, prefill_mask(lengths, width)
        row, self.positions = torch.nonzero(
            torch.arange(width, device=lengths.device) < lengths[:, None], as_tuple=True
        )
        self.rows, self.slots = row, slots[row]
        cache.open_places(width)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries ``[batch, width, heads, dim]``, k and v with KV heads; returns q's shape."""
        real = (self.rows, self.positions)
        self.cache.write(layer, self.slots, self.positions, k[real], v[real])
        keys, values = (x.transpose(1, 2).contiguous() for x in (k, v))
        return masked_attention(q, keys, values, self.mask, q.shape[-1] ** -0.5)

    def kv_sink(self, layer: int) -> KVSink | None:
        """None: the cache is written by :meth:`__call__`."""
        return None


class DecodeAttend:
    """One token per slot. Row i of the batch is slot i, so that K and V are read in place."""

    def __init__(self, cache: SlotKVCache, slots: Tensor, lengths: Tensor, width: int) -> None:
        """Bind one forward pass.

        Args:
            cache: Where K and V are.
            slots: ``[active]`` int64, the slots that decode; the others are padding.
            lengths: ``[rows]`` int64, context of each row with its new token; 1 for padding.
            width: Longest context.
        """
        self.cache, self.slots, self.width = cache, slots, width
        self.positions, self.mask = lengths[slots] - 1, decode_mask(lengths, width)
        cache.open_places(width)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries ``[rows, 1, heads, dim]``, k and v with KV heads; returns q's shape."""
        self.cache.write(layer, self.slots, self.positions, k[self.slots, 0], v[self.slots, 0])
        keys, values = self.cache.read(layer, q.shape[0], self.width)
        return masked_attention(q, keys, values, self.mask, q.shape[-1] ** -0.5)

    def kv_sink(self, layer: int) -> KVSink | None:
        """None: the cache is written by :meth:`__call__`."""
        return None
