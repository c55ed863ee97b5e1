"""Products with a float32 matrix on a CPU, at the pace of reading it: weights in oneDNN's layout.

A decode step multiplies one row per sequence with every weight. For float32 ``F.linear`` calls MKL,
which is far from the pace of reading on the processor of this project's measurements. oneDNN, which
PyTorch brings too, is nearer, and nearest if it may choose the layout: :func:`pack` rearranges a
matrix once into the blocks that its kernels read straight through, and every later product gains,
of one row and of hundreds.

Where there is no oneDNN for the processor, up to :data:`MAX_ROWS` rows are multiplied the other way
round, ``(W · xᵀ)ᵀ``, for which the usual library has a routine that streams W, but only from two
columns on; so a single row is doubled.

The benchmark ``few_rows`` measures all three. Only the order of the sums differs. Other dtypes and
a GPU take the plain product.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.model.interfaces import LinearFactory, LoadableModule
from common.model.linear import DenseLinear, TiedHead
from common.model.transformer import Transformer

MAX_ROWS = 4
"""Rows up to which an unpacked matrix is multiplied by :func:`few_rows`."""

PACKED_FOR = 16
"""Rows that a layout is chosen for. Chosen for 1, it is slow for more; from 16 on none differs."""


class SmallBatchLinear(DenseLinear):
    """As its base, by the faster way for the number of rows."""

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """``[..., in_features]`` to ``[..., out]``, or to a tuple of views when ``split``."""
        y = product(x, self.weight, self.bias)
        return torch.split(y, list(self.out_sizes), dim=-1) if self.split else y


class SmallBatchHead(TiedHead):
    """The tied head, by the faster way for the number of rows."""

    def forward(self, x: Tensor) -> Tensor:
        """``[..., hidden_size]`` to logits ``[..., vocab_size]``."""
        return product(x, self.weight, None)


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x · Wᵀ (+ b)`` by the faster way for the number of rows.

    Args:
        x: ``[..., in_features]`` float32 on a CPU.
        weight: ``[out, in_features]``, plain or from :func:`pack`.
        bias: ``[out]`` or None.

    Returns:
        ``[..., out]``, contiguous.
    """
    if weight.is_mkldnn:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return y
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


@lru_cache(maxsize=1)
def can_pack() -> bool:
    """Whether this PyTorch has oneDNN's products for this processor."""
    return (
        bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
        and torch.backends.cpu.get_cpu_capability().startswith("AVX")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def pack(weight: Tensor) -> Tensor:
    """A copy of ``weight`` in oneDNN's blocked layout: for :func:`product`, and nothing else."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), PACKED_FOR)
    return packed


def small_batch_factory(dtype: torch.dtype, device: torch.device) -> LinearFactory:
    """A factory whose layers are all :class:`SmallBatchLinear`."""

    def make(
        prefix: str, in_features: int, out_sizes: tuple[int, ...], bias: bool, split: bool
    ) -> LoadableModule:
        return SmallBatchLinear(
            prefix, in_features, out_sizes, bias, split, dtype=dtype, device=device
        )

    return make


@torch.inference_mode()
def suit_small_batches(model: Transformer) -> None:
    """Give a loaded model this module's head, and pack the matrices where that can be.

    A tied head has to be replaced, since no factory makes it. Packed it is a copy: the embedding
    looks up rows of the plain matrix. Every other matrix is packed in place of the plain one, one
    after the other, so that the two exist together for one matrix at a time.
    """
    if type(model.lm_head) is TiedHead:
        model.lm_head = SmallBatchHead(model.embed_tokens.weight)
    if not can_pack():
        return
    for module in model.modules():
        if isinstance(module, SmallBatchLinear | SmallBatchHead):
            module.weight = nn.Parameter(pack(module.weight), requires_grad=False)
