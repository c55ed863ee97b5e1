"""The parts of one decoder layer, each calling its numerics through ``ops``.

The residual stream is threaded through the norms, so that the addition and the norm that follows
it can be one kernel later::

    x, residual = add_rms_norm(x, residual) → attention → add_rms_norm → MLP → …
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.model.interfaces import Attend, LinearFactory, Ops
from common.model.linear import VectorParameter
from common.model_config import ModelConfig


class RMSNorm(VectorParameter):
    """RMSNorm, with or without the residual addition in front of it."""

    def __init__(
        self,
        prefix: str,
        size: int,
        eps: float,
        ops: Ops,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        """Allocate the ``[size]`` weight."""
        super().__init__(prefix, (size,), dtype, device)
        self.eps, self.ops = eps, ops

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Normalise ``x`` (plus ``residual``); returns the normed value and the new residual.

        Args:
            x: ``[..., size]``.
            residual: ``[..., size]``, or None at the first norm, where x starts the stream.
        """
        if residual is None:
            return self.ops.rms_norm(x, self.weight, self.eps), x
        return self.ops.add_rms_norm(x, residual, self.weight, self.eps)


class Attention(nn.Module):
    """Project, normalise, rotate, hand over to ``attend``, project back."""

    def __init__(
        self,
        prefix: str,
        layer: int,
        config: ModelConfig,
        ops: Ops,
        linear: LinearFactory,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        """Make the merged projection, the output projection and the QK-norms."""
        super().__init__()
        self.layer, self.head_dim, self.eps, self.ops = (
            layer,
            config.head_dim,
            config.rms_norm_eps,
            ops,
        )
        sizes = (config.q_size, config.kv_size, config.kv_size)
        self.qkv = linear(f"{prefix}.qkv", config.hidden_size, sizes, config.qkv_bias, True)
        self.o = linear(f"{prefix}.o", config.q_size, (config.hidden_size,), config.o_bias, False)
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            shape = (config.head_dim,)
            self.q_norm = VectorParameter(f"{prefix}.q_norm", shape, dtype, device)
            self.k_norm = VectorParameter(f"{prefix}.k_norm", shape, dtype, device)

    def forward(self, x: Tensor, cos_sin: Tensor, attend: Attend) -> Tensor:
        """One attention block.

        Args:
            x: ``[..., hidden_size]``, already normed.
            cos_sin: ``[..., 2 · head_dim]`` float32 rows of the rope table, one per token.
            attend: Where K and V go and attention happens.

        Returns:
            ``[..., hidden_size]``.
        """
        heads = (*x.shape[:-1], -1, self.head_dim)
        q, k, v = (part.view(heads) for part in self.qkv(x))
        q, k = self.ops.qk_norm_rope(
            q,
            k,
            v,
            self.q_norm.weight if self.q_norm is not None else None,
            self.k_norm.weight if self.k_norm is not None else None,
            self.eps,
            cos_sin,
            attend.kv_sink(self.layer),
        )
        out = attend(self.layer, q, k, v)
        result: Tensor = self.o(out.flatten(-2))
        return result


class MLP(nn.Module):
    """SwiGLU: ``down(silu(gate(x)) · up(x))``."""

    def __init__(self, prefix: str, config: ModelConfig, ops: Ops, linear: LinearFactory) -> None:
        """Make the merged gate/up projection and the down projection."""
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.ops = ops
        self.gate_up = linear(f"{prefix}.gate_up", hidden, (inner, inner), bias, True)
        self.down = linear(f"{prefix}.down", inner, (hidden,), bias, False)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., hidden_size]`` to ``[..., hidden_size]``."""
        result: Tensor = self.down(self.ops.mlp_gate_up(self.gate_up, x))
        return result


class DecoderLayer(nn.Module):
    """Norm, attention, norm, MLP, with the residual threaded through the norms."""

    def __init__(
        self,
        layer: int,
        config: ModelConfig,
        ops: Ops,
        linear: LinearFactory,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        """Make the four parts of layer number ``layer``."""
        super().__init__()
        prefix, size, eps = f"layers.{layer}", config.hidden_size, config.rms_norm_eps
        self.attn_norm = RMSNorm(f"{prefix}.attn_norm", size, eps, ops, dtype, device)
        self.attn = Attention(f"{prefix}.attn", layer, config, ops, linear, dtype, device)
        self.mlp_norm = RMSNorm(f"{prefix}.mlp_norm", size, eps, ops, dtype, device)
        self.mlp = MLP(f"{prefix}.mlp", config, ops, linear)

    def forward(
        self, x: Tensor, residual: Tensor | None, cos_sin: Tensor, attend: Attend
    ) -> tuple[Tensor, Tensor]:
        """One layer; the layer's output is ``x + residual`` of what it returns.

        Args:
            x: ``[..., hidden_size]``, the last block's output.
            residual: ``[..., hidden_size]``, the stream before that block, or None at layer 0.
            cos_sin: ``[..., 2 · head_dim]`` rows of the rope table.
            attend: Where K and V go and attention happens.
        """
        x, residual = self.attn_norm(x, residual)
        x = self.attn(x, cos_sin, attend)
        x, residual = self.mlp_norm(x, residual)
        return self.mlp(x), residual
