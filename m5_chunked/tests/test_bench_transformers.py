"""The comparison with transformers: the same requests, both batches, ratios of the same round."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from common.results import Result, read_result
from m1_basic.benchmarks.command import bench
from m2_batching.tests.bench_runs import medians
from m5_chunked.benchmarks import transformers
from m5_chunked.benchmarks.transformers import OURS, THEIRS, rows_of


@pytest.fixture(scope="module")
def result(wide_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    out = tmp_path_factory.mktemp("transformers")
    command = ["--smoke", "--model", str(wide_model), "--device", "cpu", "--out", str(out)]
    assert bench("m5_chunked", ("transformers",), [*command, "--repeat", "2"]) == 0
    (path,) = out.glob("*/m5_chunked-transformers.json")
    return read_result(path)


def test_both_engines_answer_the_same_requests(result: Result) -> None:
    workload, batches = transformers.sizes(Namespace(smoke=True))
    assert result.workload == workload.info
    assert result.config["threads"] >= 1
    for batch in batches:
        (same,) = result.select(metric="same_tokens", batch=batch)
        assert same["median"] == 1.0
        for name in (OURS, THEIRS):
            assert medians(result, engine=name, batch=batch)["output_throughput"] > 0


def test_ratios_are_of_the_same_round() -> None:
    ids = [[1, 2], [3, 4]]
    runs = {
        (OURS, 1): [(1.0, ids[:1]), (2.0, ids[:1])],
        (THEIRS, 1): [(2.0, [[1, 9]]), (3.0, [[1, 9]])],
        (OURS, 2): [(1.0, ids), (1.0, ids)],
        (THEIRS, 2): [(4.0, ids), (4.0, ids)],
    }
    rows = rows_of(runs, 2, (1, 2))
    found = {
        (item["metric"], item["engine"], item["batch"]): (item["min"], item["max"]) for item in rows
    }
    assert found == {
        ("output_throughput", OURS, 1): (1.0, 2.0),
        ("output_throughput", THEIRS, 1): (pytest.approx(2 / 3), 1.0),
        ("output_throughput", OURS, 2): (4.0, 4.0),
        ("output_throughput", THEIRS, 2): (1.0, 1.0),
        ("speedup_over_transformers", OURS, 1): (1.5, 2.0),
        ("speedup_over_transformers", OURS, 2): (4.0, 4.0),
        ("same_tokens", OURS, 1): (0.5, 0.5),
        ("same_tokens", OURS, 2): (1.0, 1.0),
        ("speedup_over_batch_1", OURS, 2): (2.0, 4.0),
        ("speedup_over_batch_1", THEIRS, 2): (1.0, pytest.approx(1.5)),
    }
