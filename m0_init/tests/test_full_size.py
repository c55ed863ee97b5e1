"""A checkpoint of Qwen3-0.6B's exact shape: written by transformers, loaded, run."""

import gc
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from common.qwen3 import QWEN3_0_6B, QWEN3_0_6B_HF_CONFIG
from common.testing.checkpoints import write_checkpoint
from common.testing.oracle import HFOracle
from m0_init.forward import greedy
from m0_init.loader import load

PROMPT = [785, 6722, 315, 9625, 374, 12_095, 11, 323]
NEW_TOKENS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """1.2 GB on disk, removed after the module."""
    path = tmp_path_factory.mktemp("qwen3-0.6b")
    write_checkpoint(path, QWEN3_0_6B_HF_CONFIG, seed=0, shards=2, dtype="bfloat16")
    yield path
    shutil.rmtree(path)


def test_the_files_are_those_of_a_sharded_tied_checkpoint(folder: Path) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 1_192_099_840
    assert len(set(index["weight_map"].values())) == 2
    assert "lm_head.weight" not in index["weight_map"]
    assert len(index["weight_map"]) == 2 + 28 * 11


@pytest.mark.timeout(900)  # well below a minute on two idle cores
def test_it_loads_and_gives_the_ids_of_transformers(folder: Path) -> None:
    # One model at a time: two in float32 would take 4.8 GB.
    oracle = HFOracle(folder)
    expected = oracle.greedy(PROMPT, NEW_TOKENS)
    margin = oracle.min_margin(PROMPT, NEW_TOKENS)
    del oracle
    gc.collect()
    assert margin >= 1e-3
    assert len(set(expected)) > 1

    loaded = load(folder, dtype="float32", device="cpu", max_positions=64)
    model = loaded.model
    assert loaded.config.num_layers == QWEN3_0_6B.num_layers
    assert sum(p.numel() for p in model.parameters()) == 596_049_920
    assert model.lm_head.weight is model.embed_tokens.weight
    assert loaded.report.num_files == 2
    assert loaded.report.num_bytes == 1_192_099_840
    assert torch.isfinite(model.embed_tokens.weight).all()
    assert greedy(model, PROMPT, NEW_TOKENS) == expected
