"""The three seams of the model: memory (:class:`Attend`), numerics (:class:`Ops`), linear layers.

The model knows nothing of caches, batches, kernels or checkpoint formats. Whatever a stage
improves, it hands in through one of these.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class KVSink:
    """Where one layer's new K and V go, for an op that can store them itself.

    Attributes:
        k_cache: ``[num_blocks, block_size, num_kv_heads, head_dim]``.
        v_cache: Same shape as ``k_cache``.
        slot_mapping: ``[num_tokens]`` int64; token t goes to ``block = slot // block_size``, place
            ``slot % block_size``; −1 means that the token is padding and is not stored.
    """

    k_cache: Tensor
    v_cache: Tensor
    slot_mapping: Tensor


class Attend(Protocol):
    """Attention over whatever the caller remembers of each sequence.

    The caller stores the K and V of the whole batch before any sequence attends, so that a
    sequence may read what another one wrote in the same step.
    """

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend in one layer.

        Args:
            layer: Index of the decoder layer.
            q: ``[..., num_heads, head_dim]``, rotated.
            k: ``[..., num_kv_heads, head_dim]``, rotated.
            v: ``[..., num_kv_heads, head_dim]``.

        Returns:
            ``[..., num_heads, head_dim]``, with q's leading shape.
        """
        ...

    def kv_sink(self, layer: int) -> KVSink | None:
        """Where a fused op may store this layer's K and V; None where attention does it."""
        ...


class LoadableModule(nn.Module, ABC):
    """A module that takes checkpoint tensors one by one, so that merged weights need no copy."""

    @abstractmethod
    def expected_shards(self) -> set[tuple[str, int]]:
        """Every (tensor name, shard) that :meth:`load_shard` must see once."""

    @abstractmethod
    def load_shard(self, name: str, shard: int, tensor: Tensor) -> None:
        """Copy one checkpoint tensor into its place.

        Args:
            name: Last part of the checkpoint name, such as ``weight``.
            shard: Which part of a merged module it is (q, k, v are 0, 1, 2).
            tensor: The stored tensor, any float dtype.

        Raises:
            CheckpointError: The name is unknown or the shape is wrong.
        """


class LinearFactory(Protocol):
    """Makes every linear layer of the model."""

    def __call__(
        self, prefix: str, in_features: int, out_sizes: tuple[int, ...], bias: bool, split: bool
    ) -> LoadableModule:
        """Make one linear layer.

        Args:
            prefix: Path of the module in our model, for example ``layers.0.attn.qkv``.
            in_features: Width of the input.
            out_sizes: Widths of the outputs that are merged into one matrix.
            bias: Whether a bias is added.
            split: Return a tuple with one tensor per entry of ``out_sizes`` instead of one tensor.
        """
        ...


class Ops(Protocol):
    """The numeric operations between the matrix products. All keep their input's dtype."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """``x / sqrt(mean(x²) + eps) · weight`` over the last dimension."""
        ...

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """``r = x + residual``; returns ``(rms_norm(r), r)``."""
        ...

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
        """Normalise each head of q and k (where there are weights), then rotate both.

        Args:
            q: ``[..., num_heads, head_dim]``.
            k: ``[..., num_kv_heads, head_dim]``.
            v: ``[..., num_kv_heads, head_dim]``, untouched; needed only to fill ``sink``.
            q_weight: ``[head_dim]``, or None for models without QK-norm.
            k_weight: ``[head_dim]``, or None for models without QK-norm.
            eps: Epsilon of the norm.
            cos_sin: ``[..., 2 · head_dim]`` float32, the rope table's row of each token.
            sink: Where to store k and v, or None.

        Returns:
            The rotated ``(q, k)``.
        """
        ...

    def mlp_gate_up(self, gate_up: nn.Module, x: Tensor) -> Tensor:
        """``silu(gate(x)) · up(x)`` for a merged linear that returns ``(gate, up)``.

        Args:
            gate_up: Module made by the linear factory with ``split=True``.
            x: ``[..., hidden_size]``.

        Returns:
            ``[..., intermediate_size]``.
        """
        ...


TORCH_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
