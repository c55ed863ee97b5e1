"""Without a GPU, Triton interprets its kernels; engines that the benchmarks' tests share.

Triton reads the variable when kernels are made, so nothing that makes any is imported before it.
"""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from m4_flash.engine import LLMEngine as M4Engine
    from m5_chunked.engine import LLMEngine as M5Engine

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with all ids of the workloads' prompts."""
    from m2_batching.tests.bench_runs import write_wide_model

    return write_wide_model(tmp_path_factory.mktemp("wide"))


@pytest.fixture(scope="session")
def pair(wide_model: Path) -> tuple[M4Engine, M5Engine]:
    """Both engines that the benchmarks compare; every test leaves them idle."""
    from m4_flash.tests.bench_runs import bench_args
    from m5_chunked.benchmarks.variants import engines

    return engines(bench_args(wide_model), max_model_len=96, max_num_seqs=4, pool_tokens=512)


@pytest.fixture
def m5(pair: tuple[M4Engine, M5Engine]) -> M5Engine:
    """This stage's."""
    return pair[1]


@pytest.fixture
def args(wide_model: Path) -> Namespace:
    """The command line of a smoke run on a CPU."""
    from m4_flash.tests.bench_runs import bench_args

    return bench_args(wide_model)
