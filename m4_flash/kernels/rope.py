"""QK-norm, RoPE and the KV store in one launch.

Between the QKV projection and attention a layer normalises each head of q and k, rotates both, and
stores k and v. All of that reads the same few kilobytes per token, so one pass does it. The grid
is tokens by groups of at most :data:`HEADS` heads; Qwen3-0.6B's 16 query and 8 KV heads make three
programs per token::

    merged qkv row   | q0 … q7 | q8 … q15 | k0 … k7 | v0 … v7 |
                       part 0     part 1        part 2

vLLM's operation of this kind is ``fused_qk_norm_rope``, which leaves the store to another launch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from common.model.interfaces import KVSink
from m4_flash.kernels.launch import chain, launch_options
from m4_flash.kernels.store import check_sink, slot_offset

HEADS = 8


@triton.jit
def _norm_and_rotate(
    x_ptr, weight_ptr, offset, mask, half, eps, cos, sin,
    HALF: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Both halves of a tile of heads: normed over the head, then rotated, in float32."""
    x1 = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    x2 = tl.load(x_ptr + offset + HALF, mask=mask, other=0.0).to(tl.float32)
    if NORM:
        mean = tl.sum(x1 * x1 + x2 * x2, axis=1) / (2 * HALF)
        scale = (1.0 / tl.sqrt(mean + eps))[:, None]
        known = half < HALF
        x1 *= scale * tl.load(weight_ptr + half, mask=known, other=0.0).to(tl.float32)
        x2 *= scale * tl.load(weight_ptr + HALF + half, mask=known, other=0.0).to(tl.float32)
    return x1 * cos - x2 * sin, x2 * cos + x1 * sin


