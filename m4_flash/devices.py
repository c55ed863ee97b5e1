"""What a device can do with our kernels."""

from __future__ import annotations

import functools
import importlib.util

import torch

PDL_CAPABILITY = (9, 0)
"""Compute capability of Hopper, the first with programmatic dependent launch."""


def has_triton(device: torch.device) -> bool:
    """Whether our kernels run on ``device``."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


@functools.cache
def supports_pdl(device: torch.device) -> bool:
    """Whether a kernel may start before its predecessor ends (:mod:`m4_flash.kernels.launch`)."""
    return has_triton(device) and _since_hopper(device)


def _since_hopper(  # gpu-only: m4_flash/tests/test_gpu_gemv.py::test_pdl_is_used
    device: torch.device,
) -> bool:
    return torch.cuda.get_device_capability(device) >= PDL_CAPABILITY
