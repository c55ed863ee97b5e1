"""The FlashAttention-2 library (Dao 2023) as a backend: the reference for speed on a GPU.

Its paged kernels take KV blocks of a multiple of 256 tokens only, so a sequence wastes up to 255
places and prefix hits (M6) come in steps of 256. The package is optional; see the setup page.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from m4_flash.backends.base import AttentionBackend, AttentionMetadata, AttentionShape

PAGE = 256


class FlashAttnBackend(AttentionBackend):
    """``flash_attn_with_kvcache`` for steps that only decode, varlen with block tables else."""

    name = "flash_attn"
    capturable = True
    default_block_size = PAGE

    @classmethod
    def refusal(cls, shape: AttentionShape) -> str | None:
        """A GPU, half precision, known head sizes, whole pages, and the package."""
        if shape.device.type != "cuda":
            return f"FlashAttention-2 needs a CUDA device, got {shape.device}"
        return _refusal_on_gpu(shape)

    def forward(  # gpu-only: m4_flash/tests/test_gpu.py::test_backends_agree
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, metadata: AttentionMetadata
    ) -> Tensor:
        """Both kernels read the blocks in place."""
        k_cache, v_cache = self.layer_cache(layer)
        if metadata.max_query_len == 1:
            return decode(q, k_cache, v_cache, metadata, self.scale)
        return varlen(q, k_cache, v_cache, metadata, self.scale)


def _refusal_on_gpu(shape: AttentionShape) -> str | None:
    """Why a GPU does not help."""
    if shape.dtype not in (torch.bfloat16, torch.float16):
        return f"FlashAttention-2 computes in bfloat16 or float16, got {shape.dtype}"
    if shape.head_dim > 256 or shape.head_dim % 8:
        return f"head_dim must be a multiple of 8 up to 256, got {shape.head_dim}"
    if shape.block_size is not None and shape.block_size % PAGE:
        return f"the block size must be a multiple of {PAGE}, got {shape.block_size}"
    if importlib.util.find_spec("flash_attn") is None:
        return "the package flash-attn is not installed"
    return None


def decode(  # gpu-only: m4_flash/tests/test_gpu.py::test_backends_agree
    q: Tensor, k_cache: Tensor, v_cache: Tensor, metadata: AttentionMetadata, scale: float
) -> Tensor:
    """One query per sequence; the library splits long contexts by itself."""
    from flash_attn import flash_attn_with_kvcache

    out: Tensor = flash_attn_with_kvcache(
        q.unsqueeze(1),
        k_cache,
        v_cache,
        cache_seqlens=metadata.seq_lens,
        block_table=metadata.block_tables,
        softmax_scale=scale,
        causal=True,
    )
    return out.squeeze(1)


def varlen(  # gpu-only: m4_flash/tests/test_gpu.py::test_backends_agree
    q: Tensor, k_cache: Tensor, v_cache: Tensor, metadata: AttentionMetadata, scale: float
) -> Tensor:
    """Slices of any length, one after another."""
    from flash_attn import flash_attn_varlen_func

    cu_seqlens_k = torch.zeros_like(metadata.cu_seqlens_q)
    torch.cumsum(metadata.seq_lens, 0, dtype=torch.int32, out=cu_seqlens_k[1:])
    out: Tensor = flash_attn_varlen_func(
        q,
        k_cache,
        v_cache,
        metadata.cu_seqlens_q,
        cu_seqlens_k,
        metadata.max_query_len,
        metadata.max_seq_len,
        softmax_scale=scale,
        causal=True,
        block_table=metadata.block_tables,
    )
    return out
