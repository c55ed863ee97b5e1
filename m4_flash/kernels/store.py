"""K and V of one step into their slots of the paged cache, in one launch.

PyTorch needs four (a mask, two gathers, two scatters, and a wait to learn how many tokens are
kept). Here a padding token's program reads −1 and ends, so nothing depends on values and the
launch can be captured in a graph. vLLM's operation of this kind is ``reshape_and_cache_flash``.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from common.model.interfaces import KVSink


@triton.jit
def slot_offset(slot, BLOCK_SIZE: tl.constexpr, stride_block, stride_place):
    """Offset of a slot's first head in the cache; ``slot`` is int64, and so is the result."""
    return (slot // BLOCK_SIZE) * stride_block + (slot % BLOCK_SIZE) * stride_place


@triton.jit
def _store_kernel(
    k_ptr, v_ptr, k_cache_ptr, v_cache_ptr, slot_ptr,
    k_stride_token, k_stride_head, v_stride_token, v_stride_head,
    cache_stride_block, cache_stride_place, cache_stride_head,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    HEADS_P2: tl.constexpr, HEAD_DIM_P2: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_ptr + token)
    if slot >= 0:
        head = tl.arange(0, HEADS_P2)[:, None]
        dim = tl.arange(0, HEAD_DIM_P2)[None, :]
        mask = (head < HEADS) & (dim < HEAD_DIM)
        k = tl.load(k_ptr + token * k_stride_token + head * k_stride_head + dim, mask=mask)
        v = tl.load(v_ptr + token * v_stride_token + head * v_stride_head + dim, mask=mask)
        place = slot_offset(slot, BLOCK_SIZE, cache_stride_block, cache_stride_place)
        place += head * cache_stride_head + dim
        tl.store(k_cache_ptr + place, k.to(k_cache_ptr.dtype.element_ty), mask=mask)
        tl.store(v_cache_ptr + place, v.to(v_cache_ptr.dtype.element_ty), mask=mask)


def store_kv(k: Tensor, v: Tensor, sink: KVSink) -> None:
    """Write each token's K and V to its slot; reference: :func:`common.model.ops.store_kv`.

    Args:
        k: ``[num_tokens, num_kv_heads, head_dim]``, head_dim contiguous; a view of a merged
            projection will do.
        v: Same shape as ``k``; strides of its own.
        sink: Cache and slots. A token with slot −1 is not stored. The caches share their strides.
    """
    num_tokens, num_heads, head_dim = k.shape
    check_sink(sink, num_tokens)
    assert k.shape == v.shape
    assert k.stride(-1) == v.stride(-1) == 1
    cache = sink.k_cache
    heads, dims = triton.next_power_of_2(num_heads), triton.next_power_of_2(head_dim)
    _store_kernel[(num_tokens,)](
        k, v, cache, sink.v_cache, sink.slot_mapping,
        k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        cache.stride(0), cache.stride(1), cache.stride(2),
        HEADS=num_heads, HEAD_DIM=head_dim, BLOCK_SIZE=cache.shape[1],
        HEADS_P2=heads, HEAD_DIM_P2=dims,
        num_warps=min(max(heads * dims // 256, 1), 8),  # 8 elements, or 16 bytes, per thread
    )  # fmt: skip


def check_sink(sink: KVSink, num_tokens: int) -> None:
    """Assert what the kernels that fill a sink rely on."""
    assert sink.slot_mapping.shape == (num_tokens,), (sink.slot_mapping.shape, num_tokens)
    assert sink.k_cache.stride() == sink.v_cache.stride()
    assert sink.k_cache.stride(-1) == sink.slot_mapping.stride(0) == 1
