"""GPTQ for one linear layer (Frantar et al. 2022, arXiv 2210.17323), written to be read.

The layer computes ``y = W · x``. We want integers whose dequantised matrix Ŵ changes y least, over
activations x that a calibration text brought about::

    minimise  E‖W·x − Ŵ·x‖²  =  trace((W − Ŵ) · H · (W − Ŵ)ᵀ),      H = E[x · xᵀ]

Rows of W are independent and share H (the paper writes H = 2XXᵀ; a factor changes nothing below).
Columns are rounded one after the other. After each, the columns that are still free move, so that
they make up for its error as well as they can::

      done        now      free
    | ŵ ŵ ŵ ŵ ŵ |  w  | w w w w w w |        error e = (w − ŵ) / U[j,j]
                    └──────────────▶         free columns −= e · U[j, free]

U is the upper Cholesky factor of H⁻¹ (``H⁻¹ = Uᵀ·U``). Its row j, divided by its diagonal element,
is the first row of the inverse of H restricted to columns j …, divided likewise: what OBQ computes
anew for every column is all in U from the start (§3.3, step 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import CheckpointError, ConfigError
from m7_gptq.hessian import inverse_factor, output_error
from m7_gptq.packing import SUPPORTED_BITS, max_int


@dataclass(frozen=True)
class QuantSpec:
    """How weights become integers.

    Attributes:
        bits: 4 or 8.
        group_size: Input channels that share a scale and a zero point; −1 is all of them.
        sym: Zero point fixed at the middle (8 or 128); else fitted to each group.
        desc_act: Round columns in descending order of their activations' size (act-order), so that
            the important ones still have many free columns to make up for them.
        damp: Added to H's diagonal, as a share of its mean. The paper takes 1 %, GPTQModel 5 %: the
            fewer the calibration tokens, the less of H's small directions is to be believed.
        block_size: Columns between two updates of the whole rest (the paper takes 128).
    """

    bits: int = 4
    group_size: int = 128
    sym: bool = True
    desc_act: bool = False
    damp: float = 0.05
    block_size: int = 128

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: A value is outside its range.
        """
        if self.bits not in SUPPORTED_BITS:
            raise ConfigError(f"bits must be 4 or 8, got {self.bits!r}")
        if self.group_size != -1 and self.group_size < 1:
            raise ConfigError(f"group_size must be −1 or at least 1, got {self.group_size!r}")
        if not 0.0 < self.damp < 1.0:
            raise ConfigError(f"damp must be in (0, 1), got {self.damp!r}")
        if self.block_size < 1:
            raise ConfigError(f"block_size must be at least 1, got {self.block_size!r}")

    def group(self, in_features: int) -> int:
        """Channels in a whole group of a layer with ``in_features`` inputs."""
        return in_features if self.group_size == -1 else min(self.group_size, in_features)


@dataclass(frozen=True)
class QuantizedWeight:
    """A quantised matrix: ``Ŵ[o, i] = scales[o, g] · (ints[o, i] − zeros[o, g])``, g = g_idx[i].

    Attributes:
        ints: ``[out, in]`` uint8.
        scales: ``[out, groups]`` float16, as they are stored.
        zeros: ``[out, groups]`` uint8, true zero points.
        g_idx: ``[in]`` int32, group of each input channel.
        error: ``[out]`` float64, each row's ``(w − ŵ) · H · (w − ŵ)ᵀ``: its mean squared output
            error per token.
    """

    ints: Tensor
    scales: Tensor
    zeros: Tensor
    g_idx: Tensor
    error: Tensor

    def dequantised(self) -> Tensor:
        """Ŵ, ``[out, in]`` float32. Exact: an 11-bit scale times a 9-bit difference fits."""
        groups = self.g_idx.long()
        difference = self.ints.float() - self.zeros.float()[:, groups]
        return difference * self.scales.float()[:, groups]

    def split(self, sizes: tuple[int, ...]) -> list[QuantizedWeight]:
        """Cut the rows into the layers that were quantised together."""
        parts = zip(
            *(
                torch.split(each, list(sizes))
                for each in (self.ints, self.scales, self.zeros, self.error)
            ),
            strict=True,
        )
        return [QuantizedWeight(i, s, z, self.g_idx, e) for i, s, z, e in parts]


