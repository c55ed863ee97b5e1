"""Lists of numbers to the device in one copy, through two pinned buffers that take turns.

A copy from pageable memory makes the host wait. A copy from pinned memory returns at once, so the
buffer must not be refilled before the copy has read it: while the device may still read one
buffer, the host fills the other. A copy queues behind the step that runs, so there is one a step
and no more; then the wait for buffer A is over before it begins::

    host     fill A ─┐           fill B ─┐           fill A ─┐
    device           └ copy A, step 1    └ copy B, step 2    └ copy A, step 3
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

FIRST_SIZE = 4096


@dataclass(frozen=True)
class Sent:
    """What arrived: views of one tensor on the device, valid until they are used on its stream.

    Attributes:
        integers: ``[n_i]`` int64 each.
        floats: ``[n_i]`` float64 each.
    """

    integers: tuple[Tensor, ...]
    floats: tuple[Tensor, ...]


class Staging:
    """Sends lists and arrays; on a CPU it makes a tensor of them and that is all."""

    def __init__(self, device: torch.device) -> None:
        """Nothing is reserved before the first use."""
        self.device = device
        self._buffers: list[_PinnedBuffer] = []
        self._turn = 0

    def send(
        self, integers: Sequence[Sequence[int] | np.ndarray], floats: Sequence[Sequence[float]] = ()
    ) -> Sent:
        """Copy everything to the device, as one piece of memory.

        Args:
            integers: Lists or ``[n_i]`` int64 arrays of 64-bit integers. Where there are many, an
                array: a list is converted number by number.
            floats: Lists of floats, sent in double precision.
        """
        packed = np.concatenate(
            [np.asarray(part, dtype=np.int64) for part in integers]
            + [np.asarray(part, dtype=np.float64).view(np.int64) for part in floats]
        )
        arrived = self._copy(packed)
        views = torch.split(arrived, [len(part) for part in (*integers, *floats)])
        count = len(integers)
        as_floats = tuple(view.view(torch.float64) for view in views[count:])
        return Sent(tuple(views[:count]), as_floats)

    def _copy(self, packed: np.ndarray) -> Tensor:
        if self.device.type == "cpu":
            return torch.from_numpy(packed)
        return self._copy_pinned(packed)  # gpu-only: m4_flash/tests/test_gpu.py::test_staging

    def _copy_pinned(  # gpu-only: m4_flash/tests/test_gpu.py::test_staging
        self, packed: np.ndarray
    ) -> Tensor:
        if not self._buffers:
            self._buffers = [_PinnedBuffer(), _PinnedBuffer()]
        self._turn = 1 - self._turn
        return self._buffers[self._turn].copy_to(self.device, packed)


class _PinnedBuffer:  # gpu-only: m4_flash/tests/test_gpu.py::test_staging
    """Pinned host memory that grows, and the event after which it may be written again."""

    def __init__(self) -> None:
        self.memory = torch.empty(FIRST_SIZE, dtype=torch.int64, pin_memory=True)
        new_event: Any = torch.cuda.Event  # its constructor carries no annotations
        self.copied = new_event()

    def copy_to(self, device: torch.device, packed: np.ndarray) -> Tensor:
        """Fill, then copy without waiting."""
        self.copied.synchronize()
        if len(packed) > len(self.memory):
            size = 1 << (len(packed) - 1).bit_length()
            self.memory = torch.empty(size, dtype=torch.int64, pin_memory=True)
        part = self.memory[: len(packed)]
        part.numpy()[:] = packed
        arrived = part.to(device, non_blocking=True)
        self.copied.record()
        return arrived
