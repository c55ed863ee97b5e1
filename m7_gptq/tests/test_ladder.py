"""The ladder: who serves what, what is reserved for it, and what is computed from the rows."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from common.outputs import RequestOutput
from common.results import Result, Row, read_result, row
from common.serve import run_batch
from common.testing.conformance import ids_of
from common.workload import Workload
from m1_basic.benchmarks.command import bench
from m2_batching.tests.bench_runs import medians, write_wide_model
from m4_flash.tests.bench_runs import write_half_model
from m7_gptq.benchmarks import ladder
from m7_gptq.benchmarks.ladder_gains import derived_rows, summary
from m7_gptq.benchmarks.ladder_rungs import EIGHT_BIT_HEAD, FOUR_BITS, sizes
from m7_gptq.linear import GPTQLinear

STAGES = ("m1_basic", "m2_batching", "m3_paged", "m4_flash", "m5_chunked", "m6_prefix", "m7_gptq")
RUNGS = [*((stage, "float32") for stage in STAGES), ("m7_gptq", FOUR_BITS)]
SIZE = sizes(Namespace(smoke=True))
MEASURED = {
    "output_throughput": "tok/s", "ttft_p50": "s", "time_per_token": "s", "duration": "s",
    "weight_bytes": "B", "kv_bytes": "B", "activation_peak": "B", "total_bytes": "B",
}  # fmt: skip
GAINS = ("throughput_gain", "ttft_gain", "time_per_token_gain")
TOKEN_BYTES = 3 * 2 * 2 * 32 * 4  # layers, K and V, KV heads, head_dim, float32


class Ran:
    """A smoke run: its file, its last line, and every round of the workload, in order."""

    def __init__(self, model: Path, out: Path, device: str, *more: str) -> None:
        self.served: list[tuple[Any, Workload, list[RequestOutput]]] = []
        command = ["--smoke", "--model", str(model), "--device", device, "--out", str(out), *more]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ladder, "run_batch", self._watched)
            assert (
                bench("m7_gptq", ("accuracy", "kernels", "ladder"), [*command, "--only", "ladder"])
                == 0
            )
        (path,) = out.glob("*/m7_gptq-ladder.json")
        self.result = read_result(path)

    def _watched(self, engine: Any, workload: Workload) -> list[RequestOutput]:
        outputs = run_batch(engine, workload)
        if workload != SIZE.warm_up:
            self.served.append((engine, workload, outputs))
        return outputs


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wide_model(tmp_path_factory.mktemp("wide"))


@pytest.fixture(scope="module")
def ran(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return Ran(model, tmp_path_factory.mktemp("out"), "cpu", "--repeat", "2")


@pytest.fixture(scope="module")
def result(ran: Ran) -> Result:
    return ran.result


def of(result: Result, stage: str, weights: str = "float32") -> dict[str, float]:
    return medians(result, engine=stage, weights=weights)


class TestASmokeRun:
    def test_every_stage_has_every_row(self, result: Result) -> None:
        assert list(dict.fromkeys((r["engine"], r["weights"]) for r in result.rows)) == RUNGS
        for stage, weights in RUNGS:
            rows = result.select(engine=stage, weights=weights)
            units = {item["metric"]: item["unit"] for item in rows}
            expected = dict(MEASURED)
            if stage not in STAGES[:2]:
                expected |= {"preemptions": "count", "bytes_saved": "share"}
            if stage != "m1_basic":
                expected |= dict.fromkeys((*GAINS, "geometric_mean"), "ratio")
            if stage in ("m6_prefix", "m7_gptq"):
                expected["cached_tokens"] = "tokens"
            assert units == expected
            runs = {item["metric"]: item["n"] for item in rows}
            assert (runs["output_throughput"], runs["time_per_token"]) == (2, 2)

    def test_all_serve_the_same_and_m1_the_first_of_them(self, ran: Ran, result: Result) -> None:
        whole = [SIZE.workload] * 2 * (len(RUNGS) - 1)
        assert [w for _, w, _ in ran.served] == [SIZE.workload.subset(2)] * 2 + whole
        assert result.workload == SIZE.workload.info
        assert {item["requests"] for item in result.select(engine="m1_basic")} == {2}
        assert result.config["m1_requests"] == 2
        assert any(note.startswith("M1 serves the first 2 of 4 requests.") for note in result.notes)

    def test_float_stages_give_the_same_tokens(self, ran: Ran) -> None:
        first, *others = (ids_of(outputs) for _, _, outputs in ran.served[:-2])
        assert len(first) == 2
        assert all(ids[:2] == first for ids in others)
        assert len({tuple(map(tuple, ids)) for ids in others[1:]}) == 1

    def test_four_bits_are_in_the_layers(self, ran: Ran, result: Result) -> None:
        engine = ran.served[-1][0]
        assert isinstance(engine.model.get_submodule("layers.0.mlp.down"), GPTQLinear)
        assert result.config["group_size"] == 32
        four, dense = (
            of(result, "m7_gptq", form)["weight_bytes"] for form in (FOUR_BITS, "float32")
        )
        assert four < dense

    def test_each_round_begins_with_an_empty_cache(self, result: Result) -> None:
        """The system prompt is computed once, by the first of four requests."""
        for weights in ("float32", FOUR_BITS):
            (hits,) = result.select(metric="cached_tokens", engine="m7_gptq", weights=weights)
            assert (hits["min"], hits["max"]) == (3 * 32, 3 * 32)

    def test_gains_are_ratios_of_the_rows(self, result: Result) -> None:
        base = of(result, "m1_basic")
        for stage, weights in RUNGS[1:]:
            value = of(result, stage, weights)
            more = value["output_throughput"] / base["output_throughput"]
            sooner = base["ttft_p50"] / value["ttft_p50"]
            shorter = base["time_per_token"] / value["time_per_token"]
            assert [value[name] for name in GAINS] == pytest.approx([more, sooner, shorter])
            mean = (more * sooner * shorter) ** (1 / 3)
            assert value["geometric_mean"] == pytest.approx(mean)

    def test_bytes_add_up(self, result: Result) -> None:
        below = of(result, "m2_batching")["total_bytes"]
        for stage, weights in RUNGS:
            value = of(result, stage, weights)
            parts = value["weight_bytes"] + value["kv_bytes"] + value["activation_peak"]
            assert value["total_bytes"] == parts
            if "bytes_saved" in value:
                assert value["bytes_saved"] == pytest.approx(1 - parts / below)

    def test_what_is_reserved(self, result: Result) -> None:
        """Places by hand: 46 tokens a seat; three blocks of 16 each; two of them shared."""
        places = {
            "m1_basic": 46, "m2_batching": 4 * 46, "m3_paged": 4 * 48, "m4_flash": 4 * 48,
            "m5_chunked": 4 * 48, "m6_prefix": 32 + 4 * 16, "m7_gptq": 32 + 4 * 16,
        }  # fmt: skip
        found = {stage: of(result, stage)["kv_bytes"] / TOKEN_BYTES for stage in places}
        assert found == places
        assert {item["median"] for item in result.select(metric="preemptions")} == {0}

    def test_the_summary(self, result: Result) -> None:
        best = max(RUNGS[-2:], key=lambda rung: of(result, *rung)["geometric_mean"])
        value, four = of(result, *best), of(result, "m7_gptq", FOUR_BITS)
        assert summary(result) == (
            f"m7_gptq ladder, {best[1]}: {value['geometric_mean']:.3g} times M1 "
            f"(throughput {value['throughput_gain']:.3g}, first token {value['ttft_gain']:.3g}, "
            f"time per token {value['time_per_token_gain']:.3g}); "
            f"4-bit takes {four['bytes_saved']:.1%} fewer bytes than M2"
        )


def rows_of(
    stage: str, weights: str, speed: float, first: float, token: float, total: float
) -> list[Row]:
    labels: dict[str, Any] = {"engine": stage, "weights": weights, "requests": 4}
    return [
        row("output_throughput", "tok/s", speed, **labels),
        row("ttft_p50", "s", first, **labels),
        row("time_per_token", "s", token, **labels),
        row("total_bytes", "B", total, **labels),
    ]


class TestArithmetic:
    def test_gains_and_savings(self) -> None:
        rows = [
            *rows_of("m1_basic", "float32", 10, 8.0, 0.5, 50),
            *rows_of("m2_batching", "float32", 20, 8.0, 0.25, 100),
            *rows_of("m7_gptq", "float32", 80, 2.0, 0.25, 30),
            *rows_of("m7_gptq", FOUR_BITS, 5, 16.0, 1.0, 20),
        ]
        found = {(r["engine"], r["weights"], r["metric"]): r["median"] for r in derived_rows(rows)}
        ratios = {
            ("m2_batching", "float32"): (2, 1, 2),
            ("m7_gptq", "float32"): (8, 4, 2),
            ("m7_gptq", FOUR_BITS): (0.5, 0.5, 0.5),
        }
        for key, values in ratios.items():
            assert tuple(found[(*key, name)] for name in GAINS) == values
        assert found["m7_gptq", "float32", "geometric_mean"] == pytest.approx(4)
        assert found["m2_batching", "float32", "geometric_mean"] == pytest.approx(4 ** (1 / 3))
        assert found["m7_gptq", "float32", "bytes_saved"] == pytest.approx(0.7)
        assert found["m7_gptq", FOUR_BITS, "bytes_saved"] == pytest.approx(0.8)
        assert ("m2_batching", "float32", "bytes_saved") not in found
        assert not [key for key in found if key[0] == "m1_basic"]

    def test_a_slow_call_stays_alone(self) -> None:
        calls: list[int] = []

        def call() -> int:
            calls.append(len(calls))
            return calls[-1]

        assert ladder.rounds(call, 3, slow=60.0) == [0, 1, 2]
        assert ladder.rounds(call, 3, slow=0.0) == [3]
        assert ladder.rounds(call, 2, slow=float("inf")) == [4, 5]


@pytest.mark.gpu
def test_on_a_gpu(tmp_path: Path) -> None:
    """Our kernels, recorded steps, 4-bit layers with either head; the profiler from M4 on."""
    result = Ran(
        write_half_model(tmp_path / "model"), tmp_path / "out", "cuda", "--repeat", "1"
    ).result
    forms = ["bfloat16"] * 6 + [FOUR_BITS, EIGHT_BIT_HEAD]
    rungs = list(dict.fromkeys((item["engine"], item["weights"]) for item in result.rows))
    assert rungs == list(zip([*STAGES, "m7_gptq"], forms, strict=True))
    for stage, weights in rungs:
        value = of(result, stage, weights)
        assert ("busy" in value) == (stage not in STAGES[:3])
        assert 0 < value.get("busy", 1.0) <= 1
        assert value["activation_peak"] > 0
        assert value["reserved_peak"] >= value["total_bytes"]
        assert value.get("preemptions", 0) == 0
    assert ladder.BUSY_NOTE in result.notes
