"""Attention written out: scores, mask, softmax, weighted sum. Exact, simple, and quadratic.

Every faster attention of this project (paged, flash, split-KV) computes this same function; the
tests compare them with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.model.interfaces import KVSink
from m1_basic.kv_cache import ContiguousKVCache


def naive_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """``softmax(q·kᵀ · scale + mask) · v`` for one sequence (Vaswani et al. 2017, §3.2.1).

    The queries are the *last* ``num_q`` positions of the ``num_k`` known ones, so the causal mask
    is aligned bottom-right: query i may see ``num_k − num_q + i + 1`` keys. With a cache of 3
    tokens and 2 new ones::

              k0 k1 k2 k3 k4
        q3  [  ✓  ✓  ✓  ✓  ·  ]
        q4  [  ✓  ✓  ✓  ✓  ✓  ]

    The whole ``[num_heads, num_q, num_k]`` matrix of scores exists twice, before and after the
    softmax: 2 GiB per layer in bfloat16 at 8,192 tokens of Qwen3-0.6B. M4 removes it.

    Args:
        q: ``[num_q, num_heads, head_dim]``.
        k: ``[num_k, num_kv_heads, head_dim]``, ``num_k >= num_q``.
        v: Same shape as ``k``.
        scale: ``1 / sqrt(head_dim)``.

    Returns:
        ``[num_q, num_heads, head_dim]`` in q's dtype.
    """
    num_q, num_heads, head_dim = q.shape
    num_k, num_kv_heads, _ = k.shape
    group = num_heads // num_kv_heads
    # GQA: query heads g·group … g·group + group − 1 read KV head g. Stacking a group's queries as
    # rows of one matrix product reads each key once, where repeat_interleave would copy it.
    # The scale goes onto q: [num_q, head_dim] numbers instead of [num_q, num_k].
    grouped = (q * scale).view(num_q, num_kv_heads, group, head_dim).permute(1, 2, 0, 3)
    grouped = grouped.reshape(num_kv_heads, group * num_q, head_dim)
    keys, values = k.permute(1, 2, 0), v.permute(1, 0, 2)  # [kv, dim, num_k], [kv, num_k, dim]
    scores = (grouped @ keys).view(num_kv_heads, group, num_q, num_k)
    if num_q > 1:  # a single query is the last position and sees every key
        hidden = torch.ones(num_q, num_k, dtype=torch.bool, device=q.device)
        scores.masked_fill_(hidden.triu_(num_k - num_q + 1), float("-inf"))
    weights = torch.softmax(scores, dim=-1)  # sums in float32 inside, whatever the dtype
    out = weights.view(num_kv_heads, group * num_q, num_k) @ values
    out = out.view(num_kv_heads, group, num_q, head_dim).permute(2, 0, 1, 3)
    return out.reshape(num_q, num_heads, head_dim)


class CachedAttend:
    """Attend over the cache: store the new K and V, then read every position up to now."""

    def __init__(self, cache: ContiguousKVCache, num_computed_tokens: int) -> None:
        """Bind one forward pass.

        Args:
            cache: Holds positions 0 … num_computed_tokens − 1.
            num_computed_tokens: Position of the first token of this pass.
        """
        self.cache, self.start = cache, num_computed_tokens

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Q ``[L, heads, dim]``, k and v ``[L, kv_heads, dim]`` to ``[L, heads, dim]``."""
        keys, values = self.cache.append(layer, self.start, k, v)
        return naive_attention(q, keys, values, q.shape[-1] ** -0.5)

    def kv_sink(self, layer: int) -> KVSink | None:
        """None: the cache is written by :meth:`__call__`."""
        return None


class UncachedAttend:
    """Attend over the tokens of this pass only: the whole sequence is recomputed every time."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Q ``[L, heads, dim]``, k and v ``[L, kv_heads, dim]`` to ``[L, heads, dim]``."""
        return naive_attention(q, k, v, q.shape[-1] ** -0.5)

    def kv_sink(self, layer: int) -> KVSink | None:
        """None: nothing is stored."""
        return None
