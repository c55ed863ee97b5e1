"""The ceilings behind MBU and MFU: what a copy and a matrix product reach on this device.

A data sheet's figure can be looked up (:mod:`common.devices`); these two are measured, so that a
laptop's numbers mean something too. Both return a :class:`~common.metrics.Peak` labelled so.
"""

from __future__ import annotations

from common.devices import DEVICES
from common.environment import DeviceInfo, device_info
from common.metrics import Peak
from common.timing import measure, synchronizer

MIB = 1024**2


def measured_bandwidth(device: str = "cpu", num_bytes: int | None = None, repeat: int = 7) -> Peak:
    """Bytes per second of a device-local copy, read plus written; the fastest of ``repeat``.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        num_bytes: Size of the source; far larger than any cache by default.
        repeat: Timed copies.
    """
    import torch

    size = num_bytes or (256 * MIB if device == "cpu" else 1024 * MIB)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = measure(lambda: target.copy_(source), repeat, 2, synchronizer(device)).min
    return Peak(2 * size / best, "measured", device_info(device).name)


def measured_flops(
    device: str = "cpu", dtype: str = "float32", size: int | None = None, repeat: int = 5
) -> Peak:
    """FLOP per second of a square matrix product in ``dtype``; the fastest of ``repeat``.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: Name of a torch dtype.
        size: Rows and columns.
        repeat: Timed products.
    """
    import torch

    n = size or (1024 if device == "cpu" else 8192)
    # Random values: constant ones let a GPU clock higher than real work does.
    left, right = (torch.randn(n, n, device=device).to(getattr(torch, dtype)) for _ in range(2))
    best = measure(lambda: left @ right, repeat, 2, synchronizer(device)).min
    return Peak(2 * n**3 / best, "measured", device_info(device).name)


def spec_peaks(device: DeviceInfo) -> tuple[Peak, Peak] | None:
    """Bandwidth and bfloat16 FLOPs of the data sheet, or None for a device it does not list."""
    words = device.name.lower().replace("rtx ", "rtx")
    for key, spec in DEVICES.items():
        # The PCIe cards and those of another memory size share a name but not the bandwidth.
        fits = abs(device.memory_bytes - spec.memory_bytes) < 0.1 * spec.memory_bytes
        if device.kind == "cuda" and key in words and "pcie" not in words and fits:
            return (
                Peak(spec.spec_bandwidth, "spec sheet", spec.name),
                Peak(spec.spec_flops, "spec sheet", spec.name),
            )
    return None
