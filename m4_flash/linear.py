"""Products of a few rows with a float32 matrix on a CPU, at the pace of reading the matrix.

A decode step multiplies one row per sequence with every weight. ``F.linear`` hands that to a
routine made for many rows, or, for a single one, to a dot product per output. Written the other way
round, ``(W · xᵀ)ᵀ``, the same library takes a routine that streams W, but only from two columns on;
so a single row is doubled. The benchmark ``few_rows`` measures both for each number of rows; from
:data:`MAX_ROWS` on the gain depends on the number of threads, or is none.

Only the order of the sums differs. More rows, other dtypes and a GPU take the plain product.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from common.model.interfaces import LinearFactory, LoadableModule
from common.model.linear import DenseLinear, TiedHead
from common.model.transformer import Transformer

MAX_ROWS = 4


class SmallBatchLinear(DenseLinear):
    """As its base; a few rows are multiplied by :func:`few_rows`."""

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """``[..., in_features]`` to ``[..., out]``, or to a tuple of views when ``split``."""
        y = product(x, self.weight, self.bias)
        return torch.split(y, list(self.out_sizes), dim=-1) if self.split else y


class SmallBatchHead(TiedHead):
    """The tied head; a few rows are multiplied by :func:`few_rows`."""

    def forward(self, x: Tensor) -> Tensor:
        """``[..., hidden_size]`` to logits ``[..., vocab_size]``."""
        return product(x, self.weight, None)


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x · Wᵀ (+ b)`` by the faster way for the number of rows.

    Args:
        x: ``[..., in_features]`` float32 on a CPU.
        weight: ``[out, in_features]``.
        bias: ``[out]`` or None.

    Returns:
        ``[..., out]``, contiguous.
    """
    rows = x.reshape(-1, x.shape[-1])
    if not 0 < len(rows) <= MAX_ROWS:
        return F.linear(x, weight, bias)
    y = few_rows(rows, weight)
    return (y if bias is None else y + bias).view(*x.shape[:-1], len(weight))


def few_rows(rows: Tensor, weight: Tensor) -> Tensor:
    """``(W · xᵀ)ᵀ``; ``[rows, in_features]`` to ``[rows, out]``, contiguous."""
    count = len(rows)
    columns = (rows.repeat(2, 1) if count == 1 else rows).t()
    return torch.mm(weight, columns)[:, :count].t().contiguous()


def small_batch_factory(dtype: torch.dtype, device: torch.device) -> LinearFactory:
    """A factory whose layers are all :class:`SmallBatchLinear`."""

    def make(
        prefix: str, in_features: int, out_sizes: tuple[int, ...], bias: bool, split: bool
    ) -> LoadableModule:
        return SmallBatchLinear(
            prefix, in_features, out_sizes, bias, split, dtype=dtype, device=device
        )

    return make


def use_small_batch_head(model: Transformer) -> None:
    """Replace a tied head, which no factory makes; its matrix stays the embedding's."""
    if type(model.lm_head) is TiedHead:
        model.lm_head = SmallBatchHead(model.embed_tokens.weight)
