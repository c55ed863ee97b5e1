"""Our own kernels as a backend: flash prefill and split-KV flash decode over small blocks.

Both kernels find their sequences on the device, and each leaves the other's alone: a slice of one
token belongs to the decode kernel. So a mixed step is two launches with grids that depend on
shapes alone, which is what a CUDA graph needs.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from m3_paged.kv_cache import PagedKVCache
from m4_flash.backends.base import AttentionBackend, AttentionMetadata, AttentionShape
from m4_flash.devices import supports_pdl


class TritonBackend(AttentionBackend):
    """Any power-of-two block size from 16 on; float32, bfloat16 and float16."""

    name = "triton"
    capturable = True

    def __init__(self, cache: PagedKVCache, shape: AttentionShape, *, pdl: bool = True) -> None:
        """Look at how many multiprocessors there are to fill, and how to launch."""
        super().__init__(cache, shape, pdl=pdl and supports_pdl(shape.device))
        self.num_sms = 1
        gpu = shape.device.type == "cuda"
        if gpu:  # gpu-only: m4_flash/tests/test_gpu.py::test_backends_agree
            self.num_sms = torch.cuda.get_device_properties(shape.device).multi_processor_count

    @classmethod
    def refusal(cls, shape: AttentionShape) -> str | None:
        """A GPU (or Triton's interpreter) and powers of two."""
        if importlib.util.find_spec("triton") is None:
            return "the package triton is not installed"
        if shape.device.type != "cuda" and not _interpreted():
            return f"Triton kernels need a CUDA device, got {shape.device}"
        if shape.head_dim < 16 or not _is_power_of_two(shape.head_dim):
            return f"head_dim must be a power of two of at least 16, got {shape.head_dim}"
        if shape.block_size is not None and not _is_power_of_two(shape.block_size):
            return f"the block size must be a power of two, got {shape.block_size}"
        return None

    def forward(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, metadata: AttentionMetadata
    ) -> Tensor:
        """Decode kernel, prefill kernel, or both; a step of first chunks reads k and v directly."""
        from m4_flash.kernels.decode import flash_decode, num_splits
        from m4_flash.kernels.prefill import flash_prefill, flash_prefill_contiguous
        from m4_flash.kernels.slices import paged_launch

        k_cache, v_cache = self.layer_cache(layer)
        host, out = metadata.host, torch.empty_like(q)
        tables, lens, starts = metadata.block_tables, metadata.seq_lens, metadata.cu_seqlens_q
        if host is not None and host.query_lens == host.context_lens:
            flash_prefill_contiguous(q, k, v, starts, self.scale, out)
            return out
        mixed = metadata.max_query_len > 1
        if host is None or host.num_decodes:
            splits = num_splits(metadata.num_seqs, k_cache.shape[2], self.num_sms)
            flash_decode(
                q, k_cache, v_cache, tables, lens, starts if mixed else None, self.scale, out,
                splits=splits, pdl=self.pdl,
            )  # fmt: skip
        if mixed:
            (num_tokens, num_heads, head_dim), kv_heads = q.shape, k_cache.shape[2]
            config, splits = paged_launch(
                num_tokens, num_heads, kv_heads, self.num_sms, q.device, head_dim, q.dtype
            )
            flash_prefill(
                q, k_cache, v_cache, tables, lens, starts, self.scale, out,
                skip_single=True, splits=splits, config=config,
            )  # fmt: skip
        return out

    @classmethod
    def prompt_attention(cls, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The flash kernel without pages; ``[num_tokens, num_heads, head_dim]``."""
        from m4_flash.kernels.prefill import flash_prefill_contiguous

        out = torch.empty_like(q)
        whole = torch.tensor([0, len(q)], dtype=torch.int32, device=q.device)
        flash_prefill_contiguous(q, k, v, whole, q.shape[-1] ** -0.5, out)
        return out


def _is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def _interpreted() -> bool:
    """Whether kernels run on the CPU's interpreter, as in the tests."""
    import triton

    return bool(triton.knobs.runtime.interpret)
