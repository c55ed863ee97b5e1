"""The start-up benchmark: processes of their own, one cache of kernels, phases that add up."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from common.results import Result, make_result
from m2_batching.tests.bench_runs import medians, write_wide_model
from m4_flash.benchmarks import startup
from m4_flash.tests.bench_runs import bench_args, run_bench, write_half_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wide_model(tmp_path_factory.mktemp("wide"))


@pytest.fixture
def args(model: Path) -> Namespace:
    return bench_args(model)


class TestStartup:
    def test_phases_of_a_process(self, model: Path, tmp_path: Path) -> None:
        result = run_bench("startup", model, tmp_path, "cpu")
        value = medians(result, engine="m4_flash", backend="sdpa", triton_cache="unused")
        phases = ("import", "load", "pool", "graphs", "build", "first_request", "second_request")
        assert set(value) == {"num_graphs", *phases}
        assert {row["n"] for row in result.rows} == {1}
        assert value["num_graphs"] == value["graphs"] == 0
        for row in ("import", "load", "pool", "first_request", "second_request"):
            assert value[row] > 0
        assert value["build"] > value["load"]
        assert result.config["model"] == model.name, "no folder of this machine"

    def test_a_gpu_starts_cold_once_and_then_warm(
        self, args: Namespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folders: list[Path] = []

        def start(_args: Namespace, cache: Path) -> dict[str, float | str]:
            folders.append(cache)
            return {"backend": "triton", "num_graphs": 63, "build": float(len(folders))}

        monkeypatch.setattr(startup, "start", start)
        monkeypatch.setattr(startup, "release", lambda _device: None)
        monkeypatch.setattr(startup, "make_result", self.on_a_cpu)
        args.device, args.smoke, args.repeat = "cuda", False, 3
        result, line = startup.run(args, [])
        found = [(r["triton_cache"], r["metric"], r["median"], r["n"]) for r in result.rows]
        assert found == [
            ("cold", "num_graphs", 63, 1), ("cold", "build", 1, 1),
            ("warm", "num_graphs", 63, 1), ("warm", "build", 2.5, 2),
        ]  # fmt: skip
        assert len(set(folders)) == 1, "the first run fills what the others read"
        assert line == "m4_flash: 2.5 s to build an engine, cache warm"

    @staticmethod
    def on_a_cpu(*call: Any, device: str, **rest: Any) -> Result:
        assert device == "cuda"
        return make_result(*call, **rest)

    def test_a_failed_process_is_reported(self, args: Namespace, tmp_path: Path) -> None:
        args.dtype = "float8"
        with pytest.raises(startup.StartError, match=r"ended with 1: .*float8"):
            startup.start(args, tmp_path)

    def test_a_process_gets_a_limit(
        self, args: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(startup, "TIMEOUT", 0.01)
        with pytest.raises(startup.StartError, match=r"not ready after 0\.01 s"):
            startup.start(args, tmp_path)


@pytest.mark.gpu
def test_startup_on_a_gpu(tmp_path: Path) -> None:
    result = run_bench("startup", write_half_model(tmp_path / "model"), tmp_path, "cuda")
    for cache in ("cold", "warm"):
        (graphs,) = result.select(metric="num_graphs", triton_cache=cache, backend="triton")
        (seconds,) = result.select(metric="graphs", triton_cache=cache)
        assert graphs["median"] > 1
        assert seconds["median"] > 0
