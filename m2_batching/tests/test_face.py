"""What the package offers by name, and what importing it does not load."""

from __future__ import annotations

import subprocess
import sys

import pytest

import m2_batching
from common.request import SamplingParams
from m2_batching.engine import LLMEngine


def test_the_package_offers_two_names() -> None:
    assert m2_batching.__all__ == ["LLMEngine", "SamplingParams"]
    assert m2_batching.LLMEngine is LLMEngine
    assert m2_batching.SamplingParams is SamplingParams
    with pytest.raises(AttributeError, match="'m2_batching' has no attribute 'Engine'"):
        _ = m2_batching.Engine


def test_the_control_plane_runs_where_torch_cannot_be_imported() -> None:
    """One step of the real scheduler, with torch blocked."""
    code = """
import sys
sys.modules["torch"] = None
from common.request import Request, SamplingParams, Sequence
from m2_batching.request_queue import make_queue
from m2_batching.scheduler import Scheduler
one = Scheduler(make_queue("priority"), 1, 10, print)
one.add([Sequence(0, Request("r", (1, 2), SamplingParams()))])
print(one.schedule().num_tokens)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2\n"
