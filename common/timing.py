"""Timing that can be trusted: warm-up, synchronised clocks, medians, interleaved variants.

A GPU works behind the program's back, so a wall clock must wait for it on both sides. Machines
drift (clocks, neighbours), so two variants are compared by running them in turn: A B A B.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from common.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Measurement:
    """Repeated measurements of one quantity, in the order in which they were taken."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse an empty set.

        Raises:
            ConfigError: No values.
        """
        if not self.values:
            raise ConfigError("a measurement needs at least one value")

    @property
    def median(self) -> float:
        """The middle value; the mean of the middle two where the number is even."""
        return float(statistics.median(self.values))

    @property
    def min(self) -> float:
        """The smallest value."""
        return min(self.values)

    @property
    def max(self) -> float:
        """The largest value."""
        return max(self.values)

    @property
    def spread(self) -> float:
        """(max − min) / median: a difference between variants below this is noise."""
        width = self.max - self.min
        return width / abs(self.median) if self.median else 0.0

    @property
    def n(self) -> int:
        """How many values there are."""
        return len(self.values)

    def map(self, convert: Callable[[float], float]) -> Measurement:
        """Every value converted, for instance seconds to tokens per second."""
        return Measurement(tuple(convert(value) for value in self.values))


def synchronizer(device: str) -> Callable[[], None]:
    """A function that returns when all work queued on ``device`` is done."""
    if device.startswith("cuda"):  # gpu-only: common/tests/test_gpu.py::test_event_timer
        import torch

        return lambda: torch.cuda.synchronize(device)
    return lambda: None


def interleaved_calls(
    fns: Mapping[str, Callable[[], T]], repeat: int = 5, warmup: int = 1
) -> dict[str, list[T]]:
    """Call every function in turn, ``repeat`` rounds after ``warmup`` unrecorded ones.

    Args:
        fns: Variants by name. What they return is collected: a duration, a set of outputs.
        repeat: Recorded rounds.
        warmup: Rounds before them.

    Raises:
        ConfigError: No function, no round, or a negative warm-up.
    """
    if not fns or repeat < 1 or warmup < 0:
        raise ConfigError(
            f"need functions, repeat of at least 1 and warmup of at least 0, "
            f"got {len(fns)}, {repeat} and {warmup}"
        )
    for _ in range(warmup):
        for fn in fns.values():
            fn()
    collected: dict[str, list[T]] = {name: [] for name in fns}
    for _ in range(repeat):
        for name, fn in fns.items():
            collected[name].append(fn())
    return collected


def interleaved(
    fns: Mapping[str, Callable[[], object]],
    repeat: int = 5,
    warmup: int = 1,
    sync: Callable[[], None] | None = None,
) -> dict[str, Measurement]:
    """Time variants in turn, A B A B, so that drift falls on all of them alike. Seconds.

    Args:
        fns: Variants by name.
        repeat: Recorded rounds.
        warmup: Rounds before them.
        sync: Waits for the device, see :func:`synchronizer`.
    """
    timed = {name: _timed(fn, sync) for name, fn in fns.items()}
    calls = interleaved_calls(timed, repeat, warmup)
    return {name: Measurement(tuple(values)) for name, values in calls.items()}


def measure(
    fn: Callable[[], object],
    repeat: int = 5,
    warmup: int = 1,
    sync: Callable[[], None] | None = None,
) -> Measurement:
    """Time one function by the wall clock. Seconds; arguments as :func:`interleaved`."""
    return interleaved({"fn": fn}, repeat, warmup, sync)["fn"]


def _timed(fn: Callable[[], object], sync: Callable[[], None] | None) -> Callable[[], float]:
    def call() -> float:
        if sync is not None:
            sync()
        begin = time.perf_counter()
        fn()
        if sync is not None:
            sync()
        return time.perf_counter() - begin

    return call


def device_timer(
    device: str, flush_bytes: int = 0
) -> Callable[[Callable[[], object]], Callable[[], float]]:
    """A wrapper that turns a function into one that returns its time on ``device``, in seconds.

    CUDA events on a GPU, which leave launch latency in front of the first kernel out; the wall
    clock on a CPU. Use with :func:`interleaved_calls`::

        timer = device_timer("cuda", flush_bytes=2**28)
        times = interleaved_calls({"naive": timer(naive), "flash": timer(flash)}, repeat=20)

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        flush_bytes: Bytes written before each call, so that a GPU's L2 cache holds none of its
            inputs; 0 leaves the cache as it is.
    """
    if not device.startswith("cuda"):
        return lambda fn: _timed(fn, None)
    return _events(device, flush_bytes)  # gpu-only: common/tests/test_gpu.py::test_event_timer


def _events(  # gpu-only: common/tests/test_gpu.py::test_event_timer
    device: str, flush_bytes: int
) -> Callable[[Callable[[], object]], Callable[[], float]]:
    import torch

    cold: Any = torch.empty(flush_bytes, dtype=torch.int8, device=device) if flush_bytes else None

    def wrap(fn: Callable[[], object]) -> Callable[[], float]:
        new_event: Any = torch.cuda.Event  # its constructor carries no annotations
        begin, end = (new_event(enable_timing=True) for _ in range(2))

        def call() -> float:
            if cold is not None:
                cold.zero_()
            begin.record()
            fn()
            end.record()
            end.synchronize()
            return float(begin.elapsed_time(end)) / 1e3

        return call

    return wrap
