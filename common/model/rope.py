"""The table of cosines and sines, one row per position, for every rope scaling we honour."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from common.rope_config import RopeConfig


def rope_table(
    rope: RopeConfig, head_dim: int, max_positions: int, device: torch.device | str = "cpu"
) -> Tensor:
    """One row per position, laid out for :func:`common.model.ops.apply_rope`.

    ::

        | cos(p·f₀) … cos(p·f_last) | the same again | −sin(p·f₀) … | sin(p·f₀) … |
        |         head_dim / 2      |                |              |             |

    Computed once: 40,960 positions of Qwen3-0.6B take 40 MiB and save 64 cosines and sines per
    token and layer.

    Args:
        rope: Frequencies and scaling.
        head_dim: Width of one head (even).
        max_positions: Rows of the table.
        device: Where the table lives.

    Returns:
        ``[max_positions, 2 · head_dim]`` float32.
    """
    frequencies, scale = inverse_frequencies(rope, head_dim)
    positions = torch.arange(max_positions, dtype=torch.float32)
    angles = torch.outer(positions, frequencies)
    cos, sin = angles.cos() * scale, angles.sin() * scale
    return torch.cat((cos, cos, -sin, sin), dim=-1).to(device)


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> tuple[Tensor, float]:
    """Angle per position step of each of the ``head_dim / 2`` pairs, and the factor on cos/sin.

    Unscaled, pair i turns by ``theta^(−2i / head_dim)``: the first pair by one radian per token,
    the last of Qwen3-0.6B by about 1.2e-6. All three scalings stretch the slow pairs, which have
    never turned far in training, and leave the fast ones, which encode local order.

    Returns:
        ``([head_dim / 2] float32, factor)``.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / (rope.theta**exponents)
    if rope.rope_type == "linear":
        return frequencies / rope.factor, 1.0
    if rope.rope_type == "llama3":
        return _llama3(frequencies, rope), 1.0
    if rope.rope_type == "yarn":
        factor = rope.attention_factor
        if factor is None:
            factor = 0.1 * math.log(rope.factor) + 1.0
        return _yarn(frequencies, rope, head_dim), factor
    return frequencies, 1.0


def _llama3(frequencies: Tensor, rope: RopeConfig) -> Tensor:
    """Llama 3.1's rule: by wavelength, keep the short, stretch the long, blend between."""
    wavelength = 2 * math.pi / frequencies
    longest = rope.original_max_positions / rope.low_freq_factor
    shortest = rope.original_max_positions / rope.high_freq_factor
    smooth = (rope.original_max_positions / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (1 - smooth) * frequencies / rope.factor + smooth * frequencies
    scaled = torch.where(wavelength > longest, frequencies / rope.factor, blended)
    return torch.where(wavelength < shortest, frequencies, scaled)


def _yarn(frequencies: Tensor, rope: RopeConfig, head_dim: int) -> Tensor:
    """YaRN (Peng et al. 2023, §3.2): a ramp over dimensions, by rotations within the context."""

    def dimension(rotations: float) -> float:
        """The (fractional) pair that turns ``rotations`` times within the original context."""
        turns = rope.original_max_positions / (rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    span = max(high - low, 0.001)
    pairs = torch.arange(head_dim // 2, dtype=torch.float32)
    keep = 1.0 - torch.clamp((pairs - low) / span, 0.0, 1.0)
    return frequencies / rope.factor * (1 - keep) + frequencies * keep
