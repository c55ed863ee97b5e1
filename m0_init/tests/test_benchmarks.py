"""The loading benchmark at its smallest, and the parts it measures with."""

import json
import os
from pathlib import Path

import pytest

from common.results import read_result
from common.testing.checkpoints import tiny_config, write_checkpoint
from m0_init.benchmarks.__main__ import main
from m0_init.benchmarks.load_once import storage_bytes
from m0_init.benchmarks.measure import (
    LoadError,
    drop_from_page_cache,
    fill_page_cache,
    load_in_fresh_process,
    weights_only,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of about 24 MB: large enough to show in a process's memory."""
    config = tiny_config("qwen3", hidden=256, vocab=16_384, intermediate=512, tied=False)
    return write_checkpoint(tmp_path_factory.mktemp("m"), config, shards=2, tokenizer=True)


def test_smoke(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--smoke", "--model", str(folder), "--device", "cpu", "--out", str(tmp_path)]
    assert main(command) == 0
    [path] = tmp_path.glob("*/m0_init-load.json")
    result = read_result(path)
    loaders = ("m0_init", "transformers")
    for metric in ("load_time", "first_token_time"):
        found = {item["loader"]: item["median"] for item in result.select(metric=metric)}
        assert set(found) == set(loaders)
        assert all(value > 0 for value in found.values())
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert "s to the first token · transformers" in last
    assert "×" in last
    # The file names no folder of this machine.
    assert str(tmp_path) not in path.read_text()
    assert str(folder.parent) not in path.read_text()


def test_both_loaders_load_the_same_model_and_their_memory_is_seen(folder: Path) -> None:
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    runs = {loader: load_in_fresh_process(loader, folder) for loader in ("m0_init", "transformers")}
    ours, theirs = runs["m0_init"], runs["transformers"]
    assert ours.token == theirs.token
    for run in runs.values():
        assert 0 < run.load_seconds < run.first_token_seconds
    if Path("/proc/self/status").exists():
        # M0 copies into merged matrices; both map the file while they read it.
        assert ours.peak_private is not None
        assert ours.peak_private > 0.9 * size


def test_a_load_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"loading with m0_init failed: .*config\.json"):
        load_in_fresh_process("m0_init", tmp_path)
    with pytest.raises(LoadError, match="loading with nothing failed"):
        load_in_fresh_process("nothing", tmp_path)


def test_weights_only_has_no_tokenizer(folder: Path) -> None:
    with weights_only(folder) as links:
        names = {path.name for path in links.iterdir()}
        index = json.loads((links / "model.safetensors.index.json").read_text())
        assert names == {
            "config.json", "model.safetensors.index.json", *index["weight_map"].values()
        }  # fmt: skip
        fill_page_cache(links)
        assert drop_from_page_cache(links) == hasattr(os, "posix_fadvise")
    assert not links.exists()
    assert (folder / "config.json").exists()


def test_storage_bytes(tmp_path: Path) -> None:
    counters = tmp_path / "io"
    counters.write_text("rchar: 5\nread_bytes: 4096\nwrite_bytes: 0\n")
    assert storage_bytes(counters) == 4096
    counters.write_text("rchar: 5\n")
    assert storage_bytes(counters) is None
    assert storage_bytes(tmp_path / "missing") is None
