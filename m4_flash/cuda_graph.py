"""CUDA graphs: a whole step recorded once per size, then launched as one piece.

A decode step of Qwen3-0.6B is some 300 kernels. Launched from Python they cost the host
milliseconds; replayed as a graph they cost one call. A graph repeats the same kernels with the
same shapes and addresses, so steps are padded to buckets, inputs lie in buffers that never move
(:attr:`m4_flash.input_batch.InputBatch.header` and the rows), and everything that differs between
steps is read from them on the device.

::

    decode buckets   (1, 1) (2, 2) (4, 4) (8, 8) (16, 16) (24, 24) … (max_num_seqs, max_num_seqs)
    mixed buckets    up to 2,048 tokens, a few counts of sequences each

Larger steps run eagerly: their kernels take longer than their launches. All graphs share one pool
of memory, the largest is captured first, and smaller ones fit into what it left. As in vLLM
0.33.0, ``v1/cudagraph_dispatcher.py`` and ``compilation/cuda_graph.py``.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch

logger = logging.getLogger(__name__)

MAX_MIXED_TOKENS = 2048
MIXED_TOKENS = (16, 32, 64, 128, 256, 384, 512, 768, 1024, 1536, MAX_MIXED_TOKENS)
MIXED_SEQS = (1, 4, 16, 64, 256)

T = TypeVar("T")


@dataclass(frozen=True, order=True)
class Bucket:
    """A padded size of a step.

    Attributes:
        num_tokens: Tokens, padding included.
        num_seqs: Sequences, padding included; as many as tokens where the step only decodes.
    """

    num_tokens: int
    num_seqs: int

    @property
    def decodes(self) -> bool:
        """Whether every sequence has one token."""
        return self.num_tokens == self.num_seqs

    @property
    def max_query_len(self) -> int:
        """No slice of a step in this bucket is longer."""
        return 1 if self.decodes else self.num_tokens


class Buckets:
    """The sizes that are captured, and the smallest one that holds a step."""

    def __init__(self, max_num_seqs: int, max_mixed_tokens: int = MAX_MIXED_TOKENS) -> None:
        """Choose sizes without gaps.

        Args:
            max_num_seqs: Sequences that can run at the same time.
            max_mixed_tokens: Tokens of the largest step with a prefill; 0 for decodes alone.
        """
        self.decode_sizes = decode_sizes(max_num_seqs)
        self.mixed_tokens = [size for size in MIXED_TOKENS if size <= max_mixed_tokens]
        within = [size for size in MIXED_SEQS if size < max_num_seqs]
        self.mixed_seqs = [*within, max_num_seqs]

    def all(self) -> list[Bucket]:
        """Every bucket, the largest first."""
        decodes = [Bucket(size, size) for size in self.decode_sizes]
        mixed = [
            Bucket(tokens, seqs)
            for tokens in self.mixed_tokens
            for seqs in self.mixed_seqs
            if seqs < tokens
        ]
        return sorted(decodes + mixed, reverse=True)

    def find(self, num_tokens: int, num_seqs: int) -> Bucket | None:
        """The smallest bucket for a step; None where there is none and it runs eagerly."""
        if num_tokens == num_seqs:
            size = _at_least(self.decode_sizes, num_seqs)
            return Bucket(size, size) if size else None
        tokens, seqs = _at_least(self.mixed_tokens, num_tokens), None
        while tokens:
            seqs = _at_least([size for size in self.mixed_seqs if size < tokens], num_seqs)
            if seqs:
                return Bucket(tokens, seqs)
            tokens = _at_least(self.mixed_tokens, tokens + 1)
        return None


def decode_sizes(max_num_seqs: int) -> list[int]:
    """1, 2, 4, then multiples of 8 up to 256, then of 16; the last one is ``max_num_seqs``."""
    sizes = [1, 2, 4, *range(8, 257, 8), *range(272, max_num_seqs + 1, 16)]
    return [*(size for size in sizes if size < max_num_seqs), max_num_seqs]


class Capture(Protocol):
    """Records a function and gives one that repeats it."""

    def record(self, run: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """Run once, and return the outputs and what refreshes them in place."""
        ...


class CudaCapture:  # gpu-only: m4_flash/tests/test_gpu.py::test_graphs_equal_eager
    """Records on a side stream into a memory pool that all graphs share."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool: Any = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """Warm up (kernels compile, libraries allocate), then capture."""
        new_stream: Any = torch.cuda.Stream  # its constructor carries no annotations
        side = new_stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            run()
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=side):
            outputs = run()
        return outputs, graph.replay


class NullCapture:
    """No graph: repeats the function itself, so that padded steps are tested without a GPU."""

    def record(self, run: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """The outputs of a first run, refreshed in place by running again."""
        outputs = run()

        def again() -> None:
            _refresh(outputs, run())

        return outputs, again


class GraphPool(Generic[T]):
    """One recorded step per bucket.

    Attributes:
        buckets: The sizes.
        seconds: What recording took.
    """

    def __init__(self, buckets: Buckets, run: Callable[[Bucket], T], capture: Capture) -> None:
        """Record every bucket, the largest first.

        Args:
            buckets: The sizes.
            run: Computes a step of a bucket from the static inputs; returns tensors.
            capture: How to record.
        """
        self.buckets = buckets
        begin = time.perf_counter()
        self._recorded: dict[Bucket, tuple[T, Callable[[], None]]] = {}
        for bucket in buckets.all():
            self._recorded[bucket] = capture.record(lambda bucket=bucket: run(bucket))  # type: ignore[misc]
        self.seconds = time.perf_counter() - begin
        logger.info("%d step sizes recorded in %.1f s", len(self._recorded), self.seconds)

    def find(self, num_tokens: int, num_seqs: int) -> Bucket | None:
        """The bucket of a step, or None."""
        return self.buckets.find(num_tokens, num_seqs)

    def replay(self, bucket: Bucket) -> T:
        """Run the recorded step; its outputs are overwritten by the next replay."""
        outputs, again = self._recorded[bucket]
        again()
        return outputs


def _at_least(sizes: list[int], wanted: int) -> int | None:
    """The smallest of ascending ``sizes`` that is not below ``wanted``."""
    index = bisect_left(sizes, wanted)
    return sizes[index] if index < len(sizes) else None


def _refresh(old: Any, new: Any) -> None:
    """Copy the tensors of ``new`` over those of ``old``, as a replay would."""
    for name, value in vars(new).items():
        if isinstance(value, torch.Tensor):
            getattr(old, name).copy_(value)
        elif hasattr(value, "__dataclass_fields__"):
            _refresh(getattr(old, name), value)
