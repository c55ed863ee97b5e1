"""Lists arrive as they were, in one piece."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from m4_flash.staging import Staging

INTEGERS = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5)
FLOATS = st.lists(st.floats(allow_nan=False), max_size=5)


@given(integers=st.lists(INTEGERS, min_size=1, max_size=4), floats=st.lists(FLOATS, max_size=2))
def test_everything_arrives_exactly(integers: list[list[int]], floats: list[list[float]]) -> None:
    sent = Staging(torch.device("cpu")).send(integers, floats)
    assert [part.tolist() for part in sent.integers] == integers
    assert [part.tolist() for part in sent.floats] == floats


def test_arrays_and_lists_may_be_mixed() -> None:
    sent = Staging(torch.device("cpu")).send(([1, 2], np.arange(3, 6), np.array([], np.int64)))
    assert [part.tolist() for part in sent.integers] == [[1, 2], [3, 4, 5], []]


def test_it_is_one_tensor_and_a_later_send_leaves_it_alone() -> None:
    staging = Staging(torch.device("cpu"))
    first = staging.send(([1, 2], [3]))
    staging.send(([7, 7], [7]))
    assert [part.tolist() for part in first.integers] == [[1, 2], [3]]
    assert (
        first.integers[0].untyped_storage().data_ptr()
        == first.integers[1].untyped_storage().data_ptr()
    )
