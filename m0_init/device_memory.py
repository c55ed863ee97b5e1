"""How much memory a device has, and how much of it is free: the budget of every plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.environment import device_info
from common.errors import ConfigError

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of one device, in bytes.

    Attributes:
        device: ``cpu``, ``cuda:0``, or what the user planned for.
        name: The device's model name.
        total_bytes: All of it.
        free_bytes: What can be allocated now. For a CPU this counts file caches that the system
            gives up on demand.
    """

    device: str
    name: str
    total_bytes: int
    free_bytes: int


def device_memory(device: str) -> DeviceMemory:
    """Read the memory of a device.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: No such device, or a system that does not tell its free memory.
    """
    info = device_info(device)
    if info.kind == "cpu":
        total, free = host_memory()
        return DeviceMemory(device, info.name, total, free)
    import torch  # gpu-only: m0_init/tests/test_gpu.py::test_device_memory

    free, total = torch.cuda.mem_get_info(
        device
    )  # gpu-only: m0_init/tests/test_gpu.py::test_device_memory
    return DeviceMemory(
        device, info.name, total, free
    )  # gpu-only: m0_init/tests/test_gpu.py::test_device_memory


def host_memory(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> tuple[int, int]:
    """Total and available bytes of this machine, within the limit of its container.

    Args:
        meminfo: Linux's table; elsewhere psutil is asked.
        cgroup: Folder of the control group, with ``memory.max`` where there is a limit.

    Raises:
        ConfigError: Neither source answers.
    """
    total, available = _meminfo(meminfo) or _psutil()
    limit = _number(cgroup / "memory.max")
    if limit is not None and limit < total:
        used = _number(cgroup / "memory.current") or 0
        total, available = limit, min(available, max(limit - used, 0))
    return total, available


def _meminfo(path: Path) -> tuple[int, int] | None:
    """``MemTotal`` and ``MemAvailable``, which the table gives in KiB."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    fields = {line.split(":")[0]: line.split()[1] for line in lines if ":" in line}
    try:
        return int(fields["MemTotal"]) * 1024, int(fields["MemAvailable"]) * 1024
    except (KeyError, ValueError):
        return None


def _psutil() -> tuple[int, int]:
    try:
        import psutil
    except ImportError:
        raise ConfigError(
            "this system has no /proc/meminfo: install psutil, or name a size with --memory-gib"
        ) from None
    memory = psutil.virtual_memory()
    return int(memory.total), int(memory.available)


def _number(path: Path) -> int | None:
    """The number a control file holds; None for ``max``, or where there is no such file."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
