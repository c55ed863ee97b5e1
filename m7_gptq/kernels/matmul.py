"""One product for every batch: which kernel is fastest depends on the number of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from common.errors import ConfigError
from m7_gptq.kernels.few_rows import MAX_ROWS, few_rows
from m7_gptq.kernels.gemm import dequantise, gemm
from m7_gptq.kernels.gemv import gemv
from m7_gptq.kernels.repack import PackedWeight

LARGE = 2**25
"""Elements of a weight of which reading takes long beside a launch: 8192 · 4096."""

Path = Literal["gemv", "few_rows", "gemm", "dense"]
GATING: tuple[Path, ...] = ("gemv", "few_rows")
"""Kernels that can compute SwiGLU as well."""


@dataclass(frozen=True)
class Crossover:
    """Up to which number of rows each kernel is used.

    A bound that is not above the one before leaves its kernel out.

    Attributes:
        gemv_rows: Last number of rows for the GEMV, which takes them one by one; 0 for none.
        few_rows: Last number of rows for the tensor cores with the weight in registers, at most 32.
        gemm_rows: Last number of rows for the fused GEMM; above it the weight is dequantised and
            multiplied by cuBLAS.
    """

    gemv_rows: int
    few_rows: int
    gemm_rows: int

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: A number of rows that its kernel does not take.
        """
        for name, most in (("gemv_rows", MAX_ROWS), ("few_rows", MAX_ROWS), ("gemm_rows", 2**31)):
            if not 0 <= (value := getattr(self, name)) <= most:
                raise ConfigError(f"{name} must be in 0 … {most}, got {value}")

    def path(self, rows: int, dtype: torch.dtype, size: int = 0) -> Path:
        """The kernel for a number of rows of x.

        In float32 the tensor cores would round x, so the GEMV takes few rows instead. A large
        weight is theirs even with one row: the GEMV's unpacking no longer hides behind its reads.

        Args:
            rows: Rows of x.
            dtype: Of x.
            size: Elements of the weight.
        """
        if rows <= max(self.gemv_rows, self.few_rows):
            few = rows <= self.few_rows and (rows > self.gemv_rows or size >= LARGE)
            return "few_rows" if few and dtype != torch.float32 else "gemv"
        return "gemm" if rows <= self.gemm_rows else "dense"


CROSSOVER = {4: Crossover(1, 32, 64), 8: Crossover(1, 8, 128)}
"""By bits, as ``python -m m7_gptq.benchmarks --only kernels`` asked for on an H100: in 4 bits for
Qwen3-0.6B's layers (the GEMM up to 32, 64, 64 and 128 rows), in 8 bits for its output matrix."""


def w4a16_matmul(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    crossover: Crossover | None = None,
    *,
    gated: bool = False,
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
        gated: Return ``silu(gate) · up`` of it, of half the width; where :func:`can_gate`.
        pdl: Launch our kernels programmatically (:mod:`m4_flash.kernels.launch`); the dense path
            is launched plainly.

    Returns:
        ``[..., out]`` in the dtype of ``x``, contiguous; ``[..., out / 2]`` if ``gated``.
    """
    rows = x.reshape(-1, packed.in_features)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    crossover = crossover or CROSSOVER[packed.bits]
    path = crossover.path(len(rows), x.dtype, packed.size)
    assert not gated or (len(rows) and path in GATING), len(rows)
    if not len(rows):
        out = x.new_empty(0, packed.out_features)
    elif path == "gemv":
        out = gemv(rows, packed, bias, gated=gated, pdl=pdl)
    elif path == "few_rows":
        out = few_rows(rows, packed, bias, gated=gated, pdl=pdl)
    elif path == "gemm":
        out = gemm(rows, packed, bias, pdl=pdl)
    else:
        dense = dequantise(packed, x.dtype)
        out = torch.nn.functional.linear(rows, dense, None if bias is None else bias.to(x.dtype))
    return out.view(*x.shape[:-1], out.shape[1])


def can_gate(rows: int, bits: int, dtype: torch.dtype, crossover: Crossover | None = None) -> bool:
    """Whether :func:`w4a16_matmul` takes ``gated`` for that many rows of x."""
    return rows > 0 and (crossover or CROSSOVER[bits]).path(rows, dtype) in GATING
