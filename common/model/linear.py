"""Dense linear layers whose checkpoint tensors are merged while they are loaded.

q, k and v (and gate and up) read the same input, so one wide matrix product replaces three. Each
checkpoint tensor is copied straight into its rows::

    weight [q_size + 2·kv_size, hidden]
    | q rows | k rows | v rows |          shard 0, 1, 2
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import CheckpointError
from common.model.interfaces import LinearFactory, LoadableModule


class DenseLinear(LoadableModule):
    """``y = x · Wᵀ (+ b)``, with the rows of several checkpoint matrices in one.

    Attributes:
        weight: ``[sum(out_sizes), in_features]``.
        bias: ``[sum(out_sizes)]`` or None.
        out_sizes: Rows of each shard.
        split: Whether the call returns one tensor per shard.
    """

    def __init__(
        self,
        prefix: str,
        in_features: int,
        out_sizes: tuple[int, ...],
        bias: bool,
        split: bool,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        """Allocate the merged matrix without filling it: every row comes from the checkpoint."""
        super().__init__()
        self.prefix, self.out_sizes, self.split = prefix, out_sizes, split
        rows = sum(out_sizes)
        self.weight = uninitialised((rows, in_features), dtype, device)
        self.bias = uninitialised((rows,), dtype, device) if bias else None

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """``[..., in_features]`` to ``[..., out]``, or to a tuple of views when ``split``."""
        y = F.linear(x, self.weight, self.bias)
        return torch.split(y, list(self.out_sizes), dim=-1) if self.split else y

    def expected_shards(self) -> set[tuple[str, int]]:
        """One weight per shard, and one bias where there is one."""
        names = ["weight"] if self.bias is None else ["weight", "bias"]
        return {(name, shard) for name in names for shard in range(len(self.out_sizes))}

    def load_shard(self, name: str, shard: int, tensor: Tensor) -> None:
        """Copy the rows of one checkpoint matrix (or bias).

        Raises:
            CheckpointError: The name is unknown or the shape is wrong.
        """
        if (name, shard) not in self.expected_shards():
            raise CheckpointError(f"{self.prefix} (shard {shard}) has no tensor {name!r}")
        parameter = self.weight if name == "weight" else self.bias
        assert parameter is not None
        first = sum(self.out_sizes[:shard])
        rows = parameter[first : first + self.out_sizes[shard]]
        copy_checked(rows, tensor, f"{self.prefix} (shard {shard}) {name}")


class TiedHead(LoadableModule):
    """An ``lm_head`` that is the embedding matrix itself: one storage, nothing to load."""

    def __init__(self, embedding: nn.Parameter) -> None:
        """Share ``embedding``, ``[vocab_size, hidden_size]``."""
        super().__init__()
        self.weight = embedding

    def forward(self, x: Tensor) -> Tensor:
        """``[..., hidden_size]`` to logits ``[..., vocab_size]``."""
        return F.linear(x, self.weight)

    def expected_shards(self) -> set[tuple[str, int]]:
        """Nothing: the embedding loads itself."""
        return set()

    def load_shard(self, name: str, shard: int, tensor: Tensor) -> None:
        """Refuse: a tied checkpoint's ``lm_head.weight`` is a copy and is skipped.

        Raises:
            CheckpointError: Always.
        """
        raise CheckpointError(f"lm_head is tied to the embedding and loads no {name!r}")


class VectorParameter(LoadableModule):
    """A module with one parameter, loaded whole: the embedding and norms.

    Attributes:
        weight: The parameter.
    """

    def __init__(
        self, prefix: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str
    ) -> None:
        """Allocate ``weight`` without filling it."""
        super().__init__()
        self.prefix = prefix
        self.weight = uninitialised(shape, dtype, device)

    def expected_shards(self) -> set[tuple[str, int]]:
        """Only ``weight``."""
        return {("weight", 0)}

    def load_shard(self, name: str, shard: int, tensor: Tensor) -> None:
        """Copy ``weight``.

        Raises:
            CheckpointError: The name is unknown or the shape is wrong.
        """
        if (name, shard) != ("weight", 0):
            raise CheckpointError(f"{self.prefix} has no tensor {name!r}")
        copy_checked(self.weight, tensor, f"{self.prefix} {name}")


class Embedding(VectorParameter):
    """Rows of a matrix ``[vocab_size, hidden_size]``, one for each token."""

    def forward(self, token_ids: Tensor) -> Tensor:
        """``[...]`` ids to ``[..., hidden_size]``."""
        return F.embedding(token_ids, self.weight)


def dense_linear_factory(dtype: torch.dtype, device: torch.device | str) -> LinearFactory:
    """A factory whose layers are all :class:`DenseLinear` of one dtype on one device."""

    def make(
        prefix: str, in_features: int, out_sizes: tuple[int, ...], bias: bool, split: bool
    ) -> LoadableModule:
        return DenseLinear(prefix, in_features, out_sizes, bias, split, dtype=dtype, device=device)

    return make


def uninitialised(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str
) -> nn.Parameter:
    """A parameter without values: the operating system commits its pages as they are loaded."""
    return nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)


def copy_checked(target: Tensor, source: Tensor, what: str) -> None:
    """Copy (and convert) ``source`` into ``target``.

    Raises:
        CheckpointError: The shapes differ, or ``source`` is not a float tensor.
    """
    if target.shape != source.shape:
        raise CheckpointError(
            f"{what} has shape {tuple(source.shape)} in the checkpoint, "
            f"expected {tuple(target.shape)}"
        )
    if not source.dtype.is_floating_point:
        raise CheckpointError(f"{what} has dtype {source.dtype} in the checkpoint, expected floats")
    target.copy_(source)
