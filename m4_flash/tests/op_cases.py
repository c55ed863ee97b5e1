"""Inputs for the fused kernels, interpreted here and compiled on a GPU, with their references."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from common.model.interfaces import KVSink
from common.model.ops import TorchOps
from common.model.rope import rope_table
from common.rope_config import RopeConfig

EPS = 1e-6
NAN = float("nan")
T = TypeVar("T")


@dataclass(frozen=True)
class HeadsCase:
    """q, k and v as views of one merged projection, at positions of their own.

    Attributes:
        q: ``[..., num_heads, head_dim]``.
        k: ``[..., num_kv_heads, head_dim]``.
        v: Same shape as ``k``.
        q_weight: ``[head_dim]``, or None without QK-norm.
        k_weight: Likewise.
        cos_sin: ``[..., 2 · head_dim]`` float32.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    q_weight: Tensor | None
    k_weight: Tensor | None
    cos_sin: Tensor

    def expected(self) -> tuple[Tensor, Tensor]:
        """The reference, from the same rounded inputs, all in float32 on the CPU."""

        def wide(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.cpu().float()

        q, k, v = self.q.cpu().float(), self.k.cpu().float(), self.v.cpu().float()
        weights = wide(self.q_weight), wide(self.k_weight)
        return TorchOps().qk_norm_rope(q, k, v, *weights, EPS, self.cos_sin.cpu(), None)


def heads_case(
    lead: tuple[int, ...],
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    *,
    norm: bool = True,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> HeadsCase:
    """Random heads; positions up to 4,096."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim]
    merged = torch.randn(*lead, sum(sizes), generator=generator).to(dtype).to(device)
    parts = merged.split_with_sizes(sizes, dim=-1)
    q, k, v = (part.view(*lead, part.shape[-1] // head_dim, head_dim) for part in parts)
    q_weight, k_weight = (
        (1 + 0.2 * torch.randn(head_dim, generator=generator)).to(dtype).to(device)
        for _ in range(2)
    )
    positions = torch.randint(4096, lead, generator=generator)
    table = rope_table(RopeConfig(theta=1e6), head_dim, 4096)
    cos_sin = table[positions].to(device)
    if not norm:
        return HeadsCase(q, k, v, None, None, cos_sin)
    return HeadsCase(q, k, v, q_weight, k_weight, cos_sin)


def new_sink(
    slots: Sequence[int],
    num_kv_heads: int,
    head_dim: int,
    *,
    block_size: int = 4,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> KVSink:
    """The second layer of a pool that is NaN throughout, laid out as the engine's."""
    num_blocks = max(slots, default=0) // block_size + 2
    shape = (2, 3, num_blocks, block_size, num_kv_heads, head_dim)
    pool = torch.full(shape, NAN, dtype=dtype, device=device)
    return KVSink(pool[0, 1], pool[1, 1], torch.tensor(slots, dtype=torch.int64, device=device))


def assert_stored(sink: KVSink, k: Tensor, v: Tensor) -> None:
    """Exactly k and v at the slots, and NaN everywhere else in the whole pool."""
    for cache, value in ((sink.k_cache, k), (sink.v_cache, v)):
        places = cache.flatten(0, 1)
        expected = torch.full_like(places, NAN)
        for token, slot in enumerate(sink.slot_mapping.tolist()):
            if slot >= 0:
                expected[slot] = value[token]
        torch.testing.assert_close(places, expected, rtol=0, atol=0, equal_nan=True)
    pool = sink.k_cache.new_empty(0).set_(sink.k_cache.untyped_storage())
    stored = int((sink.slot_mapping >= 0).sum())
    assert int((~pool.isnan()).sum()) == 2 * stored * k.shape[-2] * k.shape[-1]


def captured(step: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
    """Warm up on a side stream, as PyTorch asks, then record a graph of one step."""
    new_stream: Any = torch.cuda.Stream  # its constructor carries no annotations
    side = new_stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()
    return graph, result
