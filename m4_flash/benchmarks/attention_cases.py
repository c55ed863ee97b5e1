"""Inputs of the attention benchmark, and every implementation that takes them.

An implementation prepares a batch once (pages, views, lengths) and gives a call that attends. All
of them see the same queries, keys and values, so their outputs can be compared before they are
timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from m1_basic.attention import naive_attention
from m4_flash.backends.base import AttentionMetadata
from m4_flash.backends.flash_attn import PAGE, decode, varlen

HEADS, KV_HEADS, HEAD_DIM = 16, 8, 128
"""Attention of Qwen3-0.6B."""
SCALE = HEAD_DIM**-0.5
SMALL_PAGE = 16

Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Batch:
    """Sequences that attend: the last tokens of each are its queries.

    Attributes:
        query_lens: Queries of each sequence.
        context_lens: Keys of each sequence.
        q: ``[sum of query_lens, HEADS, HEAD_DIM]``.
        k: ``[sum of context_lens, KV_HEADS, HEAD_DIM]``.
        v: Same shape as ``k``.
    """

    query_lens: tuple[int, ...]
    context_lens: tuple[int, ...]
    q: Tensor
    k: Tensor
    v: Tensor

    def lens(self) -> Tensor:
        """``[num_seqs]`` int32: keys of each sequence, on the device."""
        return torch.tensor(self.context_lens, dtype=torch.int32, device=self.q.device)

    def starts(self) -> Tensor:
        """``[num_seqs + 1]`` int32: first query of each sequence, on the device."""
        counts = torch.tensor((0, *self.query_lens), device=self.q.device)
        return counts.cumsum(0).int()


@dataclass(frozen=True)
class Pages:
    """The keys and values of a batch in scattered blocks.

    Attributes:
        k_cache: ``[num_blocks, block_size, KV_HEADS, HEAD_DIM]``.
        v_cache: Same shape as ``k_cache``.
        block_tables: ``[num_seqs, max_blocks]`` int32.
    """

    k_cache: Tensor
    v_cache: Tensor
    block_tables: Tensor


@dataclass(frozen=True)
class Variant:
    """One implementation over one layout.

    Attributes:
        backend: Whose kernel it is.
        layout: ``contiguous`` or ``paged``.
        block_size: Tokens per block, or None.
        prepare: From a batch to a call that returns ``[num_queries, HEADS, HEAD_DIM]``.
    """

    backend: str
    layout: str
    block_size: int | None
    prepare: Callable[[Batch], Call]

    @property
    def name(self) -> str:
        """The three in a few words."""
        return f"{self.backend} {self.layout} {self.block_size or ''}".rstrip()


def make_batch(
    query_lens: tuple[int, ...],
    context_lens: tuple[int, ...],
    device: str,
    dtype: torch.dtype,
    seed: int = 0,
) -> Batch:
    """Normally distributed queries, keys and values."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(tokens: int, heads: int) -> Tensor:
        shape = (tokens, heads, HEAD_DIM)
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    queries, keys = sum(query_lens), sum(context_lens)
    tensors = (normal(queries, HEADS), normal(keys, KV_HEADS), normal(keys, KV_HEADS))
    return Batch(query_lens, context_lens, *tensors)


def make_pages(batch: Batch, block_size: int) -> Pages:
    """Copy keys and values into blocks in random order; unused places hold zeros."""
    device = batch.k.device
    counts = [-(-length // block_size) for length in batch.context_lens]
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(0)).to(device)
    tables = torch.zeros(len(counts), max(counts), dtype=torch.int32, device=device)
    shape = (sum(counts), block_size, KV_HEADS, HEAD_DIM)
    k_cache, v_cache = (torch.zeros(shape, dtype=batch.k.dtype, device=device) for _ in "kv")
    block, token = 0, 0
    for row, (count, length) in enumerate(zip(counts, batch.context_lens, strict=True)):
        own = order[block : block + count]
        tables[row, :count] = own.int()
        places = (own[:, None] * block_size + torch.arange(block_size, device=device)).flatten()
        for cache, flat in ((k_cache, batch.k), (v_cache, batch.v)):
            cache.flatten(0, 1)[places[:length]] = flat[token : token + length]
        block, token = block + count, token + length
    return Pages(k_cache, v_cache, tables)


def prefill_variants(backends: tuple[str, ...]) -> list[Variant]:
    """What computes a prompt, the naive reference first."""
    known = [
        Variant("naive", "contiguous", None, _naive),
        Variant("sdpa", "contiguous", None, _sdpa),
        Variant("triton", "contiguous", None, _triton_prompt),
        Variant("triton", "paged", SMALL_PAGE, partial(_triton_prefill, block_size=SMALL_PAGE)),
        Variant("flash_attn", "contiguous", None, _flash_attn_prompt),
        Variant("flash_attn", "paged", PAGE, _flash_attn_paged),
    ]
    return [variant for variant in known if variant.backend in backends]


def decode_variants(backends: tuple[str, ...]) -> list[Variant]:
    """What computes one query per sequence over blocks, M3's kernel first."""
    known = [
        Variant("m3_paged", "paged", SMALL_PAGE, _m3_decode),
        Variant("triton", "paged", SMALL_PAGE, partial(_triton_decode, block_size=SMALL_PAGE)),
        Variant("triton", "paged", PAGE, partial(_triton_decode, block_size=PAGE)),
        Variant("flash_attn", "paged", PAGE, _flash_attn_decode),
    ]
    return [variant for variant in known if variant.backend in ("m3_paged", *backends)]


def _naive(batch: Batch) -> Call:
    """M1's attention, one sequence after another."""
    keys, values = (torch.split(x, list(batch.context_lens)) for x in (batch.k, batch.v))
    parts = list(zip(torch.split(batch.q, list(batch.query_lens)), keys, values, strict=True))

    def call() -> Tensor:
        outs = [naive_attention(q, k, v, SCALE) for q, k, v in parts]
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    return call


def _sdpa(batch: Batch) -> Call:
    """PyTorch's fused attention over a rectangle: all sequences are equally long."""
    count, length = len(batch.query_lens), batch.query_lens[0]
    assert set(batch.query_lens) == {length}
    flat = (batch.q, batch.k, batch.v)
    q, k, v = (x.view(count, length, -1, HEAD_DIM).transpose(1, 2) for x in flat)

    def call() -> Tensor:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2).reshape(batch.q.shape)

    return call


