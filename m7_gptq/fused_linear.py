"""Quantised layers on a GPU: the integers repacked once for the kernels, the stored form let go."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from m7_gptq.kernels.lookup import lookup
from m7_gptq.kernels.matmul import can_gate, w4a16_matmul
from m7_gptq.kernels.repack import PackedWeight
from m7_gptq.linear import GPTQLinear


class FusedGPTQLinear(GPTQLinear):
    """As its base, whose forward pass is the reference, but through the fused kernels.

    Attributes:
        packed: One weight where the parts share their groups, else one for each part.
        pdl: Launch programmatically, see :mod:`m4_flash.kernels.launch`.
    """

    packed: tuple[PackedWeight, ...] = ()

    def __init__(self, *args: Any, pdl: bool = False, **options: Any) -> None:
        """Take the base's arguments, and how kernels are launched."""
        super().__init__(*args, **options)
        self.pdl = pdl

    def loaded(self) -> None:
        """Repack; from then on only the packed tensors are held."""
        super().loaded()
        self.packed = tuple(self._pack(part, *span) for part, span in enumerate(self.spans()))
        self.held = nn.ParameterList(
            nn.Parameter(tensor, requires_grad=False)
            for weight in self.packed
            for tensor in (weight.words, weight.zeros, weight.scales)
        )
        del self.qweight, self.qzeros, self.scales, self.g_idx

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """``[..., in_features]`` to ``[..., out]``, or to a tuple of views when ``split``."""
        if self.merged:
            y = w4a16_matmul(x, self.packed[0], self.bias, pdl=self.pdl)
            return torch.split(y, list(self.out_sizes), dim=-1) if self.split else y
        biases = [None] * len(self.packed) if self.bias is None else self._biases(self.bias)
        parts = tuple(
            w4a16_matmul(x, weight, bias, pdl=self.pdl)
            for weight, bias in zip(self.packed, biases, strict=True)
        )
        return parts if self.split else torch.cat(parts, dim=-1)

    def suits(self, x: Tensor) -> bool:
        """Whether :meth:`silu_mul` takes x: few rows, and gate and up in one packed weight."""
        rows = x.numel() // x.shape[-1]
        few = can_gate(rows, self.format.bits, x.dtype)
        return few and self.merged and len(set(self.out_sizes)) == 1 and len(self.out_sizes) == 2

    def silu_mul(self, x: Tensor) -> Tensor:
        """``silu(gate) · up`` of a merged (gate, up) in one launch; x must suit.

        Args:
            x: ``[..., in_features]``.

        Returns:
            ``[..., out / 2]``.
        """
        return w4a16_matmul(x, self.packed[0], self.bias, gated=True, pdl=self.pdl)

    def rows(self, ids: Tensor) -> Tensor:
        """Some rows of Ŵ, as an embedding looks them up; ``[..., in_features]``."""
        found = lookup(ids.reshape(-1), self.packed[0], self.dtype, pdl=self.pdl)
        return found.view(*ids.shape, self.in_features)

    def _biases(self, bias: Tensor) -> list[Tensor | None]:
        return list(torch.split(bias, list(self.out_sizes)))

    def _pack(self, part: int, first: int, last: int) -> PackedWeight:
        """The packed form of some columns; they share one ``g_idx``."""
        count = 32 // self.format.bits
        return PackedWeight.from_checkpoint(
            self.qweight[:, first:last],
            self.qzeros[:, first // count : last // count],
            self.scales[:, first:last],
            self.g_idx[part],
            self.format.bits,
            self.format.group_size,
            stored_zero_offset=0,  # the reference layer has converted them
        )
