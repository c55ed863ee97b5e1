"""``head_bits=8``: the output matrix in 8 bits, rounded to nearest while the model is loaded.

GPTQ checkpoints keep ``lm_head`` dense, and a tied one cannot be stored otherwise: it is the
embedding, and no program looks for ``qweight`` there. But it is the largest matrix that a step
reads, more than half of a 4-bit Qwen3-0.6B. So it is rounded here, from whatever checkpoint, into
the same layer that the projections use::

    embedding [vocab, hidden]  ─▶  ints, scales  ─┬─▶  logits: all columns, by the fused product
                                                  └─▶  lookup: the tokens' columns, dequantised

Eight bits need no calibration: a weight is off by about 1/255 of its group's largest at most. The
dense matrix lives beside the rounded one while that is made, and is let go.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from common.errors import ConfigError
from common.model.linear import DenseLinear, TiedHead
from common.model.transformer import Transformer
from m7_gptq.checkpoint import LinearFormat
from m7_gptq.linear import GPTQLinear
from m7_gptq.packing import pack_rows, pack_zeros, per_word
from m7_gptq.quantizer import QuantSpec, nearest

BITS, GROUP = 8, 128
ROWS = 8192
"""Rows of the matrix that are rounded at a time: their float32 copies are the peak."""


class QuantizedEmbedding(nn.Module):
    """Looks rows up in a quantised output matrix, of which it is a second view."""

    def __init__(self, head: GPTQLinear) -> None:
        """Share the packed tensors of ``head``."""
        super().__init__()
        self.head = head

    def forward(self, token_ids: Tensor) -> Tensor:
        """``[...]`` ids to ``[..., hidden_size]``."""
        return self.head.rows(token_ids)


def round_head(model: Transformer, layer: Callable[..., GPTQLinear] = GPTQLinear) -> None:
    """Replace ``lm_head``, and with it a tied embedding, by 8 bits in groups of 128.

    An embedding of its own stays: a step reads a row of it per token, whatever its type.

    Args:
        model: With a dense output matrix; changed in place.
        layer: Makes the quantised layer.

    Raises:
        ConfigError: The matrix is quantised already, or its sides are no multiples of a word.
        CheckpointError: A weight is not finite.
    """
    old = model.lm_head
    if not isinstance(old, (DenseLinear, TiedHead)):
        raise ConfigError(
            "head_bits rounds a dense lm_head, and the checkpoint has a quantised one"
        )
    vocab, hidden = old.weight.shape
    if vocab % per_word(BITS) or hidden % per_word(BITS):
        raise ConfigError(
            f"head_bits needs a matrix of multiples of {per_word(BITS)}, lm_head is "
            f"{hidden} × {vocab}"
        )
    form, tensors = rounded(plain_weight(old), QuantSpec(bits=BITS, group_size=GROUP))
    head = layer(
        "lm_head", hidden, (vocab,), False, form, bias=False, dtype=model.dtype, device=model.device
    )
    for name, tensor in tensors.items():
        head.load_shard(name, 0, tensor)
    model.lm_head = head
    if isinstance(old, TiedHead):
        model.register_module("embed_tokens", QuantizedEmbedding(head))


def plain_weight(layer: DenseLinear | TiedHead) -> Tensor:
    """``[out, in]`` in rows, also where M4 has rearranged it for a CPU."""
    weight = layer.weight.detach()
    return weight.to_dense() if weight.is_mkldnn else weight


def rounded(
    weight: Tensor, spec: QuantSpec, *, has_bias: bool = False
) -> tuple[LinearFormat, dict[str, Tensor]]:
    """What a checkpoint would hold of a layer that is rounded to nearest, some rows at a time.

    Args:
        weight: ``[out, in]`` floats, both multiples of a word's values.
        spec: Bits and groups; ``desc_act`` means nothing here.
        has_bias: What the format says of a bias; none is among the tensors.

    Returns:
        The format, and ``qweight``, ``qzeros`` and ``scales`` on the weight's device.

    Raises:
        CheckpointError: A weight is not finite.
    """
    bits, parts = spec.bits, dict[str, list[Tensor]](qweight=[], qzeros=[], scales=[])
    for rows in torch.split(weight, ROWS):
        ints, scales, zeros = nearest(rows.float(), spec)
        parts["qweight"].append(pack_rows(ints.T, bits))
        parts["qzeros"].append(pack_zeros(zeros.T, bits, "gptq_v2"))
        parts["scales"].append(scales.T)
    form = LinearFormat(
        bits=bits,
        group_size=spec.group(weight.shape[1]),
        form="gptq_v2",
        scale_dtype=torch.float16,
        has_g_idx=False,
        has_bias=has_bias,
    )
    return form, {name: torch.cat(tensors, dim=1) for name, tensors in parts.items()}
