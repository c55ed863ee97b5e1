"""What the package offers by name, and what importing it does not load."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import m2_batching
from common.request import SamplingParams
from common.testing.fixtures import TinyModel
from m1_basic.tests.helpers import GREEDY, text_of
from m2_batching.engine import LLMEngine

ROOT = Path(__file__).resolve().parents[2]


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


def test_the_command_answers_as_m1_does(tiny: TinyModel) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "m2_batching", "hello", "--raw", *GREEDY, "--max-tokens", "6",
            "--model", str(tiny.folder), "--device", "cpu", "--max-num-seqs", "2",
        ],
        capture_output=True, cwd=ROOT, timeout=240, env=os.environ | {"PYTHONUTF8": "1"},
    )  # fmt: skip
    assert (done.returncode, done.stdout.decode()) == (0, text_of(tiny, "hello", 6) + "\n")