def _triton_prompt(batch: Batch) -> Call:
    """Our prefill kernel without pages."""
    from m4_flash.kernels.prefill import flash_prefill_contiguous

    starts, out = batch.starts(), torch.empty_like(batch.q)

    def call() -> Tensor:
        flash_prefill_contiguous(batch.q, batch.k, batch.v, starts, SCALE, out)
        return out

    return call


def _triton_prefill(batch: Batch, block_size: int) -> Call:
    """Our prefill kernel over pages."""
    from m4_flash.kernels.prefill import flash_prefill

    pages, lens, starts = make_pages(batch, block_size), batch.lens(), batch.starts()
    out = torch.empty_like(batch.q)

    def call() -> Tensor:
        caches = (pages.k_cache, pages.v_cache)
        flash_prefill(batch.q, *caches, pages.block_tables, lens, starts, SCALE, out)
        return out

    return call


def _triton_decode(batch: Batch, block_size: int) -> Call:
    """Our split-KV kernel, with the splits that the engine's backend would choose."""
    from m4_flash.kernels.decode import flash_decode, num_splits

    pages, lens, out = make_pages(batch, block_size), batch.lens(), torch.empty_like(batch.q)
    splits = num_splits(len(lens), KV_HEADS, _num_sms(batch.q.device))

    def call() -> Tensor:
        caches = (pages.k_cache, pages.v_cache)
        flash_decode(
            batch.q, *caches, pages.block_tables, lens, None, SCALE, out, splits=splits
        )  # fmt: skip
        return out

    return call


def _num_sms(device: torch.device) -> int:
    gpu = device.type == "cuda"
    if gpu:  # gpu-only: m4_flash/tests/test_bench_attention.py::test_attention_on_a_gpu
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 1


def _m3_decode(batch: Batch) -> Call:
    """M3's kernel: one program per sequence and query head."""
    from m3_paged.kernels import paged_decode

    pages, lens, out = make_pages(batch, SMALL_PAGE), batch.lens(), torch.empty_like(batch.q)

    def call() -> Tensor:
        paged_decode(
            batch.q, pages.k_cache, pages.v_cache, pages.block_tables, lens, SCALE, out
        )  # fmt: skip
        return out

    return call


def _metadata(  # gpu-only: m4_flash/tests/test_bench_attention.py::test_attention_on_a_gpu
    batch: Batch, pages: Pages
) -> AttentionMetadata:
    return AttentionMetadata(
        slot_mapping=torch.full((len(batch.q),), -1, device=batch.q.device),
        cu_seqlens_q=batch.starts(),
        seq_lens=batch.lens(),
        block_tables=pages.block_tables,
        max_query_len=max(batch.query_lens),
        max_seq_len=max(batch.context_lens),
        host=None,
    )


def _flash_attn_prompt(  # gpu-only: m4_flash/tests/test_bench_attention.py::test_attention_on_a_gpu
    batch: Batch,
) -> Call:
    """FlashAttention-2 without pages."""
    from flash_attn import flash_attn_varlen_func

    starts, longest = batch.starts(), max(batch.query_lens)

    def call() -> Tensor:
        out: Tensor = flash_attn_varlen_func(
            batch.q, batch.k, batch.v, starts, starts, longest, longest,
            softmax_scale=SCALE, causal=True,
        )  # fmt: skip
        return out

    return call


def _flash_attn_paged(  # gpu-only: m4_flash/tests/test_bench_attention.py::test_attention_on_a_gpu
    batch: Batch,
) -> Call:
    """FlashAttention-2 over pages, as our backend calls it."""
    pages = make_pages(batch, PAGE)
    metadata = _metadata(batch, pages)
    return lambda: varlen(batch.q, pages.k_cache, pages.v_cache, metadata, SCALE)


def _flash_attn_decode(  # gpu-only: m4_flash/tests/test_bench_attention.py::test_attention_on_a_gpu
    batch: Batch,
) -> Call:
    """FlashAttention-2 with a cache, as our backend calls it."""
    pages = make_pages(batch, PAGE)
    metadata = _metadata(batch, pages)
    return lambda: decode(batch.q, pages.k_cache, pages.v_cache, metadata, SCALE)
