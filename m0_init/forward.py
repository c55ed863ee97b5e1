"""One forward pass without a cache: the least code that turns token ids into a next token.

:class:`FullAttend` remembers nothing. It attends over the tokens at hand, so the next token costs
the whole sequence again; the KV cache of M1 is what removes that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.model.interfaces import KVSink
from common.model.transformer import Transformer


class FullAttend:
    """Causal attention of one sequence over itself, written out (Vaswani et al. 2017, eq. 1)."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``softmax(q · kᵀ / √head_dim + mask) · v``, every head for itself.

        Args:
            layer: Index of the decoder layer; all layers are treated alike.
            q: ``[num_tokens, num_heads, head_dim]``.
            k: ``[num_tokens, num_kv_heads, head_dim]``.
            v: ``[num_tokens, num_kv_heads, head_dim]``.

        Returns:
            ``[num_tokens, num_heads, head_dim]``.
        """
        num_tokens, num_heads, head_dim = q.shape
        # GQA: query heads 0 … group − 1 share KV head 0, the next ones KV head 1, and so on.
        group = num_heads // k.shape[1]
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        scores = torch.einsum("qhd,khd->hqk", q, k) * head_dim**-0.5
        future = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=q.device).triu(1)
        weights = scores.masked_fill(future, float("-inf")).softmax(-1, dtype=torch.float32)
        return torch.einsum("hqk,khd->qhd", weights.to(v.dtype), v)

    def kv_sink(self, layer: int) -> KVSink | None:
        """None: there is nowhere to store K and V."""


@dataclass(frozen=True)
class LayerStates:
    """What one forward pass went through.

    Attributes:
        hidden: The residual stream ``[num_tokens, hidden_size]``, after the embedding (entry 0)
            and after every layer, before the final norm.
        logits: ``[num_tokens, vocab_size]``.
    """

    hidden: tuple[Tensor, ...]
    logits: Tensor


@torch.inference_mode()
def layer_states(model: Transformer, token_ids: Sequence[int]) -> LayerStates:
    """Run a prompt once and keep the stream after every layer and the logits of every token.

    Args:
        model: A loaded model.
        token_ids: At least one id.
    """
    hidden: list[Tensor] = []
    final = _run(model, token_ids, hidden)
    return LayerStates(tuple(hidden), model.logits(final))


@torch.inference_mode()
def next_token_logits(model: Transformer, token_ids: Sequence[int]) -> Tensor:
    """Logits ``[vocab_size]`` (float32) of the token that follows a prompt.

    Args:
        model: A loaded model.
        token_ids: At least one id.
    """
    return model.logits(_run(model, token_ids)[-1:])[0].float()


def greedy(model: Transformer, token_ids: Sequence[int], num_tokens: int) -> list[int]:
    """The ``num_tokens`` most likely ids after a prompt, computing everything again for each."""
    ids = list(token_ids)
    for _ in range(num_tokens):
        ids.append(int(next_token_logits(model, ids).argmax()))
    return ids[len(token_ids) :]


def _run(model: Transformer, token_ids: Sequence[int], keep: list[Tensor] | None = None) -> Tensor:
    """Hidden states ``[num_tokens, hidden_size]`` after the final norm."""
    ids = torch.tensor(list(token_ids), dtype=torch.int64, device=model.device)
    positions = torch.arange(len(ids), device=model.device)
    hook = None if keep is None else (lambda _, stream: keep.append(stream))
    hidden: Tensor = model(ids, positions, FullAttend(), hook)
    return hidden
