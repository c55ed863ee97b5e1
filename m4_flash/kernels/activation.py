"""SwiGLU's gate, ``silu(gate) · up``, in one launch over the two halves of a merged projection."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from m4_flash.kernels.launch import chain, launch_options

BLOCK = 1024  # 4 warps of 8 elements per thread


@triton.jit
def swiglu(gate, up):
    """``silu(gate) · up`` in float32; exp(−gate) may be infinite, the quotient is a clean zero."""
    return gate / (1.0 + tl.exp(-gate)) * up


@triton.jit
def _silu_mul_kernel(
    gate_ptr, up_ptr, out_ptr,
    gate_stride, up_stride,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < WIDTH
    chain(PDL)
    gate = tl.load(gate_ptr + row * gate_stride + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + column, mask=mask, other=0.0).to(tl.float32)
    out = swiglu(gate, up)
    tl.store(out_ptr + row * WIDTH + column, out.to(out_ptr.dtype.element_ty), mask=mask)


def silu_mul(gate: Tensor, up: Tensor, *, pdl: bool = False) -> Tensor:
    """``silu(gate) · up`` (Shazeer 2020), in float32, rounded once.

    Reference: ``TorchOps.mlp_gate_up``, which rounds ``silu(gate)`` too.

    Args:
        gate: ``[..., intermediate_size]``, the last dimension contiguous; a view of the merged
            projection will do.
        up: Same shape as ``gate``.
        pdl: Launch programmatically, see :mod:`m4_flash.kernels.launch`.

    Returns:
        Shape and dtype of ``gate``, contiguous.
    """
    assert gate.shape == up.shape, (gate.shape, up.shape)
    width = gate.shape[-1]
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    if gate.dim() != 2:
        gate, up = gate.reshape(-1, width), up.reshape(-1, width)
    assert gate.stride(-1) == up.stride(-1) == 1
    _silu_mul_kernel[(gate.shape[0], triton.cdiv(width, BLOCK))](
        gate, up, out,
        gate.stride(0), up.stride(0),
        WIDTH=width, BLOCK=BLOCK, PDL=pdl,
        num_warps=4, **launch_options(pdl),
    )  # fmt: skip
    return out
