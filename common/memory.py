"""Peak memory of a piece of work, on a GPU and on a CPU.

A GPU's allocator knows its peak. A process does not: resident memory holds private (anonymous)
pages, which are the work's own, and pages of mapped files, which the kernel may drop at any time.
A memory-mapped checkpoint inflates the second kind and costs nothing, so the two are kept apart.
"""

from __future__ import annotations

import importlib
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from common.errors import ConfigError

KIB = 1024
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class ResidentMemory:
    """Physical memory that the process holds now, in bytes.

    Attributes:
        total: All of it.
        anonymous: Private pages: heap, tensors. None where the system does not tell.
        file_backed: Pages of mapped files. None where the system does not tell.
        source: ``proc``, ``psutil`` or ``lifetime peak`` (all that ``resource`` offers: the most
            the process has ever held).
    """

    total: int
    anonymous: int | None
    file_backed: int | None
    source: str


def resident_memory(status: Path = STATUS) -> ResidentMemory:
    """Read the resident memory of this process, by the best means there is.

    Args:
        status: Linux's status file of the process.
    """
    try:
        return _from_proc(status.read_text(encoding="ascii", errors="replace"))
    except (OSError, KeyError):
        pass
    try:
        psutil = importlib.import_module("psutil")
    except ImportError:
        return ResidentMemory(lifetime_peak_bytes(), None, None, "lifetime peak")
    return ResidentMemory(psutil.Process().memory_info().rss, None, None, "psutil")


def _from_proc(text: str) -> ResidentMemory:
    """Parse ``VmRSS``, ``RssAnon`` and ``RssFile`` (in kB) of a status file."""
    sizes = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "RssAnon", "RssFile"):
            sizes[name] = int(value.split()[0]) * KIB
    return ResidentMemory(sizes["VmRSS"], sizes.get("RssAnon"), sizes.get("RssFile"), "proc")


def lifetime_peak_bytes() -> int:
    """The most resident memory the process has ever held, in bytes (0 where unknown)."""
    try:
        resource = importlib.import_module("resource")
    except ImportError:  # Windows
        return 0
    peak = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return peak if sys.platform == "darwin" else peak * KIB


@dataclass(frozen=True)
class MemoryPeak:
    """The most memory held during a piece of work, in bytes.

    Attributes:
        baseline: Held when it began (anonymous memory on a CPU, where the system tells).
        peak: Most that was held of the same kind.
        resident_peak: Most resident memory, file mappings included; on a GPU what the allocator
            had reserved from the driver.
        source: How it was read.
    """

    baseline: int
    peak: int
    resident_peak: int
    source: str

    @property
    def growth(self) -> int:
        """Peak over baseline."""
        return self.peak - self.baseline


class PeakMemory:
    """Context manager that watches memory; ``.result`` holds the peak afterwards.

    On a CPU a thread samples every ``interval`` seconds, so a peak shorter than that can escape.
    On a GPU the allocator's own counters are used, after resetting their peaks.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        interval: Seconds between samples on a CPU.
    """

    def __init__(self, device: str = "cpu", interval: float = 0.005) -> None:
        if interval <= 0:
            raise ConfigError(f"interval must be positive, got {interval}")
        self.device, self.interval = device, interval
        self._result: MemoryPeak | None = None
        self._watch: _Watch | None = None
        self._baseline = 0

    @property
    def result(self) -> MemoryPeak:
        """The peak of the work done inside the ``with`` block."""
        assert self._result is not None, "the with block has not ended"
        return self._result

    def __enter__(self) -> PeakMemory:
        if self.device == "cpu":
            self._watch = _Watch(self.interval)
            self._watch.start()
        else:
            self._reset()  # gpu-only: common/tests/test_gpu.py::test_peak_memory
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._watch is not None:
            self._result = self._watch.finish()
        else:
            self._result = self._read()  # gpu-only: common/tests/test_gpu.py::test_peak_memory

    def _reset(self) -> None:  # gpu-only: common/tests/test_gpu.py::test_peak_memory
        import torch

        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        self._baseline = torch.cuda.memory_allocated(self.device)

    def _read(self) -> MemoryPeak:  # gpu-only: common/tests/test_gpu.py::test_peak_memory
        import torch

        torch.cuda.synchronize(self.device)
        peak = torch.cuda.max_memory_allocated(self.device)
        reserved = torch.cuda.max_memory_reserved(self.device)
        return MemoryPeak(self._baseline, peak, reserved, "allocator")


class _Watch(threading.Thread):
    """Samples resident memory until told to finish."""

    def __init__(self, interval: float) -> None:
        super().__init__(name="peak-memory", daemon=True)
        self.interval, self.done = interval, threading.Event()
        first = resident_memory()
        self.source = first.source
        self.baseline = self.peak = self._own(first)
        self.resident = first.total

    @staticmethod
    def _own(now: ResidentMemory) -> int:
        return now.total if now.anonymous is None else now.anonymous

    def run(self) -> None:
        """Sample until ``done``."""
        while not self.done.wait(self.interval):
            self.sample()

    def sample(self) -> None:
        """Raise the peaks to what is held now."""
        now = resident_memory()
        self.peak = max(self.peak, self._own(now))
        self.resident = max(self.resident, now.total)

    def finish(self) -> MemoryPeak:
        """Stop, take a last sample, and say what was seen."""
        self.done.set()
        self.join()
        self.sample()
        return MemoryPeak(self.baseline, self.peak, self.resident, self.source)
