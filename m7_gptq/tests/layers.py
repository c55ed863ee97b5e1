"""Random layers with correlated inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from m7_gptq.hessian import Hessian


def layer(
    rows: int, columns: int, seed: int, tokens: int = 256, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """A random weight and the H of strongly correlated inputs, as activations are."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    scales = torch.rand(columns, generator=generator, dtype=torch.float64) * 4 + 0.1
    x = torch.randn(tokens, columns, generator=generator, dtype=torch.float64) @ mix * scales
    seen = Hessian(columns)
    seen.add(x)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return weight.to(dtype), seen.matrix()