@triton.jit
def _qk_norm_rope_kernel(
    q_ptr, k_ptr, v_ptr, q_weight_ptr, k_weight_ptr, cos_sin_ptr,
    q_out_ptr, k_out_ptr, k_cache_ptr, v_cache_ptr, slot_ptr,
    eps,
    q_stride_token, q_stride_head, k_stride_token, k_stride_head,
    v_stride_token, v_stride_head, cos_sin_stride,
    cache_stride_block, cache_stride_place, cache_stride_head,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, NORM: tl.constexpr, STORE: tl.constexpr,
    HEADS: tl.constexpr, HALF_P2: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    half = tl.arange(0, HALF_P2)[None, :]
    chain(PDL)
    # A row of the table: cos twice, then the sines with minus and with plus.
    row = cos_sin_ptr + token * cos_sin_stride + half
    cos = tl.load(row, mask=half < HALF, other=0.0)
    sin = tl.load(row + 3 * HALF, mask=half < HALF, other=0.0)
    Q_PARTS: tl.constexpr = (Q_HEADS + HEADS - 1) // HEADS
    if part < Q_PARTS:
        head = part * HEADS + tl.arange(0, HEADS)[:, None]
        mask = (head < Q_HEADS) & (half < HALF)
        offset = token * q_stride_token + head * q_stride_head + half
        q1, q2 = _norm_and_rotate(
            q_ptr, q_weight_ptr, offset, mask, half, eps, cos, sin, HALF, NORM
        )  # fmt: skip
        q_out = q_out_ptr + (token * Q_HEADS + head) * (2 * HALF) + half
        tl.store(q_out, q1.to(q_out_ptr.dtype.element_ty), mask=mask)
        tl.store(q_out + HALF, q2.to(q_out_ptr.dtype.element_ty), mask=mask)
    else:
        head = (part - Q_PARTS) * HEADS + tl.arange(0, HEADS)[:, None]
        mask = (head < KV_HEADS) & (half < HALF)
        offset = token * k_stride_token + head * k_stride_head + half
        k1, k2 = _norm_and_rotate(
            k_ptr, k_weight_ptr, offset, mask, half, eps, cos, sin, HALF, NORM
        )  # fmt: skip
        k1 = k1.to(k_out_ptr.dtype.element_ty)
        k2 = k2.to(k_out_ptr.dtype.element_ty)
        k_out = k_out_ptr + (token * KV_HEADS + head) * (2 * HALF) + half
        tl.store(k_out, k1, mask=mask)
        tl.store(k_out + HALF, k2, mask=mask)
        if STORE:
            slot = tl.load(slot_ptr + token)
            if slot >= 0:
                v_row = v_ptr + token * v_stride_token + head * v_stride_head + half
                v1 = tl.load(v_row, mask=mask)
                v2 = tl.load(v_row + HALF, mask=mask)
                place = slot_offset(slot, BLOCK_SIZE, cache_stride_block, cache_stride_place)
                place += head * cache_stride_head + half
                k_place, v_place = k_cache_ptr + place, v_cache_ptr + place
                tl.store(k_place, k1.to(k_cache_ptr.dtype.element_ty), mask=mask)
                tl.store(k_place + HALF, k2.to(k_cache_ptr.dtype.element_ty), mask=mask)
                tl.store(v_place, v1.to(v_cache_ptr.dtype.element_ty), mask=mask)
                tl.store(v_place + HALF, v2.to(v_cache_ptr.dtype.element_ty), mask=mask)


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    cos_sin: Tensor,
    sink: KVSink | None,
    *,
    pdl: bool = False,
) -> tuple[Tensor, Tensor]:
    """Normalise each head of q and k, rotate both, and fill the sink where there is one.

    All in float32 with one rounding at the end; ``TorchOps.qk_norm_rope``, the reference, also
    rounds between norm and rotation. The returned k is always written and valid, also for padding
    tokens and beside a sink: it is 2 KiB per token of Qwen3-0.6B, and a backend may then attend to
    the fresh k instead of reading the cache.

    Args:
        q: ``[..., num_heads, head_dim]``; q, k and v may be strided views of one merged projection,
            with head_dim contiguous and even.
        k: ``[..., num_kv_heads, head_dim]``.
        v: ``[..., num_kv_heads, head_dim]``; read only where there is a sink.
        q_weight: ``[head_dim]``, or None (either of the two) for no norm.
        k_weight: ``[head_dim]``, or None.
        eps: Epsilon of the norm.
        cos_sin: ``[..., 2 · head_dim]`` float32 rows of :func:`common.model.rope.rope_table`, with
            q's leading shape.
        sink: Where to store k and v, or None. A token with slot −1 is not stored.
        pdl: Launch programmatically, see :mod:`m4_flash.kernels.launch`.

    Returns:
        The rotated ``(q, k)``, contiguous, in their own shapes.
    """
    num_heads, head_dim = q.shape[-2:]
    num_kv_heads = k.shape[-2]
    q_out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    k_out = torch.empty(k.shape, dtype=k.dtype, device=k.device)
    if q.dim() != 3:
        q, k, v = (x.reshape(-1, *x.shape[-2:]) for x in (q, k, v))
        cos_sin = cos_sin.reshape(-1, 2 * head_dim)
    num_tokens = q.shape[0]
    assert k.shape == v.shape, (k.shape, v.shape)
    assert k.shape[0] == num_tokens, (q.shape, k.shape)
    assert cos_sin.shape == (num_tokens, 2 * head_dim), (cos_sin.shape, q.shape)
    assert q.stride(-1) == k.stride(-1) == v.stride(-1) == cos_sin.stride(-1) == 1
    # Without a sink the kernel is compiled without the store; k stands in for what it never reads.
    k_cache = v_cache = slots = k
    strides, block_size = (0, 0, 0), 1
    if sink is not None:
        check_sink(sink, num_tokens)
        k_cache, v_cache, slots = sink.k_cache, sink.v_cache, sink.slot_mapping
        strides, block_size = k_cache.stride()[:3], k_cache.shape[1]
    norm = q_weight is not None and k_weight is not None
    heads = min(HEADS, triton.next_power_of_2(max(num_heads, num_kv_heads)))
    half = triton.next_power_of_2(head_dim // 2)
    parts = triton.cdiv(num_heads, heads) + triton.cdiv(num_kv_heads, heads)
    _qk_norm_rope_kernel[(num_tokens, parts)](
        q, k, v, q_weight if norm else q, k_weight if norm else k, cos_sin,
        q_out, k_out, k_cache, v_cache, slots,
        eps,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1),
        v.stride(0), v.stride(1), cos_sin.stride(0),
        *strides,
        Q_HEADS=num_heads, KV_HEADS=num_kv_heads, HALF=head_dim // 2,
        BLOCK_SIZE=block_size, NORM=norm, STORE=sink is not None,
        HEADS=heads, HALF_P2=half, PDL=pdl,
        num_warps=min(max(heads * half // 256, 1), 8),  # 8 elements, or 16 bytes, per thread
        **launch_options(pdl),
    )  # fmt: skip
    return q_out, k_out
