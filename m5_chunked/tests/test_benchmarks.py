"""The benchmarks at their smallest: who is served how, what is measured, what is written."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from common.model_costs import decode_bytes
from common.profiling import KernelProfile
from common.results import Result, Row, read_result
from common.testing.conformance import ids_of
from common.workload import Workload, long_among_short, random_lengths
from m2_batching.tests.bench_runs import (
    BANDWIDTH,
    SERVED,
    SmokeRun,
    medians,
    smoke,
)
from m4_flash.benchmarks import throughput as m4_throughput
from m4_flash.engine import LLMEngine as M4Engine
from m5_chunked.benchmarks import chunk_size, gaps, speed, throughput
from m5_chunked.benchmarks.landing import Case
from m5_chunked.benchmarks.variants import UNCHUNKED, Variant
from m5_chunked.engine import LLMEngine

ROOT = Path(__file__).resolve().parents[2]
SMOKE = Namespace(smoke=True, device="cpu")
NAMES = ("gaps", "throughput", "chunk_size")
VARIANTS: list[tuple[str, int | None]] = [
    ("m4_flash", None), ("m5_chunked", 16), ("m5_chunked", UNCHUNKED),
]  # fmt: skip


@pytest.fixture(scope="module")
def ran(wide_model: Path, tmp_path_factory: pytest.TempPathFactory) -> SmokeRun:
    """All benchmarks, once; medians of three."""
    return smoke("m5_chunked", NAMES, wide_model, tmp_path_factory.mktemp("out"), throughput, 3)


class TestVariants:
    def test_one_engine_serves_every_budget(self, pair: tuple[M4Engine, LLMEngine]) -> None:
        """The same requests, the same tokens, in steps of each budget."""
        m4, m5 = pair
        assert m4.kv_bytes() == m5.kv_bytes()
        workload = long_among_short(2, 4, 6, long_len=40)
        prompts, params = workload.prompts, workload.sampling_params
        expected = ids_of(Variant(m4).ready().generate(prompts, params))
        steps = {}
        for budget, threshold in ((8, 0), (20, 0), (20, 10), (UNCHUNKED, 0)):
            before = m5.stats().num_steps
            outputs = Variant(m5, budget, threshold).ready().generate(prompts, params)
            assert ids_of(outputs) == expected
            steps[budget, threshold] = m5.stats().num_steps - before
        assert steps == {(8, 0): 8, (20, 0): 6, (20, 10): 6, (UNCHUNKED, 0): 6}

    def test_a_busy_engine_keeps_its_budget(self, m5: LLMEngine) -> None:
        name = m5.add_request([1, 2, 3])
        with pytest.raises(AssertionError, match="m5_chunked 64 0 is still at work"):
            Variant(m5, 64).ready()
        m5.abort(name)
        Variant(m5, 64, 5).ready()
        assert m5.scheduler.max_num_batched_tokens == 64
        assert m5.scheduler.long_prefill_token_threshold == 5

    def test_a_budget_below_the_seats_is_refused(self, m5: LLMEngine) -> None:
        with pytest.raises(AssertionError, match="3 tokens for 4 seats"):
            Variant(m5, 3).ready()

    def test_names_and_labels_tell_them_apart(self, m5: LLMEngine) -> None:
        variants = [Variant(m5, 16), Variant(m5, 16, 8), Variant(m5, 32)]
        assert len({variant.name for variant in variants}) == 3
        assert variants[1].labels == {"engine": "m5_chunked", "budget": 16, "threshold": 8}


class TestGaps:
    def test_every_variant_is_measured_at_every_interval(self, ran: SmokeRun) -> None:
        result = ran.results["gaps"]
        for engine, budget in VARIANTS:
            for interval in (0.02, 0.0):
                labels: dict[str, Any] = {"engine": engine, "budget": budget}
                value = medians(result, **labels, interval=interval)  # type: ignore[arg-type]
                assert {"output_throughput", "streams_at_end", "stream_ttft_p50"} <= set(value)
                assert ("throughput_over_m4" in value) == (budget is not None)
                assert value["preemptions"] == 0
                assert ("long_ttft_p50" in value) == (interval > 0)
                assert ("gap_reduction_p95" in value) == (interval > 0 and budget is not None)
                if interval:
                    assert 0 < value["gaps_p50"] <= value["gaps_p95"] <= value["gaps_max"]
        workload = gaps.sizes(Namespace(smoke=True, device="cpu")).workload(0.02)
        assert result.workload == workload.info
        assert f"sha256 {workload.hash}" in "".join(result.notes)
        assert ran.summaries[0].startswith("m5_chunked, budget ")


class TestThroughput:
    def test_both_stages_serve_the_same_in_turn(self, ran: SmokeRun) -> None:
        workload = random_lengths(4, (4, 8), (2, 6), temperature=0.0)
        assert [stage for stage, _, _ in ran.served] == ["m4_flash", "m5_chunked"] * 4
        assert [w for _, w, _ in ran.served] == [workload.subset(2)] * 2 + [workload] * 6
        for (_, _, below), (_, _, ours) in zip(ran.served[::2], ran.served[1::2], strict=True):
            assert ids_of(ours) == ids_of(below)
        assert ran.results["throughput"].workload == workload.info

    def test_rows(self, ran: SmokeRun) -> None:
        result = ran.results["throughput"]
        outputs = [params.max_tokens for params in throughput.sizes(SMOKE)[0].sampling_params]
        units = SERVED | {"sequences_per_step": "count", "preemptions": "count"}
        for engine, more in (("m4_flash", {}), ("m5_chunked", {"throughput_over_m4": "ratio"})):
            rows = result.select(engine=engine)
            assert {row["metric"]: row["unit"] for row in rows} == units | more
            value = medians(result, engine=engine)
            tokens = value["output_throughput"] * value["duration"]
            assert tokens == pytest.approx(sum(outputs))
            # All four begin in the first step, and one token each is of a prefill.
            assert value["sequences_per_step"] == pytest.approx((sum(outputs) - 4) / max(outputs))

    def test_ratios_are_of_the_same_round(self, ran: SmokeRun) -> None:
        result = ran.results["throughput"]
        (ratio,) = result.select(metric="throughput_over_m4")
        (ours,) = result.select(metric="output_throughput", engine="m5_chunked")
        (below,) = result.select(metric="output_throughput", engine="m4_flash")
        assert ratio["n"] == ours["n"] == below["n"] == 3
        assert ours["min"] / below["max"] <= ratio["min"]
        assert ratio["max"] <= ours["max"] / below["min"]

    def test_the_summary_is_reached_over_reachable(self, ran: SmokeRun, m5: LLMEngine) -> None:
        result = ran.results["throughput"]
        value, info = medians(result, engine="m5_chunked"), result.workload
        assert info is not None
        batch = value["sequences_per_step"]
        context = (info.prompt_tokens + info.max_output_tokens // 2) // 4
        moved = decode_bytes(m5.model.config, round(batch), context, "float32")
        share = moved * value["output_throughput"] / batch / BANDWIDTH
        assert f" tok/s · MBU {share:.1%} of " in ran.summaries[1]
        ratio = f"{value['throughput_over_m4']:.3f} of m4_flash"
        assert ran.summaries[1].startswith(f"m5_chunked, random lengths, {ratio}: ")

    def test_five_rounds_at_least_unless_it_is_a_smoke_run(
        self,
        args: Namespace,
        pair: tuple[M4Engine, LLMEngine],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        seen: list[int] = []

        class EnoughError(Exception):
            pass

        def served(_variants: list[Variant], _workload: Workload, rounds: int) -> list[Row]:
            seen.append(rounds)
            raise EnoughError

        monkeypatch.setattr(throughput, "engines", lambda _args, **_limits: pair)
        monkeypatch.setattr(throughput, "served_rows", served)
        monkeypatch.setattr(throughput, "run_batch", lambda _engine, _workload: [])
        for smallest, repeat in ((True, 2), (False, 3), (False, 7)):
            args.smoke, args.repeat = smallest, repeat
            with pytest.raises(EnoughError):
                throughput.run(args, [])
        assert seen == [2, 5, 7]

    @pytest.mark.parametrize(
        ("device", "full", "budgets"),
        [
            ("cuda", False, (UNCHUNKED,)), ("cuda", True, (UNCHUNKED, 2048, 512)),
            ("cpu", False, (UNCHUNKED,)), ("cpu", True, (UNCHUNKED, 64)),
        ],
    )  # fmt: skip
    def test_sizes(self, device: str, full: bool, budgets: tuple[int, ...]) -> None:
        size = throughput.sizes(Namespace(smoke=False, device=device, full=full))
        workload, found, longest, pool = size
        assert found == budgets
        for item in workload.requests:
            tokens = len(item.prompt_token_ids) + item.sampling_params.max_tokens
            assert tokens <= longest
        args = Namespace(smoke=False, device=device, full=False)
        assert pool == m4_throughput.sizes(args).pool_tokens, "as much as M4 has"
        assert len(workload.requests) <= min(budgets), "each seat a token"


class TestChunkSize:
    @pytest.fixture
    def result(self, ran: SmokeRun) -> Result:
        return ran.results["chunk_size"]

    def test_points_of_the_curve(self, result: Result) -> None:
        for engine, budget, threshold in (
            ("m4_flash", None, None), ("m5_chunked", 16, 0), ("m5_chunked", 16, 8),
            ("m5_chunked", UNCHUNKED, 0),
        ):  # fmt: skip
            rows = result.select(engine=engine, budget=budget, threshold=threshold)
            assert {(row["unit"], row["n"], row["prompt_tokens"]) for row in rows} == {("s", 3, 64)}
            value = {str(row["metric"]): row for row in rows}
            assert set(value) == {
                "long_ttft", "short_ttft", "gap_p50", "gap_p95", "largest_gap", "step_time",
            }  # fmt: skip
            assert 0 < value["gap_p50"]["min"] <= value["gap_p95"]["max"]
            assert value["gap_p95"]["max"] <= value["largest_gap"]["max"]
        assert len(result.rows) == 4 * 6
        assert (result.config["streams"], result.config["long_prompt"]) == (2, 64)

    def test_the_summary_names_the_smallest_gap(self, ran: SmokeRun, result: Result) -> None:
        points = result.select(metric="largest_gap", engine="m5_chunked", threshold=0)
        best = min(points, key=lambda item: float(item["median"]))
        expected = (
            f"m5_chunked, 64 tokens at budget {best['budget']}, "
            f"largest gap {best['median'] * 1e3:.1f} ms, TTFT "
        )
        assert ran.summaries[2].startswith(expected)

    @pytest.mark.parametrize(
        ("device", "full", "case", "rounds"),
        [
            ("cuda", False, Case(32, 128, 8192), 5), ("cpu", False, Case(4, 32, 512), 1),
            ("cpu", True, Case(4, 32, 1024), 3),
        ],
    )  # fmt: skip
    def test_sizes(self, device: str, full: bool, case: Case, rounds: int) -> None:
        args = Namespace(smoke=False, device=device, full=full, repeat=3)
        found, budgets, often = chunk_size.sizes(args)
        assert (found, often) == (case, rounds)
        assert list(budgets) == sorted(budgets)
        assert budgets[0] >= case.streams + 2, "each seat a token"
        assert budgets[-1] == UNCHUNKED


def test_files_name_no_folder_of_this_machine(ran: SmokeRun, wide_model: Path) -> None:
    assert set(ran.results) == set(NAMES)
    assert str(wide_model.parent) not in ran.text


def test_the_command_itself_refuses_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "m5_chunked.benchmarks", "--only", "nothing"],
        capture_output=True, text=True, cwd=ROOT, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert all(repr(name) in done.stderr for name in NAMES)
    assert done.stderr.count("\n") == 1


@pytest.mark.gpu
def test_benchmarks_on_a_gpu(tmp_path: Path) -> None:
    """Our kernels, recorded steps, every variant."""
    from m1_basic.benchmarks.command import bench
    from m4_flash.tests.bench_runs import write_half_model

    folder = write_half_model(tmp_path / "model")
    command: list[Any] = ["--smoke", "--model", str(folder), "--device", "cuda", "--repeat", "1"]
    assert bench("m5_chunked", NAMES, [*command, "--out", str(tmp_path / "out")]) == 0
    for name in NAMES:
        (path,) = (tmp_path / "out").glob(f"*/m5_chunked-{name}.json")
        result = read_result(path)
        assert (result.config["attention_backend"], result.config["graphs"]) == ("triton", True)
        assert {row["engine"] for row in result.rows} == {"m4_flash", "m5_chunked"}


class TestSpeed:
    """What the engine does with everything on, and without one thing at a time."""

    def test_every_variant_serves_everything(self, wide_model: Path, tmp_path: Path) -> None:
        from m1_basic.benchmarks.command import bench

        command = ["--smoke", "--model", str(wide_model), "--device", "cpu", "--repeat", "1"]
        assert bench("m5_chunked", ["speed"], [*command, "--out", str(tmp_path)]) == 0
        (path,) = tmp_path.glob("*/m5_chunked-speed.json")
        result = read_result(path)
        for variant in ("all on", "PyTorch's products"):
            (step,) = result.select(metric="step_time", variant=variant)
            (rate,) = result.select(metric="decode_throughput", variant=variant)
            assert rate["median"] == pytest.approx(1 / step["median"])
            (served,) = result.select(metric="output_throughput", variant=variant)
            assert served["workload"] == "fixed-2x8+4"
        slower = {row["workload"]: row["median"] for row in result.select(metric="speedup")}
        on, off = (
            speed.times_of(result.select(variant=name)) for name in ("all on", "PyTorch's products")
        )
        assert slower == pytest.approx({name: off[name] / on[name] for name in on})
        assert len(slower) == 2

    def test_idle_time_counts_long_gaps_only(self) -> None:
        us = 1e-6
        spans = ((0.0, 10 * us), (11 * us, 20 * us), (15 * us, 30 * us), (50 * us, 60 * us))
        profile = KernelProfile(1.0, spans)
        assert speed.idle_time(profile) == pytest.approx(20 * us)
        assert speed.idle_time(profile, least=0.5 * us) == pytest.approx(21 * us)
        assert speed.idle_time(KernelProfile(1.0, ())) == 0

    def test_a_gpu_serves_the_large_workload_and_switches_everything(self) -> None:
        gpu = speed.sizes(Namespace(smoke=False, device="cuda", full=False))
        assert gpu.whole is not None
        assert len(gpu.whole.requests) == gpu.max_num_seqs == 256
        longest = max(gpu.max_model_len, gpu.prompt + gpu.steps + 1)
        assert longest == gpu.max_model_len
        cpu = speed.sizes(Namespace(smoke=False, device="cpu", full=False))
        assert cpu.whole is None


@pytest.mark.gpu
def test_exposed_host_time(tmp_path: Path) -> None:
    """Every switch on a GPU, and the gaps while everybody decodes."""
    from common.workload import fixed
    from m4_flash.tests.bench_runs import write_half_model

    folder = write_half_model(tmp_path / "model")
    args = Namespace(
        smoke=False, full=False, device="cuda", dtype="auto", model=str(folder), repeat=1
    )
    size = speed.Sizes(16, 4, (fixed(2, 8, 4),), fixed(4, 8, 60), 128, 4, 1024)
    for name, options in speed.variants(args, []).items():
        rows = speed.variant_rows(name, options, size, args)
        (exposed,) = [row for row in rows if row["metric"] == "exposed_host"]
        assert 0 <= exposed["median"] < 1
        assert exposed["running"] == 4
