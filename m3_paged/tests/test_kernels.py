"""The Triton decode kernel in Triton's interpreter: float32, small shapes, NaN wherever it can be.

``test_gpu.py`` runs the same cases compiled, in bfloat16 too.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from common.testing.conformance import build
from common.testing.fixtures import TinyModel
from m3_paged.paged_attention import PagedAttend, PagedMetadata, gathered_decode
from m3_paged.tests.kernel_cases import decode_case
from m3_paged.tests.test_paged_attention import Batch


@pytest.fixture(scope="module")
def kernels() -> Any:
    """The module of kernels, where Triton is installed and interprets."""
    if torch.cuda.is_available():
        pytest.skip("kernels are compiled here: test_gpu.py")
    pytest.importorskip("triton")
    from m3_paged import kernels

    return kernels


@pytest.mark.parametrize("block_size", [4, 16])
@pytest.mark.parametrize("head_dim", [32, 64])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_ragged_lengths_equal_the_gathered_reference(
    kernels: Any, group: int, head_dim: int, block_size: int
) -> None:
    """Lengths 1, k·bs − 1, k·bs and k·bs + 1 in one batch."""
    lengths = [1, 2 * block_size - 1, 2 * block_size, 2 * block_size + 1]
    kv_heads = 1 if group == 4 else 2
    case = decode_case(
        lengths, kv_heads=kv_heads, group=group, head_dim=head_dim, block_size=block_size
    )
    out = torch.full_like(case.q, float("nan"))
    args = (case.q, case.k_cache, case.v_cache, case.block_tables, case.seq_lens)
    kernels.paged_decode(*args, case.scale, out)
    torch.testing.assert_close(out, case.expected, rtol=1e-5, atol=1e-5)
    gathered = gathered_decode(*args, max(lengths), case.scale)
    torch.testing.assert_close(out, gathered, rtol=1e-5, atol=1e-5)


def test_large_scores_do_not_overflow(kernels: Any) -> None:
    """exp(500) is infinite in float32; the running maximum keeps it out."""
    case = decode_case([9], kv_heads=1, group=1, block_size=4)
    case.q *= 500.0
    out = torch.empty_like(case.q)
    args = (case.q, case.k_cache, case.v_cache, case.block_tables, case.seq_lens)
    kernels.paged_decode(*args, case.scale, out)
    torch.testing.assert_close(out, gathered_decode(*args, 9, case.scale), rtol=1e-4, atol=1e-4)


def test_strides_of_a_layer_inside_the_pool_and_of_a_slice_of_q(kernels: Any) -> None:
    """As the engine calls it: K and V are slices of one tensor, q and out the first rows."""
    batch = Batch([(6, 1), (2, 1), (0, 3)], size=4, kv_heads=2, group=2, seed=5)
    outs = []
    for use_kernel in (False, True):
        attend = PagedAttend(batch.cache, batch.metadata(), use_kernel=use_kernel)
        q = torch.cat(batch.q)
        wide = torch.cat((q, q), dim=1)[:, : q.shape[1]]  # rows further apart than they are long
        outs.append(attend(1, wide, batch.new(batch.k), batch.new(batch.v)))
    torch.testing.assert_close(outs[1], outs[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(outs[1], batch.expected(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"head_dim": 24}, "head_dim must be a power of two, got 24"),
        ({"block_size": 6}, "block_size must be a power of two, got 6"),
    ],
)
def test_other_shapes_are_refused(kernels: Any, shape: dict[str, int], message: str) -> None:
    case = decode_case([3], **shape)  # type: ignore[arg-type]
    args = (case.q, case.k_cache, case.v_cache, case.block_tables, case.seq_lens)
    with pytest.raises(AssertionError, match=message):
        kernels.paged_decode(*args, case.scale, torch.empty_like(case.q))


def test_where_it_can_run(kernels: Any) -> None:
    gpu, cpu = torch.device("cuda:0"), torch.device("cpu")
    assert kernels.supports(128, 16, gpu)
    assert not kernels.supports(128, 16, cpu)
    assert not kernels.supports(96, 16, gpu)
    assert not kernels.supports(128, 24, gpu)


def test_a_whole_model_decodes_through_the_kernel(kernels: Any, tiny: TinyModel) -> None:
    """One decode step of the tiny model, both ways, from the same cache."""
    engine = build("m3_paged", tiny, num_blocks=8, block_size=8)
    cache = engine.runner.cache
    cache.kv.normal_()
    metadata = PagedMetadata(
        slot_mapping=torch.tensor([5, 19]),
        block_tables=torch.tensor([[0, 0], [1, 2]], dtype=torch.int32),
        seq_lens=torch.tensor([6, 12], dtype=torch.int32),
        query_lens=(1, 1),
        context_lens=(6, 12),
        num_decodes=2,
    )
    hidden = []
    with torch.inference_mode():
        for use_kernel in (False, True):
            attend = PagedAttend(cache, metadata, use_kernel=use_kernel)
            hidden.append(engine.model(torch.tensor([7, 8]), torch.tensor([5, 11]), attend))
    torch.testing.assert_close(hidden[1], hidden[0], rtol=1e-4, atol=1e-4)
