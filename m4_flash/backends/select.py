"""Which attention backend serves a model on a device, and why."""

from __future__ import annotations

import logging

from common.errors import ConfigError
from m4_flash.backends.base import AttentionBackend, AttentionShape
from m4_flash.backends.flash_attn import FlashAttnBackend
from m4_flash.backends.naive import NaiveBackend
from m4_flash.backends.paged import PagedBackend
from m4_flash.backends.sdpa import SdpaBackend
from m4_flash.backends.triton import TritonBackend

logger = logging.getLogger(__name__)

BACKENDS: dict[str, type[AttentionBackend]] = {
    backend.name: backend
    for backend in (NaiveBackend, PagedBackend, SdpaBackend, FlashAttnBackend, TritonBackend)
}
# In order of preference. FlashAttention-2 comes after our own kernels because of its block size:
# 256 tokens a block cost more memory than the kernel saves time.
AUTOMATIC = (TritonBackend, FlashAttnBackend, SdpaBackend)


def select_backend(name: str, shape: AttentionShape) -> type[AttentionBackend]:
    """Pick a backend, or check the one that was asked for.

    Args:
        name: ``auto``, or the name of one.
        shape: What it must serve; a ``block_size`` of None leaves the size to the backend.

    Raises:
        ConfigError: The name is unknown, or the backend cannot serve the shape; the message has
            the reason.
    """
    if name != "auto":
        backend = BACKENDS.get(name)
        if backend is None:
            known = ", ".join(("auto", *BACKENDS))
            raise ConfigError(f"attention_backend must be one of {known}, got {name!r}")
        reason = backend.refusal(shape)
        if reason is not None:
            raise ConfigError(f"attention_backend {name!r} cannot be used: {reason}")
        logger.info("attention backend %s, as asked", name)
        return backend
    if shape.device.type != "cuda":
        logger.info("attention backend sdpa (the others in question need a CUDA device)")
        return SdpaBackend
    return _preferred(shape)  # gpu-only: m4_flash/tests/test_gpu.py::test_picks_triton


def _preferred(  # gpu-only: m4_flash/tests/test_gpu.py::test_picks_triton
    shape: AttentionShape,
) -> type[AttentionBackend]:
    """The first of :data:`AUTOMATIC` that can serve; sdpa always can."""
    refused = list[str]()
    for backend in AUTOMATIC:
        reason = backend.refusal(shape)
        if reason is None:
            why = f" ({'; '.join(refused)})" if refused else ""
            logger.info("attention backend %s%s", backend.name, why)
            return backend
        refused.append(f"not {backend.name}: {reason}")
    raise AssertionError("sdpa serves everything")
