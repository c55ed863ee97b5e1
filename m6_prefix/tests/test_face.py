"""What the package offers by name, which parts it is made of, what importing it does not load."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import m6_prefix
from common.request import SamplingParams
from common.testing.fixtures import TinyModel
from m1_basic.tests.helpers import GREEDY as GREEDY_FLAGS
from m1_basic.tests.helpers import text_of
from m4_flash.runner import FlashRunner
from m5_chunked.scheduler import Scheduler
from m6_prefix.engine import LLMEngine
from m6_prefix.hash_index import HashIndex
from m6_prefix.kv_cache_manager import KVCacheManager
from m6_prefix.tests.engine_cases import make
from m6_prefix.tree_index import TreeIndex

ROOT = Path(__file__).resolve().parents[2]


def test_the_package_offers_two_names() -> None:
    assert m6_prefix.__all__ == ["LLMEngine", "SamplingParams"]
    assert m6_prefix.LLMEngine is LLMEngine
    assert m6_prefix.SamplingParams is SamplingParams
    with pytest.raises(AttributeError, match="'m6_prefix' has no attribute 'Engine'"):
        _ = m6_prefix.Engine


def test_build_takes_the_newest_version_of_each_part(tiny: TinyModel) -> None:
    engine = make(tiny)
    assert type(engine).__bases__[0].__name__ == "StepEngine"
    assert type(engine.scheduler) is Scheduler
    assert type(engine.manager) is KVCacheManager
    assert engine.scheduler.manager is engine.manager
    assert type(engine.runner) is FlashRunner
    assert type(engine.manager.pool.index) is HashIndex
    assert type(make(tiny, prefix_index="tree").manager.pool.index) is TreeIndex
    assert engine.kv_bytes() == engine.runner.cache.nbytes
    info = engine.trace.info
    assert (info.stage, info.block_size, info.num_blocks) == ("m6_prefix", 4, 64)


def test_the_control_plane_runs_where_torch_cannot_be_imported() -> None:
    """Two equal prompts in one step of the real scheduler, with torch blocked."""
    code = """
import sys
sys.modules["torch"] = None
from common.request import Request, SamplingParams, Sequence
from m2_batching.request_queue import make_queue
from m5_chunked.scheduler import Scheduler
from m6_prefix.kv_cache_manager import KVCacheManager
from m6_prefix.tree_index import TreeIndex
manager = KVCacheManager(8, 4, index=TreeIndex())
one = Scheduler(
    make_queue("fcfs"), manager, max_num_seqs=2, max_num_batched_tokens=20, on_token=print,
    max_model_len=100, prefix_cache=manager,
)
for i in range(2):
    one.add([Sequence(i, Request(str(i), (1, 2, 3, 4, 5, 6), SamplingParams()))])
print([(item.start, item.num_tokens) for item in one.schedule().scheduled])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == "[(0, 6), (4, 2)]\n"


def test_the_command_answers_as_m1_does(tiny: TinyModel) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "m6_prefix", "hello", "--raw", *GREEDY_FLAGS,
            "--max-tokens", "6", "--model", str(tiny.folder), "--device", "cpu",
            "--num-blocks", "64", "--prefix-index", "tree",
        ],
        capture_output=True, cwd=ROOT, timeout=240, env=os.environ | {"PYTHONUTF8": "1"},
    )  # fmt: skip
    assert (done.returncode, done.stdout.decode()) == (0, text_of(tiny, "hello", 6) + "\n")