def gptq(weight: Tensor, hessian: Tensor, spec: QuantSpec) -> QuantizedWeight:
    """Quantise one matrix, or several with the same input stacked row by row.

    Columns are worked through in blocks (§3.3, step 2): inside a block each error is spread over
    the block's own columns at once, over the columns behind it only when the block is done, as one
    matrix product. The result does not depend on the block size, only the speed does.

    The loop runs in the weight's dtype, float32 or float64: a column's update has few terms, and
    float32 moves a weight by 1e-7 of itself, which only decides ties.

    Args:
        weight: ``[out, in]`` float32 or float64.
        hessian: ``[in, in]`` float64, from :meth:`m7_gptq.hessian.Hessian.matrix`.
        spec: Bits, groups, order, damping.

    Returns:
        The integers and their grids; deterministic.

    Raises:
        CheckpointError: A weight or an activation is not finite, or beyond float16 scales.
    """
    w, order = weight.clone(), _order(hessian, spec)
    w, h = w[:, order], hessian[order][:, order]
    upper = inverse_factor(h, spec.damp).to(w.dtype)
    rows, columns = w.shape
    group = spec.group(columns)
    ints = torch.empty(rows, columns, dtype=torch.uint8, device=w.device)
    grids: list[tuple[Tensor, Tensor]] = []
    for start, stop in _blocks(columns, group, spec.block_size):
        block, factor = w[:, start:stop], upper[start:stop, start:stop]
        errors = torch.empty_like(block)
        for j in range(stop - start):
            if (start + j) % group == 0:  # the grid fits the weights as corrected up to here
                grids.append(choose_grid(w[:, start + j : start + j + group], spec))
            scale, zero = (part.to(w.dtype) for part in grids[-1])
            q = quantise(block[:, j], scale, zero, spec.bits)
            ints[:, start + j] = q.to(torch.uint8)
            error = (block[:, j] - (q - zero) * scale) / factor[j, j]
            block[:, j:] -= torch.outer(error, factor[j, j:])
            errors[:, j] = error
        w[:, stop:] -= errors @ upper[start:stop, stop:]
    back = torch.argsort(order)
    g_idx = (torch.arange(columns, device=w.device) // group)[back]
    return _result(weight, hessian, ints[:, back], *_stacked(grids), g_idx)


def round_to_nearest(weight: Tensor, hessian: Tensor, spec: QuantSpec) -> QuantizedWeight:
    """The baseline: each weight to the nearest point of its group's grid, whatever the others do.

    Args:
        weight: ``[out, in]`` float32 or float64.
        hessian: ``[in, in]`` float64; only measures the error, changes no integer.
        spec: Bits and groups. The order has no effect: without updates no column waits for another.

    Raises:
        CheckpointError: A weight is not finite, or beyond float16 scales.
    """
    columns = weight.shape[1]
    g_idx = torch.arange(columns, device=weight.device) // spec.group(columns)
    return _result(weight, hessian, *nearest(weight, spec), g_idx)


def nearest(weight: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor, Tensor]:
    """Each weight's nearest integer on its group's grid.

    Args:
        weight: ``[out, in]`` float32 or float64.
        spec: Bits and groups.

    Returns:
        ``ints [out, in]`` uint8, ``scales [out, groups]`` float16 and ``zeros [out, groups]``
        uint8.

    Raises:
        CheckpointError: A weight is not finite, or beyond float16 scales.
    """
    ints, grids = [], []
    for part in torch.split(weight, spec.group(weight.shape[1]), dim=1):
        grids.append(choose_grid(part, spec))
        scale, zero = (each.to(weight.dtype)[:, None] for each in grids[-1])
        ints.append(quantise(part, scale, zero, spec.bits).to(torch.uint8))
    return torch.cat(ints, dim=1), *_stacked(grids)


def choose_grid(weights: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """Scale and zero point of one group in each row, from its smallest and largest weight.

    ::

        symmetric    scale = 2·max|w| / 15       zero = 8                     (4 bits)
        asymmetric   scale = (max − min) / 15    zero = round(−min / scale)   (range includes 0)

    The scale is rounded to float16 before it is used, so that the updates of GPTQ make up for the
    rounding of the stored scale too.

    Args:
        weights: ``[out, group]``.
        spec: Bits and symmetry.

    Returns:
        Scales ``[out]`` float16 and zeros ``[out]`` uint8.

    Raises:
        CheckpointError: A weight is not finite, or a scale exceeds float16.
    """
    top = max_int(spec.bits)
    low = weights.amin(dim=1).clamp(max=0)
    high = weights.amax(dim=1).clamp(min=0)
    if spec.sym:
        high = torch.maximum(high, -low)
        low = -high
    scale = (high - low) / top
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)  # a group of zeros
    tiny = torch.finfo(torch.float16).smallest_normal
    stored = scale.clamp(min=tiny).half()
    if not bool(torch.isfinite(stored).all()):
        raise CheckpointError(
            f"a weight is not finite, or too large for float16 scales of {spec.bits} bits "
            f"(largest {float(weights.abs().max())})"
        )
    if spec.sym:
        zero = torch.full_like(stored, (top + 1) // 2)
    else:
        zero = torch.round(-low / stored.to(low.dtype)).clamp(0, top)
    return stored, zero.to(torch.uint8)


def quantise(weights: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """``clamp(round(w / scale) + zero)``, kept in the weights' float dtype; halves go to even."""
    return torch.clamp(torch.round(weights / scale) + zero, 0, max_int(bits))


def _order(hessian: Tensor, spec: QuantSpec) -> Tensor:
    """Columns in the order in which they are rounded; equal diagonals keep their order."""
    if not spec.desc_act:
        return torch.arange(hessian.shape[0], device=hessian.device)
    return torch.argsort(hessian.diagonal(), descending=True, stable=True)


def _blocks(columns: int, group: int, block_size: int) -> list[tuple[int, int]]:
    """Cut the columns into blocks that no group starts and outlives.

    A group's grid is chosen when its first column is reached, from columns that must carry every
    correction so far. Small groups: a block holds whole ones. Large groups: blocks end with them.
    """
    if group <= block_size:
        step = block_size // group * group
        return [(i, min(i + step, columns)) for i in range(0, columns, step)]
    return [
        (i, min(i + block_size, first + group, columns))
        for first in range(0, columns, group)
        for i in range(first, min(first + group, columns), block_size)
    ]


def _stacked(grids: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Scales and zeros ``[out, groups]`` from those of each group."""
    scales = torch.stack([scale for scale, _ in grids], dim=1)
    return scales, torch.stack([zero for _, zero in grids], dim=1)


def _result(
    weight: Tensor, hessian: Tensor, ints: Tensor, scales: Tensor, zeros: Tensor, g_idx: Tensor
) -> QuantizedWeight:
    """The result with its error measured."""
    made = QuantizedWeight(ints, scales, zeros, g_idx.int(), torch.empty(0))
    error = output_error(weight, made.dequantised(), hessian)
    return QuantizedWeight(ints, scales, zeros, g_idx.int(), error)
