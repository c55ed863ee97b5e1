import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.environment import REPOSITORY
from common.errors import ConfigError, FoloError
from common.results import (
    ResultError,
    from_json,
    make_result,
    read_result,
    read_results,
    row,
    to_json,
    write_result,
)
from common.tests.sample_results import COMMIT, result
from common.timing import Measurement
from common.workload import fixed


class TestRow:
    def test_by_hand(self) -> None:
        assert row("ttft", "s", Measurement((1.0, 2.0, 4.0)), engine="m1") == {
            "engine": "m1",
            "metric": "ttft",
            "unit": "s",
            "median": 2.0,
            "min": 1.0,
            "max": 4.0,
            "spread": 1.5,
            "n": 3,
        }
        assert row("ttft", "s", 2)["n"] == 1

    def test_refusals(self) -> None:
        with pytest.raises(ResultError, match="must not be named 'median'"):
            row("ttft", "s", 1.0, median=3)
        with pytest.raises(ConfigError, match="at least one value"):
            row("ttft", "s", [])


class TestFiles:
    def test_round_trip(self, tmp_path: Path) -> None:
        path = write_result(result(), tmp_path)
        assert path == tmp_path / "cpu-amd-epyc-2c" / "m1_basic-latency.json"
        assert read_result(path) == result()
        assert read_results(tmp_path) == [result()]

    def test_one_row_a_line(self) -> None:
        lines = to_json(result()).splitlines()
        assert sum(line.startswith('{"') for line in lines) == 3

    def test_without_a_workload(self) -> None:
        bare = result(workload=None, notes=(), config={})
        assert from_json(to_json(bare)) == bare

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda d: d.update(version=2), "version must be 1, got 2"),
            (lambda d: d.pop("commit"), "result has no key 'commit'"),
            (lambda d: d["device"].update(cores="2"), "result.device.cores must be int"),
            (lambda d: d["rows"][0].pop("median"), "rows[0] has no key 'median'"),
            (lambda d: d["rows"][0].update(x=[1]), "rows[0].x must be a scalar, got [1]"),
        ],
    )
    def test_bad_files(
        self, change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
    ) -> None:
        data = json.loads(to_json(result()))
        change(data)
        path = tmp_path / "bad.json"
        path.write_text(json.dumps(data))
        with pytest.raises(ResultError) as caught:
            read_result(path)
        assert message in str(caught.value)
        assert "bad.json" in str(caught.value)
        assert isinstance(caught.value, FoloError)

    def test_no_number(self) -> None:
        with pytest.raises(ResultError, match="m1_basic-latency: not a JSON number"):
            to_json(result(rows=(row("x", "s", float("nan")),)))

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ResultError, match="cannot read result"):
            read_result(tmp_path / "none.json")


class TestMakeResult:
    def test_states_the_facts(self) -> None:
        workload = fixed(2, 3, 4)
        got = make_result(
            "m1_basic",
            "smoke",
            [row("ttft", "s", 1.0)],
            workload=workload,
            config={"model": "/somewhere/models/SmolLM2", "n": 2},
            notes=["a note"],
        )
        assert got.workload == workload.info
        assert got.config["model"] == "SmolLM2"
        assert got.device.kind == "cpu"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", got.created)
        assert got.commit
        assert from_json(to_json(got)) == got
        assert str(REPOSITORY) not in to_json(got)

    def test_threads_are_a_fact_of_a_cpu_run(self) -> None:
        import torch

        got = make_result("m1_basic", "smoke", [])
        assert got.config["torch_threads"] == torch.get_num_threads()

    def test_rows_are_checked(self) -> None:
        with pytest.raises(ResultError, match=r"rows\[0\] has no key 'metric'"):
            make_result("m1_basic", "smoke", [{"median": 1}])

    def test_dirty(self) -> None:
        assert result(commit=f"{COMMIT}-dirty.01234567").is_dirty
        assert not result().is_dirty

    def test_select(self) -> None:
        rows = result().select(metric="tpot", engine="transformers")
        assert [item["median"] for item in rows] == [0.05]
