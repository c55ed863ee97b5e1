"""Counting what an engine does, for :class:`~common.outputs.EngineStats`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from common.memory import lifetime_peak_bytes
from common.output_processor import RequestState
from common.outputs import EngineStats


@dataclass(frozen=True)
class StepTiming:
    """One step, for somebody who watches.

    Attributes:
        end: When its ids were on the host, ``time.perf_counter()`` seconds.
        seconds: Its wall time.
        prefill: Whether it computed prompt tokens.
        slices: (start, end) of the positions that it computed, per sequence.
    """

    end: float
    seconds: float
    prefill: bool
    slices: tuple[tuple[int, int], ...]

    @property
    def num_tokens(self) -> int:
        """Tokens that it computed."""
        return sum(end - start for start, end in self.slices)


class StatsRecorder:
    """Adds up steps and finished requests.

    Attributes:
        watch: Told of every step; None where nobody watches.
    """

    watch: Callable[[StepTiming], None] | None = None

    def __init__(self) -> None:
        """Start at zero."""
        self.num_requests = self.prompt_tokens = self.generated_tokens = self.num_steps = 0
        self.scheduled_prefill = self.scheduled_decode = 0
        self.prefill_seconds = self.decode_seconds = 0.0

    def on_step(
        self,
        seconds: float,
        *,
        prefill: bool,
        num_tokens: int,
        end: float,
        slices: Iterable[tuple[int, int]],
    ) -> None:
        """Count one forward pass.

        Args:
            seconds: Its wall time.
            prefill: Whether it computed prompt tokens.
            num_tokens: Tokens it computed, padding left out.
            end: When its ids were known, ``time.perf_counter()`` seconds.
            slices: (start, end) of each sequence's positions; read only if somebody watches.
        """
        if self.watch is not None:
            self.watch(StepTiming(end, seconds, prefill, tuple(slices)))
        self.num_steps += 1
        if prefill:
            self.prefill_seconds += seconds
            self.scheduled_prefill += num_tokens
        else:
            self.decode_seconds += seconds
            self.scheduled_decode += num_tokens

    def pace(self) -> str:
        """Prompt and output tokens per second so far, for a progress bar."""
        prefill = self.scheduled_prefill / self.prefill_seconds if self.prefill_seconds else 0.0
        decode = self.scheduled_decode / self.decode_seconds if self.decode_seconds else 0.0
        return f"prefill {prefill:.0f} tok/s, decode {decode:.0f} tok/s"

    def on_finished(self, state: RequestState) -> None:
        """Count one request that has ended, aborted ones included."""
        self.num_requests += 1
        self.prompt_tokens += len(state.request.prompt_token_ids)
        self.generated_tokens += sum(s.num_output_tokens for s in state.sequences)

    def snapshot(self, *, weight_bytes: int, kv_bytes: int, peak_memory_bytes: int) -> EngineStats:
        """The counts so far, with the engine's memory figures."""
        return EngineStats(
            num_requests=self.num_requests,
            prompt_tokens=self.prompt_tokens,
            generated_tokens=self.generated_tokens,
            num_steps=self.num_steps,
            prefill_seconds=self.prefill_seconds,
            decode_seconds=self.decode_seconds,
            weight_bytes=weight_bytes,
            kv_bytes=kv_bytes,
            peak_memory_bytes=peak_memory_bytes,
        )


def peak_memory_bytes(device: str) -> int:
    """Most memory held so far: by the allocator on a GPU, by the whole process on a CPU."""
    if not device.startswith("cuda"):
        return lifetime_peak_bytes()
    import torch  # gpu-only: m1_basic/tests/test_gpu.py::test_stats_report_the_allocator_peak

    return torch.cuda.max_memory_allocated(
        device
    )  # gpu-only: m1_basic/tests/test_gpu.py::test_stats_report_the_allocator_peak
