"""A first Triton kernel: decode attention that reads KV blocks where they lie.

The shape of vLLM's 2023 PagedAttention kernel (Kwon et al. 2023, §4.3): one program per sequence
and query head walks the sequence's block table. It is simple and leaves much on the table (each
KV head is read once per query head of its group; a lone long sequence keeps a handful of SMs
busy); M4 replaces it by split-KV flash decoding.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _paged_decode_kernel(
    q_ptr, k_ptr, v_ptr, table_ptr, len_ptr, out_ptr,
    scale,
    q_stride_seq, q_stride_head,
    kv_stride_block, kv_stride_place, kv_stride_head,
    table_stride,
    out_stride_seq, out_stride_head,
    GROUP: tl.constexpr, BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    seq, head = tl.program_id(0), tl.program_id(1)
    kv_head = head // GROUP
    dims = tl.arange(0, HEAD_DIM)
    places = tl.arange(0, BLOCK_SIZE)
    length = tl.load(len_ptr + seq)
    q = tl.load(q_ptr + seq * q_stride_seq + head * q_stride_head + dims).to(tl.float32) * scale

    # Online softmax: running maximum, running sum, running weighted values.
    m, total = -float("inf"), 0.0
    acc = tl.zeros([HEAD_DIM], dtype=tl.float32)
    # The bound is the sequence's own length, never the width of the table.
    for index in range(tl.cdiv(length, BLOCK_SIZE)):
        block = tl.load(table_ptr + seq * table_stride + index).to(tl.int64)
        base = block * kv_stride_block + kv_head * kv_stride_head
        offsets = base + places[:, None] * kv_stride_place + dims[None, :]
        known = index * BLOCK_SIZE + places < length
        k = tl.load(k_ptr + offsets, mask=known[:, None], other=0.0).to(tl.float32)
        scores = tl.where(known, tl.sum(q[None, :] * k, axis=1), -float("inf"))
        new_m = tl.maximum(m, tl.max(scores, axis=0))
        rescale = tl.exp(m - new_m)
        weights = tl.exp(scores - new_m)
        v = tl.load(v_ptr + offsets, mask=known[:, None], other=0.0).to(tl.float32)
        acc = acc * rescale + tl.sum(weights[:, None] * v, axis=0)
        total = total * rescale + tl.sum(weights, axis=0)
        m = new_m
    out = acc / total
    tl.store(
        out_ptr + seq * out_stride_seq + head * out_stride_head + dims,
        out.to(out_ptr.dtype.element_ty),
    )


def paged_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    scale: float,
    out: Tensor,
) -> None:
    """Attend with one query per sequence over its blocks; reference: ``gathered_decode``.

    Args:
        q: ``[num_seqs, num_heads, head_dim]``; head_dim a power of two, contiguous.
        k_cache: ``[num_blocks, block_size, num_kv_heads, head_dim]``; block_size a power of two.
        v_cache: Same shape and strides as ``k_cache``.
        block_tables: ``[num_seqs, max_blocks]`` int32.
        seq_lens: ``[num_seqs]`` int32, at least 1 each.
        scale: ``1 / sqrt(head_dim)``.
        out: ``[num_seqs, num_heads, head_dim]``, written.
    """
    num_seqs, num_heads, head_dim = q.shape
    block_size, num_kv_heads = k_cache.shape[1:3]
    for name, value in (("head_dim", head_dim), ("block_size", block_size)):
        assert value & (value - 1) == 0, f"{name} must be a power of two, got {value}"
    assert k_cache.stride() == v_cache.stride()
    assert q.stride(-1) == k_cache.stride(-1) == out.stride(-1) == block_tables.stride(-1) == 1
    _paged_decode_kernel[(num_seqs, num_heads)](
        q, k_cache, v_cache, block_tables, seq_lens, out,
        scale,
        q.stride(0), q.stride(1),
        k_cache.stride(0), k_cache.stride(1), k_cache.stride(2),
        block_tables.stride(0),
        out.stride(0), out.stride(1),
        GROUP=num_heads // num_kv_heads, BLOCK_SIZE=block_size, HEAD_DIM=head_dim,
        num_warps=4,
    )  # fmt: skip


def supports(head_dim: int, block_size: int, device: torch.device) -> bool:
    """Whether the kernel can run: powers of two, on a GPU."""
    powers = all(value & (value - 1) == 0 for value in (head_dim, block_size))
    return powers and device.type == "cuda"
