"""The numeric ops in plain PyTorch: what the formulas say, at the precision they need.

Norms and rotations run in float32 whatever the model's dtype, and round once at the end. Later
stages hand in fused kernels with the same signatures (see :class:`common.model.interfaces.Ops`);
these stay their reference.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.model.interfaces import KVSink


class TorchOps:
    """Reference implementation of :class:`common.model.interfaces.Ops`."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Root-mean-square norm over the last dimension (Zhang and Sennrich 2019, eq. 4).

        ``x / sqrt(mean(x²) + eps) · weight``: no mean is subtracted and no bias added, unlike
        LayerNorm. The mean is taken in float32, because bfloat16 keeps 8 bits of a sum.
        """
        return F.rms_norm(x, (x.shape[-1],), weight, eps)

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Add to the residual stream, then normalise the sum: ``(rms_norm(x + r), x + r)``."""
        residual = x + residual
        return self.rms_norm(residual, weight, eps), residual

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
        """Norm per head, then RoPE. The order matters: a rotation keeps a head's norm, so norm
        after rotation would give the same length but scale rotated pairs by unequal weights.
        """  # noqa: D205 (one thought)
        if q_weight is not None and k_weight is not None:
            q, k = self.rms_norm(q, q_weight, eps), self.rms_norm(k, k_weight, eps)
        # Heads of q and k turn by the same angles, so one call rotates both.
        rotated = apply_rope(torch.cat((q, k), dim=-2), cos_sin)
        q, k = rotated.split_with_sizes([q.shape[-2], k.shape[-2]], dim=-2)
        if sink is not None:
            store_kv(k, v, sink)
        return q, k

    def mlp_gate_up(self, gate_up: nn.Module, x: Tensor) -> Tensor:
        """SwiGLU's gate (Shazeer 2020): ``silu(gate) · up``."""
        gate, up = gate_up(x)
        result: Tensor = F.silu(gate) * up
        return result


def apply_rope(x: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotate each head by its token's angles (Su et al. 2021, in the half-split layout).

    Element i is paired with element ``i + head_dim / 2``, as in every Hugging Face checkpoint of
    these families (the paper pairs neighbours; the weights are permuted to match). The table holds
    the cosines twice and the sines with their signs, so that both halves are one expression::

        | x1 · cos − x2 · sin | x2 · cos + x1 · sin |  =  | x1 | x2 | · cos  +  | x2 | x1 | · ±sin

    Args:
        x: ``[..., num_heads, head_dim]``.
        cos_sin: ``[..., 2 · head_dim]`` float32 rows of :func:`common.model.rope.rope_table`.

    Returns:
        Same shape and dtype as ``x``.
    """
    cos, sin = cos_sin.unsqueeze(-2).chunk(2, dim=-1)
    swapped = x.roll(x.shape[-1] // 2, dims=-1)
    return torch.addcmul(x * cos, swapped, sin).to(x.dtype)


def store_kv(k: Tensor, v: Tensor, sink: KVSink) -> None:
    """Write the K and V of each token to its slot; tokens with slot −1 are left out.

    Args:
        k: ``[num_tokens, num_kv_heads, head_dim]``.
        v: Same shape as ``k``.
        sink: Cache and slots.
    """
    kept = sink.slot_mapping >= 0
    slots = sink.slot_mapping[kept]
    sink.k_cache.flatten(0, 1)[slots] = k[kept]
    sink.v_cache.flatten(0, 1)[slots] = v[kept]
