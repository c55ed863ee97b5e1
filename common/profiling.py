"""How busy a GPU was: kernel time over wall time from the profiler, and NVML beside it.

``nvidia-smi`` reports the share of sample periods in which *some* kernel ran, so a GPU that runs
one tiny kernel after another reads 100 %. The profiler's intervals say how much of the wall time
any kernel was running, and MBU and MFU (:mod:`common.metrics`) how well it was used.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from common.errors import ConfigError
from common.metrics import busy_share
from common.timing import synchronizer


@dataclass(frozen=True)
class KernelProfile:
    """What ran on the device during one piece of work.

    Attributes:
        wall: Seconds by the wall clock, device synchronised on both sides.
        intervals: (begin, end) of every kernel, copy and fill, in seconds from the first one.
        nvml_utilization: Mean of NVML's utilisation readings in [0, 1], or None without NVML.
    """

    wall: float
    intervals: tuple[tuple[float, float], ...]
    nvml_utilization: float | None = None

    @property
    def num_kernels(self) -> int:
        """Launches that reached the device."""
        return len(self.intervals)

    @property
    def busy(self) -> float:
        """Share of the wall time in which at least one kernel ran."""
        return busy_share(self.intervals, 0.0, self.wall)


def device_intervals(events: Iterable[Any]) -> tuple[tuple[float, float], ...]:
    """Intervals of the device events among a profiler's, in seconds from the first begin.

    Args:
        events: Objects with ``device_type`` (an enum whose name says ``CUDA``) and ``time_range``
            (``start`` and ``end`` in microseconds), as ``torch.profiler`` gives.
    """
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type.name == "CUDA"
    )
    origin = spans[0][0] if spans else 0.0
    return tuple(((begin - origin) / 1e6, (end - origin) / 1e6) for begin, end in spans)


def profile_kernels(fn: Callable[[], object], device: str = "cuda") -> KernelProfile:
    """Run ``fn`` once under ``torch.profiler`` and collect what ran on the GPU.

    Warm ``fn`` up before: compilation and graph capture would count as idle time. The profiler
    adds a little to every launch, so the share is a lower bound.

    Args:
        fn: The work.
        device: ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: ``device`` is no GPU.
    """
    if not device.startswith("cuda"):
        raise ConfigError(f"kernels are profiled on a GPU, got device {device!r}")
    return _profile(fn, device)  # gpu-only: common/tests/test_gpu.py::test_profile_kernels


def _profile(  # gpu-only: common/tests/test_gpu.py::test_profile_kernels
    fn: Callable[[], object], device: str
) -> KernelProfile:
    from torch.profiler import ProfilerActivity, profile

    sync = synchronizer(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler, NvmlSampler(device) as sampler:
        sync()
        begin = time.perf_counter()
        fn()
        sync()
        wall = time.perf_counter() - begin
    return KernelProfile(wall, device_intervals(profiler.events() or ()), sampler.mean)


class NvmlSampler:
    """Context manager that averages NVML's utilisation readings; ``.mean`` holds the result.

    Args:
        device: ``cuda`` or ``cuda:N``; counted among the GPUs that NVML lists.
        interval: Seconds between readings. NVML itself averages over up to a second.
        nvml: The module ``pynvml``; imported where None, and left out where it is missing.
    """

    def __init__(self, device: str = "cuda", interval: float = 0.1, nvml: Any = None) -> None:
        self.interval, self.readings = interval, list[float]()
        self._index = int(device.partition(":")[2] or 0)
        self._nvml = nvml if nvml is not None else _import_nvml()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="nvml", daemon=True)

    @property
    def mean(self) -> float | None:
        """Mean of the readings in [0, 1]; None where there are none."""
        return sum(self.readings) / len(self.readings) if self.readings else None

    def __enter__(self) -> NvmlSampler:
        if self._nvml is not None:
            self._nvml.nvmlInit()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()
            self._nvml.nvmlShutdown()

    def _sample(self) -> None:
        handle = self._nvml.nvmlDeviceGetHandleByIndex(self._index)
        while not self._done.wait(self.interval):
            self.readings.append(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)


def _import_nvml() -> Any:
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        return None
