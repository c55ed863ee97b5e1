import enum
import sys
import time
from dataclasses import dataclass

import pytest

from common.errors import ConfigError
from common.profiling import KernelProfile, NvmlSampler, device_intervals, profile_kernels


class DeviceType(enum.Enum):
    CPU = 0
    CUDA = 1


@dataclass
class Range:
    start: float
    end: float


@dataclass
class Event:
    device_type: DeviceType
    time_range: Range


def test_intervals_are_the_device_s_own_in_seconds() -> None:
    events = [
        Event(DeviceType.CUDA, Range(3_000_000.0, 3_500_000.0)),
        Event(DeviceType.CPU, Range(0.0, 9_000_000.0)),
        Event(DeviceType.CUDA, Range(1_000_000.0, 2_000_000.0)),
    ]
    intervals = device_intervals(events)
    assert intervals == ((0.0, 1.0), (2.0, 2.5))
    profile = KernelProfile(wall=3.0, intervals=intervals)
    assert profile.num_kernels == 2
    assert profile.busy == pytest.approx(0.5)


def test_nothing_ran() -> None:
    assert device_intervals([]) == ()
    assert KernelProfile(1.0, ()).busy == 0.0


def test_a_cpu_has_no_kernels() -> None:
    with pytest.raises(ConfigError, match="profiled on a GPU, got device 'cpu'"):
        profile_kernels(lambda: None, "cpu")


@dataclass
class FakeRates:
    gpu: int


class FakeNvml:
    """What the sampler uses of pynvml."""

    def __init__(self) -> None:
        self.log: list[object] = []

    def nvmlInit(self) -> None:  # noqa: N802
        self.log.append("init")

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.log.append("shutdown")

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        self.log.append(index)
        return index

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> FakeRates:  # noqa: N802
        return FakeRates(50)


def test_nvml_readings_are_averaged() -> None:
    nvml = FakeNvml()
    with NvmlSampler("cuda:3", interval=0.001, nvml=nvml) as sampler:
        while len(sampler.readings) < 3:
            time.sleep(0.001)
    assert sampler.mean == 0.5
    assert nvml.log == ["init", 3, "shutdown"]


def test_without_nvml_there_is_no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with NvmlSampler() as sampler:
        pass
    assert sampler.mean is None
