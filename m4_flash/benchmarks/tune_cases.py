"""The shapes that tile sizes are tuned on: random tensors, and each kernel's call on them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from m4_flash.kernels.tuning import DecodeConfig, PrefillConfig, decode_kind

NUM_HEADS, NUM_KV_HEADS, BLOCK_SIZE = 16, 8, 16

Config = TypeVar("Config", PrefillConfig, DecodeConfig)


@dataclass(frozen=True)
class Case(Generic[Config]):
    """One measured shape.

    Attributes:
        kind: Which entry of the table it counts for.
        label: Shape in words, ``8x2048``.
        launch: Runs the kernel with a configuration.
        out: What it writes.
        work: FLOPs of a prefill, bytes of a decode.
    """

    kind: str
    label: str
    launch: Callable[[Config], None]
    out: Tensor
    work: float


@dataclass(frozen=True)
class _Pool:
    """A cache full of random tokens, dealt to equal sequences in random order."""

    caches: tuple[Tensor, Tensor]
    tables: Tensor
    lens: Tensor


def _pool(batch: int, length: int, head_dim: int, dtype: torch.dtype, device: str) -> _Pool:
    blocks = -(-length // BLOCK_SIZE)
    shape = (batch * blocks, BLOCK_SIZE, NUM_KV_HEADS, head_dim)
    k, v = (torch.randn(shape, dtype=dtype, device=device) for _ in range(2))
    order = torch.randperm(batch * blocks, device=device).int()
    lens = torch.full((batch,), length, dtype=torch.int32, device=device)
    return _Pool((k, v), order.view(batch, blocks), lens)


def prefill_cases(
    shapes: Iterable[tuple[int, int]], head_dim: int, dtype: torch.dtype, device: str
) -> list[Case[PrefillConfig]]:
    """Whole prompts, over pages and contiguous.

    Args:
        shapes: ``(sequences, tokens of each)``.
        head_dim: Width of a head.
        dtype: Element type.
        device: Where to measure.
    """
    from m4_flash.kernels.prefill import flash_prefill, flash_prefill_contiguous

    cases = []
    for batch, length in shapes:
        pool = _pool(batch, length, head_dim, dtype, device)
        q = torch.randn(batch * length, NUM_HEADS, head_dim, dtype=dtype, device=device)
        k, v = (x.flatten(0, 1)[: batch * length] for x in pool.caches)
        starts = torch.arange(batch + 1, dtype=torch.int32, device=device) * length
        scale, out = head_dim**-0.5, torch.empty_like(q)
        flops = 2.0 * batch * length * (length + 1) * NUM_HEADS * head_dim

        def over_pages(
            config: PrefillConfig, q: Tensor = q, pool: _Pool = pool, starts: Tensor = starts,
            out: Tensor = out, scale: float = scale,
        ) -> None:  # fmt: skip
            caches = pool.caches
            flash_prefill(q, *caches, pool.tables, pool.lens, starts, scale, out, config=config)

        def whole(
            config: PrefillConfig, q: Tensor = q, k: Tensor = k, v: Tensor = v,
            starts: Tensor = starts, out: Tensor = out, scale: float = scale,
        ) -> None:  # fmt: skip
            flash_prefill_contiguous(q, k, v, starts, scale, out, config=config)

        label = f"{batch}x{length}"
        cases += [
            Case("prefill_paged", label, over_pages, out, flops),
            Case("prefill_contiguous", label, whole, out, flops),
        ]
    return cases


def few_cases(
    shapes: Iterable[tuple[int, int]],
    head_dim: int,
    dtype: torch.dtype,
    device: str,
    num_sms: int,
) -> Iterable[Case[PrefillConfig]]:
    """A chunk at the end of a long past, its keys in parts as an engine would cut them.

    Args:
        shapes: ``(tokens of the chunk, tokens of context)``.
        head_dim: Width of a head.
        dtype: Element type.
        device: Where to measure.
        num_sms: Streaming multiprocessors, for :func:`m4_flash.kernels.slices.num_parts`.
    """
    from m4_flash.kernels.prefill import flash_prefill
    from m4_flash.kernels.slices import num_parts, num_programs

    for new, length in shapes:
        pool = _pool(1, length, head_dim, dtype, device)
        q = torch.randn(new, NUM_HEADS, head_dim, dtype=dtype, device=device)
        starts, out = torch.tensor([0, new], dtype=torch.int32, device=device), torch.empty_like(q)
        flops = 2.0 * new * (2 * length - new + 1) * NUM_HEADS * head_dim

        def launch(
            config: PrefillConfig, q: Tensor = q, pool: _Pool = pool, starts: Tensor = starts,
            out: Tensor = out,
        ) -> None:  # fmt: skip
            programs = num_programs(len(q), NUM_HEADS, NUM_KV_HEADS, config.block_m)
            flash_prefill(
                q, *pool.caches, pool.tables, pool.lens, starts, head_dim**-0.5, out,
                splits=num_parts(programs, num_sms), config=config,
            )  # fmt: skip

        yield Case("prefill_few", f"{new} of {length}", launch, out, flops)


def decode_cases(
    shapes: Iterable[tuple[int, int]],
    head_dim: int,
    dtype: torch.dtype,
    device: str,
    num_sms: int,
) -> Iterable[Case[DecodeConfig]]:
    """One token each over equal contexts. A generator: the largest pool takes 8 GiB.

    Args:
        shapes: ``(sequences, tokens of context)``.
        head_dim: Width of a head.
        dtype: Element type.
        device: Where to measure.
        num_sms: Streaming multiprocessors, for :func:`m4_flash.kernels.decode.num_splits`.
    """
    from m4_flash.kernels.decode import flash_decode, num_splits

    for batch, length in shapes:
        pool = _pool(batch, length, head_dim, dtype, device)
        q = torch.randn(batch, NUM_HEADS, head_dim, dtype=dtype, device=device)
        splits, out = num_splits(batch, NUM_KV_HEADS, num_sms), torch.empty_like(q)
        moved = 2.0 * batch * length * NUM_KV_HEADS * head_dim * q.element_size()

        def launch(
            config: DecodeConfig, q: Tensor = q, pool: _Pool = pool, out: Tensor = out,
            splits: int = splits,
        ) -> None:  # fmt: skip
            flash_decode(
                q, *pool.caches, pool.tables, pool.lens, None, head_dim**-0.5, out,
                splits=splits, config=config,
            )  # fmt: skip

        yield Case(decode_kind(batch), f"{batch}x{length}", launch, out, moved)


def cases_of(
    kinds: Collection[str],
    prefills: Iterable[tuple[int, int]],
    few: Iterable[tuple[int, int]],
    decodes: Iterable[tuple[int, int]],
    *,
    head_dim: int,
    dtype: torch.dtype,
    device: str,
    num_sms: int,
) -> Iterator[Case[Any]]:
    """The cases of some kernels; nothing is made for the others.

    Args:
        kinds: Entries of the table.
        prefills: As for :func:`prefill_cases`.
        few: As for :func:`few_cases`.
        decodes: As for :func:`decode_cases`.
        head_dim: Width of a head.
        dtype: Element type.
        device: Where to measure.
        num_sms: Streaming multiprocessors.
    """
    shared = head_dim, dtype, device
    families: dict[tuple[str, ...], Callable[[], Iterable[Case[Any]]]] = {
        ("prefill_paged", "prefill_contiguous"): lambda: prefill_cases(prefills, *shared),
        ("prefill_few",): lambda: few_cases(few, *shared, num_sms),
        ("decode_few", "decode_many"): lambda: decode_cases(decodes, *shared, num_sms),
    }
    for family, make in families.items():
        if any(kind in kinds for kind in family):
            yield from (case for case in make() if case.kind in kinds)
