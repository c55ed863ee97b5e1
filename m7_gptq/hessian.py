"""``H = E[x · xᵀ]``: what a layer's inputs say about which errors of its weights matter.

H measures a change of the weights by what it does to the output, and its inverse tells GPTQ how the
columns that are still free make up for one that has been rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.errors import CheckpointError


class Hessian:
    """Accumulates ``H = E[x · xᵀ]`` over the inputs of a layer.

    Each batch's product is float32 (its inputs are), the sum over batches float64: its rounding
    then does not grow with the number of batches.
    """

    def __init__(self, in_features: int, device: torch.device | str = "cpu") -> None:
        """Start with nothing seen."""
        self._sum = torch.zeros(in_features, in_features, dtype=torch.float64, device=device)
        self.num_tokens = 0

    def add(self, x: Tensor) -> None:
        """Take in activations ``[..., in_features]``."""
        rows = x.reshape(-1, x.shape[-1])
        rows = rows if rows.dtype == torch.float64 else rows.float()
        self._sum += rows.T @ rows
        self.num_tokens += rows.shape[0]

    def matrix(self) -> Tensor:
        """H, ``[in_features, in_features]`` float64."""
        assert self.num_tokens, "no activations were added"
        return self._sum / self.num_tokens


def inverse_factor(hessian: Tensor, damp: float) -> Tensor:
    """U with ``(H + λ·I)⁻¹ = Uᵀ·U``, upper triangular, λ = damp · mean(diag H) over live channels.

    float64: with few calibration tokens H is singular, and λ alone bounds the condition number, by
    ``in / damp + 1``: 307,201 for 3,072 inputs and 1 %. Of float32's seven digits that leaves two.
    A channel that never saw an activation (a dead column) gets the mean on the diagonal; it is
    coupled to no other, so it is rounded to nearest. (The authors' code sets such weights to 0; on
    other text the channel may live.)

    Args:
        hessian: ``[in, in]`` float64.
        damp: Share of the mean diagonal.

    Raises:
        CheckpointError: An activation was not finite.
    """
    if not bool(torch.isfinite(hessian).all()):
        raise CheckpointError("the calibration activations hold values that are not finite")
    h = hessian.double().clone()
    diagonal = h.diagonal()  # a view
    live = diagonal[diagonal != 0]
    mean = float(live.mean()) if len(live) else 1.0
    diagonal[diagonal == 0] = mean
    diagonal += damp * mean
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    upper: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return upper


def output_error(weight: Tensor, approximation: Tensor, hessian: Tensor) -> Tensor:
    """``(w − ŵ) · H · (w − ŵ)ᵀ`` of each row, ``[out]`` float64: mean squared error per token."""
    return row_energy(weight.double() - approximation.double(), hessian)


def row_energy(weight: Tensor, hessian: Tensor) -> Tensor:
    """``w · H · wᵀ`` of each row, ``[out]`` float64: mean squared output per token."""
    w = weight.double()
    energy: Tensor = ((w @ hessian) * w).sum(dim=1)
    return energy
