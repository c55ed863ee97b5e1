"""One product for every batch: which kernel is fastest depends on the number of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from common.errors import ConfigError
from m7_gptq.kernels.gemm import dequantise, gemm
from m7_gptq.kernels.gemv import MAX_ROWS, gemv
from m7_gptq.kernels.repack import PackedWeight

Path = Literal["gemv", "gemm", "dense"]


@dataclass(frozen=True)
class Crossover:
    """Up to which number of rows each kernel is used.

    Attributes:
        gemv_rows: Last number of rows for the GEMV, at most 16; 0 for none.
        gemm_rows: Last number of rows for the fused GEMM; above it the weight is dequantised and
            multiplied by cuBLAS. At most ``gemv_rows``: the GEMM is never used.
    """

    gemv_rows: int
    gemm_rows: int

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: A number of rows that its kernel does not take.
        """
        if not 0 <= self.gemv_rows <= MAX_ROWS:
            raise ConfigError(f"gemv_rows must be in 0 … {MAX_ROWS}, got {self.gemv_rows}")
        if self.gemm_rows < 0:
            raise ConfigError(f"gemm_rows must be at least 0, got {self.gemm_rows}")

    def path(self, rows: int) -> Path:
        """The kernel for a number of rows."""
        if rows <= self.gemv_rows:
            return "gemv"
        return "gemm" if rows <= self.gemm_rows else "dense"


CROSSOVER = {4: Crossover(gemv_rows=2, gemm_rows=64), 8: Crossover(gemv_rows=1, gemm_rows=64)}
"""By bits. ``gemm_rows`` lies between what the layers of Qwen3-0.6B asked for on an H100, 32 to
128. ``gemv_rows`` follows the GEMV of that run, which was another kernel; in 8 bits the GEMM beat
it even at one row. The present GEMV has not been timed alone, so its bounds are a guess until
``python -m m7_gptq.benchmarks --only kernels`` has measured a device."""


def w4a16_matmul(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    crossover: Crossover | None = None,
    *,
    pdl: bool = False,
) -> Tensor:
    """``x · Ŵᵀ (+ bias)`` with Ŵ in 4 or 8 bits, on a GPU (or Triton's interpreter).

    Launches depend on shapes alone, so a call can be recorded in a CUDA graph. Above the last
    cross-over a dense copy of the weight exists during the call: ``out · in`` elements of the
    dtype of x.

    Args:
        x: ``[..., in]`` floating point, of any strides.
        packed: On the device of ``x``.
        bias: ``[out]`` or None.
        crossover: Which kernel from how many rows on; by default :data:`CROSSOVER`.
        pdl: Launch our kernels programmatically (:mod:`m4_flash.kernels.launch`); the dense path
            is launched plainly.

    Returns:
        ``[..., out]`` in the dtype of ``x``, contiguous.
    """
    rows = x.reshape(-1, packed.in_features)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    crossover = crossover or CROSSOVER[packed.bits]
    if not len(rows):
        out = x.new_empty(0, packed.out_features)
    elif (path := crossover.path(len(rows))) == "gemv":
        out = gemv(rows, packed, bias, pdl=pdl)
    elif path == "gemm":
        out = gemm(rows, packed, bias, pdl=pdl)
    else:
        dense = dequantise(packed, x.dtype)
        out = torch.nn.functional.linear(rows, dense, None if bias is None else bias.to(x.dtype))
    return out.view(*x.shape[:-1], packed.out_features)
