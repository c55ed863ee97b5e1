import re
import subprocess
import sys
from pathlib import Path

import pytest

from common import bench
from common.cli_errors import OneLineParser
from common.environment import REPOSITORY
from common.errors import ConfigError, FoloError
from common.metrics import Peak, Utilization, serving_metrics
from common.outputs import CompletionOutput, RequestMetrics, RequestOutput
from common.results import read_result, write_result
from common.tests.sample_results import result


class TestCommand:
    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "common.bench", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)

    def test_compare_refuses_in_one_line(self, tmp_path: Path) -> None:
        one = write_result(result(), tmp_path / "a")
        two = write_result(result(commit="f" * 40), tmp_path / "b")
        done = self.run("compare", str(one), str(two))
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr == "error: different commits: 0123456789 and ffffffffff\n"

    def test_compare_and_show(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        one = write_result(result(), tmp_path / "a")
        two = write_result(result("m2_batching", 0.01), tmp_path / "b")
        assert bench.main(["compare", str(one), str(two)]) == 0
        assert re.search(r"tpot +s +0.02 +0.01 +0.5", capsys.readouterr().out)
        assert bench.main(["show", str(one)]) == 0
        assert "m1_basic-latency" in capsys.readouterr().out
        assert bench.main(["commit"]) == 0
        assert capsys.readouterr().out.strip()

    def test_peaks(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(
            "common.peaks.measured_bandwidth", lambda _: Peak(2e10, "measured", "x")
        )
        monkeypatch.setattr("common.peaks.measured_flops", lambda *_: Peak(1e11, "measured", "x"))
        assert bench.main(["peaks"]) == 0
        assert capsys.readouterr().out == (
            "x: copy 20.0 GB/s read and written, float32 matrix product 0.100 TFLOP/s\n"
        )

    @pytest.mark.parametrize("arguments", [[], ["fly"], ["show"], ["show", "none.json"]])
    def test_bad_use(self, arguments: list[str]) -> None:
        with pytest.raises(FoloError):
            bench.main(arguments)


class TestBenchParts:
    def outputs(self, count: int) -> list[RequestOutput]:
        times = tuple(1.0 + 0.5 * i for i in range(count))
        metrics = RequestMetrics(0.0, times, times[-1])
        completion = CompletionOutput(0, "", tuple(range(count)), "length")
        return [RequestOutput("r", None, (1, 2), (completion,), True, metrics)]

    def test_serving_rows(self) -> None:
        rows = bench.serving_rows([serving_metrics(self.outputs(3))] * 2, engine="m1")
        found = {item["metric"]: item["median"] for item in rows}
        assert found == {
            "output_throughput": 1.5,
            "total_throughput": 2.5,
            "duration": 2.0,
            "ttft_p50": 1.0,
            "ttft_p99": 1.0,
            "tpot_p50": 0.5,
            "tpot_p99": 0.5,
            "itl_p50": 0.5,
            "itl_p99": 0.5,
            "largest_gap": 0.5,
        }
        assert {item["n"] for item in rows} == {2}
        assert {item["engine"] for item in rows} == {"m1"}

    def test_single_tokens_have_no_gap_rows(self) -> None:
        rows = bench.serving_rows([serving_metrics(self.outputs(1))])
        assert {"tpot_p50", "itl_p50", "largest_gap"}.isdisjoint(item["metric"] for item in rows)

    def test_summary_line(self) -> None:
        used = Utilization(1.5e12, Peak(3e12, "measured", "H100"))
        computed = Utilization(98.9e12, Peak(989e12, "spec sheet", "H100"))
        assert bench.summary_line("m1_basic", 618.24, used, computed) == (
            "m1_basic: 618.2 tok/s · MBU 50.0% of 3,000 GB/s (measured) · "
            "MFU 10.0% of 989 TFLOP/s (spec sheet)"
        )
        assert bench.summary_line("x", 5, None, None) == "x: 5 tok/s · MBU – · MFU –"

    def test_finish_writes_and_ends_with_the_summary(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = bench.finish(result(), "the last line", tmp_path)
        assert read_result(path) == result()
        assert capsys.readouterr().out.endswith("m1_basic-latency.json\nthe last line\n")

    def test_common_flags(self) -> None:
        parser = OneLineParser()
        bench.add_bench_arguments(parser)
        args = parser.parse_args(["--full", "--repeat", "5", "--out", "x"])
        assert (args.full, args.smoke, args.repeat, args.out) == (True, False, 5, Path("x"))
        for bad in (["--full", "--smoke"], ["--repeat", "0"], ["--repeat", "x"]):
            with pytest.raises(ConfigError):
                parser.parse_args(bad)
