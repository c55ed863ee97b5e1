"""Rows of a packed matrix in one launch, interpreted, against the dense weight."""

from __future__ import annotations

import pytest
import torch

from m7_gptq.kernels.lookup import lookup
from m7_gptq.tests.kernel_cases import stored_layer


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, 48, 128, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_equals_the_dense_rows_bit_for_bit(bits: int, group_size: int, dtype: torch.dtype) -> None:
    """200 inputs: the last tile and the last group are ragged."""
    layer = stored_layer(200, 24, bits=bits, group_size=group_size)
    ids = torch.tensor([23, 0, 7, 7])
    out = lookup(ids, layer.packed(), dtype)
    assert torch.equal(out, layer.dense()[ids].to(dtype))


def test_nothing_to_look_up() -> None:
    packed = stored_layer(64, 8, bits=8).packed()
    assert lookup(torch.empty(0, dtype=torch.int64), packed, torch.float32).shape == (0, 64)


def test_not_with_act_order() -> None:
    packed = stored_layer(64, 8, order="act-order").packed()
    with pytest.raises(AssertionError, match="order"):
        lookup(torch.tensor([1]), packed, torch.float32)
