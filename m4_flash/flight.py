"""A launched step: ids that are known already, or on their way from the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from m2_batching.plan import ScheduledSequence, StepResult
from m4_flash.logprobs import PendingLogprobs


@dataclass(frozen=True)
class HostFlight:
    """A step whose ids the host has: a CPU samples as it launches."""

    known: StepResult

    def result(self) -> StepResult:
        """The ids."""
        return self.known


class DeviceFlight:  # gpu-only: m4_flash/tests/test_gpu.py::test_greedy_ids_equal_those_of_the_cpu
    """A step in progress: one copy of the ids to pinned memory, and the event behind it."""

    def __init__(
        self,
        items: list[ScheduledSequence],
        sampled: Tensor,
        logprobs: PendingLogprobs | None,
        num_padding_tokens: int,
    ) -> None:
        """Start the copy.

        Args:
            items: The sequences, in the order of ``sampled``.
            sampled: ``[at least len(items)]`` int64 on the device.
            logprobs: For the rows that ask.
            num_padding_tokens: Positions computed for nothing.
        """
        self.items, self.logprobs = items, logprobs
        self.num_padding_tokens = num_padding_tokens
        self._ids = torch.empty(len(items), dtype=torch.int64, pin_memory=True)
        self._ids.copy_(sampled[: len(items)], non_blocking=True)
        new_event: Any = torch.cuda.Event  # its constructor carries no annotations
        self._arrived = new_event()
        self._arrived.record()

    def result(self) -> StepResult:
        """Wait for the copy."""
        self._arrived.synchronize()
        pairs = zip(self.items, self._ids.tolist(), strict=True)
        ids = {item.seq_id: token for item, token in pairs if item.num_sampled}
        logprobs = self.logprobs.to_host(ids) if self.logprobs is not None else {}
        return StepResult(ids, logprobs, self.num_padding_tokens)
