"""The numeric ops as Triton kernels: one launch where PyTorch needs several.

Importing this module needs Triton; the engine does so only on a GPU. Same meaning as
:class:`common.model.ops.TorchOps`, which stays the reference and the CPU's implementation.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from common.model.interfaces import KVSink
from m4_flash.kernels.activation import silu_mul
from m4_flash.kernels.norm import add_rms_norm, rms_norm
from m4_flash.kernels.rope import qk_norm_rope


@runtime_checkable
class GatedProduct(Protocol):
    """A merged (gate, up) that applies SwiGLU itself for some x: one launch, no rounding between.

    :class:`m4_flash.gemv_linear.GemvLinear` is one; layers of other formats may be.
    """

    def suits(self, x: Tensor) -> bool:
        """Whether :meth:`silu_mul` takes x; a matter of its shape."""
        ...

    def silu_mul(self, x: Tensor) -> Tensor:
        """``silu(gate) · up``: ``[..., in_features]`` to ``[..., out / 2]``."""
        ...


class TritonOps:
    """Fused implementation of :class:`common.model.interfaces.Ops`.

    Attributes:
        pdl: Launch programmatically, see :mod:`m4_flash.kernels.launch`.
    """

    def __init__(self, *, pdl: bool = False) -> None:
        """Decide how kernels are launched; nothing else differs."""
        self.pdl = pdl

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See :func:`m4_flash.kernels.norm.rms_norm`."""
        return rms_norm(x, weight, eps, pdl=self.pdl)

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """See :func:`m4_flash.kernels.norm.add_rms_norm`."""
        return add_rms_norm(x, residual, weight, eps, pdl=self.pdl)

    def qk_norm_rope(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        q_weight: Tensor | None,
        k_weight: Tensor | None,
        eps: float,
        cos_sin: Tensor,
        sink: KVSink | None,
    ) -> tuple[Tensor, Tensor]:
        """Norm, rotation and KV store in one launch; see :mod:`m4_flash.kernels.rope`."""
        return qk_norm_rope(q, k, v, q_weight, k_weight, eps, cos_sin, sink, pdl=self.pdl)

    def mlp_gate_up(self, gate_up: nn.Module, x: Tensor) -> Tensor:
        """The merged projection and ``silu(gate) · up``: one launch for few rows, else two."""
        if isinstance(gate_up, GatedProduct) and gate_up.suits(x):
            return gate_up.silu_mul(x)
        gate, up = gate_up(x)
        return silu_mul(gate, up, pdl=self.pdl)
