"""Pytest for the whole repository: shared fixtures; GPU and hub tests skip themselves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# One thread a process, set before torch is loaded. The suite runs a process per core (-n 2), and
# tiny models have nothing to divide: more threads would only spin while they wait for a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["common.testing.fixtures"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip ``gpu`` tests without a GPU, and ``hub`` tests without the official weights."""
    marked = {
        name: [item for item in items if item.get_closest_marker(name)] for name in ("gpu", "hub")
    }
    if marked["gpu"] and not _has_gpu():
        for item in marked["gpu"]:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    if marked["hub"] and not _has_official_weights():
        for item in marked["hub"]:
            item.add_marker(pytest.mark.skip(reason="Qwen/Qwen3-0.6B is not in the local cache"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _has_official_weights() -> bool:
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    return any(home.glob("hub/models--Qwen--Qwen3-0.6B/snapshots/*/model.safetensors"))
