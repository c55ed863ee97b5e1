"""Linear layers on a GPU that multiply a few rows with our own kernels (:mod:`kernels.gemv`).

Importing this module needs Triton; the engine does so only on a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.model.interfaces import LinearFactory, LoadableModule
from common.model.linear import DenseLinear
from m4_flash.devices import supports_pdl
from m4_flash.kernels.gemv import gemv

FEW_ROWS = 4
"""Rows that our kernels multiply. From 8 on the library is faster on an H100 (``few_rows``)."""


class GemvLinear(DenseLinear):
    """As its base; up to :data:`FEW_ROWS` rows are multiplied at the pace of reading W.

    Attributes:
        pdl: Launch programmatically, see :mod:`m4_flash.kernels.launch`.
    """

    pdl = False

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """``[..., in_features]`` to ``[..., out]``, or to a tuple of views when ``split``."""
        if not self.suits(x):
            return super().forward(x)
        y = self._product(x, gated=False)
        return torch.split(y, list(self.out_sizes), dim=-1) if self.split else y

    def suits(self, x: Tensor) -> bool:
        """Whether x has few rows: a matter of its shape, which a captured graph fixes."""
        return 0 < x.numel() <= FEW_ROWS * x.shape[-1]

    def silu_mul(self, x: Tensor) -> Tensor:
        """``silu(gate) · up`` of a merged (gate, up) in one launch; x must suit.

        Args:
            x: ``[..., in_features]``.

        Returns:
            ``[..., out / 2]``.
        """
        return self._product(x, gated=True)

    def _product(self, x: Tensor, *, gated: bool) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        y = gemv(rows, self.weight, self.bias, gated=gated, pdl=self.pdl)
        return y.view(*x.shape[:-1], y.shape[-1])


def gemv_factory(dtype: torch.dtype, device: torch.device, *, pdl: bool) -> LinearFactory:
    """A factory whose layers are all :class:`GemvLinear`.

    Args:
        dtype: Element type.
        device: A GPU, or a CPU where Triton's interpreter runs.
        pdl: Whether the device may launch programmatically, if it can.
    """
    use_pdl = pdl and supports_pdl(device)

    def make(
        prefix: str, in_features: int, out_sizes: tuple[int, ...], bias: bool, split: bool
    ) -> LoadableModule:
        layer = GemvLinear(prefix, in_features, out_sizes, bias, split, dtype=dtype, device=device)
        layer.pdl = use_pdl
        return layer

    return make
