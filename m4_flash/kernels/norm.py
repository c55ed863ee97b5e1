"""RMSNorm, alone and with the residual addition in front of it, one launch each.

One program holds one token's whole row in registers: it reads the row once and writes it once,
where separate operations (square, mean, rsqrt, two products) would move it through memory five
times. At decode the row is in L2 anyway, and what counts is one launch instead of several.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from m4_flash.kernels.launch import chain, launch_options

MAX_WIDTH = 16384


@triton.jit
def _rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, out_ptr, sum_ptr,
    eps,
    x_stride, residual_stride,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < WIDTH
    weight = tl.load(weight_ptr + column, mask=mask, other=0.0).to(tl.float32)
    chain(PDL)
    x = tl.load(x_ptr + row * x_stride + column, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(
            residual_ptr + row * residual_stride + column, mask=mask, other=0.0
        ).to(tl.float32)  # fmt: skip
        # The stream is kept in the model's dtype, and what is normed is what is kept.
        rounded = x.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + row * WIDTH + column, rounded, mask=mask)
        x = rounded.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, axis=0) / WIDTH + eps)
    out = (x * scale * weight).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * WIDTH + column, out, mask=mask)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, pdl: bool = False) -> Tensor:
    """``x / sqrt(mean(x²) + eps) · weight`` (Zhang and Sennrich 2019, eq. 4).

    Computed in float32 and rounded once; reference: ``TorchOps.rms_norm``.

    Args:
        x: ``[..., width]`` with ``width <= 16384`` contiguous.
        weight: ``[width]``.
        eps: Epsilon of the norm.
        pdl: Launch programmatically, see :mod:`m4_flash.kernels.launch`.

    Returns:
        Shape and dtype of ``x``, contiguous.
    """
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows = _rows(x)
    _launch(rows, rows, weight, out, out, eps, add=False, pdl=pdl)
    return out


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, pdl: bool = False
) -> tuple[Tensor, Tensor]:
    """Add to the residual stream, then normalise the sum.

    The sum is rounded to the model's dtype first and normed after, as ``TorchOps.add_rms_norm``
    does. Neither input is changed.

    Args:
        x: ``[..., width]`` with ``width <= 16384`` contiguous.
        residual: Same shape as ``x``.
        weight: ``[width]``.
        eps: Epsilon of the norm.
        pdl: Launch programmatically, see :mod:`m4_flash.kernels.launch`.

    Returns:
        ``(rms_norm(x + residual), x + residual)``, both contiguous.
    """
    assert x.shape == residual.shape, (x.shape, residual.shape)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = torch.empty_like(out)
    _launch(_rows(x), _rows(residual), weight, out, total, eps, add=True, pdl=pdl)
    return out, total


def _rows(x: Tensor) -> Tensor:
    """``[rows, width]``: a view, unless the leading dimensions cannot be merged."""
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def _launch(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    out: Tensor,
    total: Tensor,
    eps: float,
    *,
    add: bool,
    pdl: bool,
) -> None:
    rows, width = x.shape
    assert width <= MAX_WIDTH, f"a row of {width} does not fit one program ({MAX_WIDTH} at most)"
    assert x.stride(-1) == residual.stride(-1) == weight.stride(-1) == 1
    block = triton.next_power_of_2(width)
    _rms_norm_kernel[(rows,)](
        x, residual, weight, out, total,
        eps,
        x.stride(0), residual.stride(0),
        WIDTH=width, BLOCK=block, ADD=add, PDL=pdl,
        num_warps=min(max(block // 256, 1), 16),  # 8 elements, or 16 bytes, per thread
        **launch_options(pdl),
    )  # fmt: skip
