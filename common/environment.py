"""Where a number was measured: device, versions, commit, command.

Everything here is a fact that two results must share to be comparable, or that a reader needs to
repeat one. Nothing here names a folder, a user or a host.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.errors import ConfigError
from common.records import without_paths

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = "docs/benchmarks/results"
COMMIT_VARIABLE = "FOLOVLLM_COMMIT"
UNKNOWN = "unknown"
PACKAGES = ("torch", "transformers", "triton", "numpy", "flash-attn")

DeviceKind = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class DeviceInfo:
    """The device that did the work.

    Attributes:
        kind: ``cpu`` or ``cuda``.
        name: Model name as the system reports it.
        cores: Cores this process may use, or streaming multiprocessors.
        memory_bytes: Memory of the machine, or of the GPU.
    """

    kind: DeviceKind
    name: str
    cores: int
    memory_bytes: int

    @property
    def slug(self) -> str:
        """Folder name of the device's results: ``nvidia-h100-80gb-hbm3``, ``cpu-amd-epyc-2c``."""
        name = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")
        return name if self.kind == "cuda" else f"cpu-{name}-{self.cores}c"

    def same_machine(self, other: DeviceInfo) -> bool:
        """Whether two results may be compared: equal but for what a kernel update may reserve."""
        same = (self.kind, self.name, self.cores) == (other.kind, other.name, other.cores)
        larger = max(self.memory_bytes, other.memory_bytes, 1)
        return same and abs(self.memory_bytes - other.memory_bytes) <= 0.05 * larger


def device_info(device: str = "cpu") -> DeviceInfo:
    """Describe ``cpu``, ``cuda`` or ``cuda:N``. A CPU needs no torch.

    Raises:
        ConfigError: No such device.
    """
    if device == "cpu":
        return DeviceInfo("cpu", _cpu_name(), _cpu_cores(), _host_memory())
    if not re.fullmatch(r"cuda(:\d+)?", device):
        raise ConfigError(f"device must be cpu, cuda or cuda:N, got {device!r}")
    import torch

    index = int(device.partition(":")[2] or 0)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= count:
        raise ConfigError(f"device {device!r} asked for, {count} CUDA devices found")
    return _cuda_info(index)  # gpu-only: common/tests/test_gpu.py::test_device_info


def _cuda_info(index: int) -> DeviceInfo:  # gpu-only: common/tests/test_gpu.py::test_device_info
    import torch

    found = torch.cuda.get_device_properties(index)
    return DeviceInfo("cuda", found.name, found.multi_processor_count, found.total_memory)


def _cpu_name() -> str:
    """Model name of the processor, from the system's own tables."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        cpuinfo = ""
    if found := re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE):
        return found[1].strip()
    if brand := _output(["sysctl", "-n", "machdep.cpu.brand_string"]):
        return brand
    return platform.processor() or platform.machine() or UNKNOWN


def _cpu_cores() -> int:
    """Cores that this process may run on: fewer than the machine's inside a container."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _host_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0


def versions(device: str = "cpu") -> dict[str, str]:
    """Python, operating system, the packages that matter and, for a GPU, CUDA and the driver."""
    found = {
        "python": platform.python_version(),
        "os": f"{platform.system()} {platform.machine()}",
    }
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if device != "cpu":  # gpu-only: common/tests/test_gpu.py::test_device_info
        import torch

        found["cuda"] = torch.version.cuda or UNKNOWN
        found["driver"] = driver_version() or UNKNOWN
    return found


def driver_version() -> str | None:
    """Version of the NVIDIA driver, or None where there is none."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    found = _output(query)
    return found.splitlines()[0] if found else None


def commit(root: Path = REPOSITORY) -> str:
    """The state of the source: a commit hash, with a digest of the changes where there are any.

    ``<hash>`` for a clean tree and ``<hash>-dirty.<8 hex>`` otherwise, so that two dirty trees are
    the same only if their changes are. Result files do not make a tree dirty. The environment
    variable ``FOLOVLLM_COMMIT`` says it for a copy of a tree (``python -m common.bench commit``
    prints the value to set there); without it, what is no git checkout is ``unknown``.
    """
    named = os.environ.get(COMMIT_VARIABLE)
    if named:
        return named
    top, head = _git(root, "rev-parse", "--show-toplevel"), _git(root, "rev-parse", "HEAD")
    if top is None or head is None or Path(top.strip()).resolve() != root.resolve():
        return UNKNOWN
    scope = ("--", ".", f":(exclude){RESULTS}")
    changes = _git(root, "diff", "HEAD", "--binary", *scope) or ""
    listed = _git(root, "ls-files", "--others", "--exclude-standard", "-z", *scope) or ""
    untracked = [name for name in listed.split("\0") if name]
    if not changes and not untracked:
        return head.strip()
    digest = hashlib.sha256(changes.encode())
    for name in untracked:
        digest.update(name.encode())
        digest.update((root / name).read_bytes())
    return f"{head.strip()}-dirty.{digest.hexdigest()[:8]}"


def command_line(argv: Sequence[str] | None = None) -> str:
    """The command that runs now, as a reader would type it: no folder of this machine in it.

    Args:
        argv: Arguments after the program; by default the process's.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None:
        program = ["python", "-m", spec.name.removesuffix(".__main__")]
    else:
        script = Path(sys.argv[0]).resolve()
        inside = script.is_relative_to(REPOSITORY)
        program = ["python", str(script.relative_to(REPOSITORY)) if inside else script.name]
    shown = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        bare = argument if not equals else f"{flag}={without_paths(value)}"
        shown.append(without_paths(bare))
    return shlex.join([*program, *shown])


def _git(root: Path, *arguments: str) -> str | None:
    return _output(["git", "-C", str(root), *arguments], strip=False)


def _output(command: list[str], strip: bool = True) -> str | None:
    """What ``command`` printed, or None if it is missing or failed."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    text = done.stdout.decode("utf-8", errors="replace")
    return (text.strip() if strip else text) or None
