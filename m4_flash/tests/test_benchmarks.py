"""The benchmarks at their smallest: who computes what, what is timed, and what ends."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import OutOfMemoryError
from common.metrics import Peak
from common.model_costs import decode_bytes
from common.profiling import KernelProfile
from common.results import Row
from common.testing.conformance import ids_of
from common.workload import Workload, fixed, random_lengths
from m1_basic.benchmarks.latency import one_of_each
from m2_batching.tests.bench_runs import (
    BANDWIDTH,
    FLOPS,
    SERVED,
    SmokeRun,
    medians,
    smoke,
    write_wide_model,
)
from m4_flash.benchmarks import latency, throughput
from m4_flash.benchmarks.engines import (
    announce,
    labels_of,
    m3_engine,
    m4_engine,
    model_shape,
    name_of,
    usable,
)
from m4_flash.tests.bench_runs import NAMES, bench_args, run_bench, write_half_model

ROOT = Path(__file__).resolve().parents[2]
OURS: dict[str, Any] = {"engine": "m4_flash", "backend": "sdpa", "block_size": 16, "graphs": False}
BELOW: dict[str, Any] = {
    "engine": "m3_paged",
    "backend": "paged",
    "block_size": 16,
    "graphs": False,
}
TOKEN_BYTES = 3 * 2 * 2 * 32 * 4  # layers, K and V, KV heads, head_dim, float32


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wide_model(tmp_path_factory.mktemp("wide"))


@pytest.fixture(scope="module")
def ran(model: Path, tmp_path_factory: pytest.TempPathFactory) -> SmokeRun:
    """All benchmarks but the one that starts processes, once; medians of three."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            latency, "measured_bandwidth", lambda _device: Peak(BANDWIDTH, "measured", "a device")
        )
        patch.setattr(
            latency, "measured_flops", lambda _device, _dtype: Peak(FLOPS, "measured", "a device")
        )
        return smoke("m4_flash", NAMES[:3], model, tmp_path_factory.mktemp("out"), throughput, 3)


@pytest.fixture
def args(model: Path) -> Namespace:
    return bench_args(model)


class TestLatency:
    def test_every_engine_serves_every_prompt(self, ran: SmokeRun) -> None:
        result, units = (
            ran.results["latency"],
            {"ttft": ("s", 3), "request_memory": ("B", 1), "peak_memory": ("B", 1)},
        )
        for labels in (OURS, BELOW):
            for prompt in (16, 32):
                rows = result.select(prompt_tokens=prompt, **labels)
                found = {row["metric"]: (row["unit"], row["n"]) for row in rows}
                decode = {"step_time": ("s", 3), "decode_throughput": ("tok/s", 3)}
                assert found == units | (decode if prompt == 16 else {})
        assert len(result.rows) == 2 * (2 * 3 + 2)
        assert result.workload is not None
        assert (result.workload.num_requests, result.workload.prompt_tokens) == (2, 48)

    def test_the_peak_is_what_is_held_and_what_is_added(
        self, ran: SmokeRun, args: Namespace
    ) -> None:
        engine = latency.prompt_engines(args, ("sdpa",), 33)[1]()
        held = engine.model.weight_bytes() + 3 * 16 * TOKEN_BYTES
        assert engine.kv_bytes() == 3 * 16 * TOKEN_BYTES, "one sequence of the longest prompt"
        value = medians(ran.results["latency"], prompt_tokens=32, **OURS)
        assert value["peak_memory"] == held + value["request_memory"]

    def test_what_does_not_fit_is_said_and_ends(
        self, args: Namespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[int] = []

        def tokens(*call: Any) -> Any:
            seen.append(len(call[1]))
            if len(call[1]) > 16:
                raise OutOfMemoryError("a step does not fit cpu: 64 GiB")
            return real(*call)

        real = latency.first_tokens
        monkeypatch.setattr(latency, "first_tokens", tokens)
        prompts, notes = one_of_each((16, 32, 48), 1, 1000), list[str]()
        rows = latency.prompt_rows(
            lambda: m4_engine(args, "naive", max_model_len=64, max_num_seqs=1, pool_tokens=64),
            prompts, args, notes,
        )  # fmt: skip
        assert seen == [16, 32]
        assert [(r["metric"], r["prompt_tokens"]) for r in rows[-1:]] == [("fits", 32)]
        assert (rows[-1]["median"], rows[-1]["backend"]) == (0, "naive")
        assert notes == ["m4_flash naive 16 eager, 32 tokens: a step does not fit cpu: 64 GiB"]

    def test_a_slow_prompt_is_run_once(
        self, args: Namespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = latency.prompt_engines(args, (), 33)[0]()
        assert len(latency.first_tokens(engine, [1] * 8, 3, "cpu")[0]) == 3
        before = engine.stats().num_steps
        assert before == 4, "one whose memory is watched, and three"
        monkeypatch.setattr(latency, "SLOW", 0.0)
        seconds, memory = latency.first_tokens(engine, [1] * 8, 3, "cpu")
        assert (len(seconds), engine.stats().num_steps - before) == (1, 1)
        assert memory.peak >= memory.baseline > 0

    def test_decoding_engines(self, args: Namespace) -> None:
        """Backends that can be recorded run with graphs; one of them and sdpa run without too."""
        makes = latency.decode_engines(args, ("naive", "sdpa", "flash_attn", "triton"), 32)
        asked = [(make.args[1:], make.keywords.get("graphs")) for make in makes]  # type: ignore[attr-defined]
        assert asked == [
            ((), None), (("sdpa",), False), (("flash_attn",), True),
            (("triton",), True), (("triton",), False),
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("device", "full", "lengths", "decode"),
        [
            ("cuda", False, (512, 2048, 4096, 8192, 32768), (512, 129)),
            ("cpu", False, (128, 512), (128, 17)),
            ("cpu", True, (128, 512, 2048), (128, 17)),
        ],
    )
    def test_sizes(
        self, device: str, full: bool, lengths: tuple[int, ...], decode: tuple[int, int]
    ) -> None:
        found = latency.sizes(Namespace(smoke=False, device=device, full=full))
        assert found == (lengths, *decode)

    def test_the_summary_is_the_fastest_stream(self, ran: SmokeRun, args: Namespace) -> None:
        value = medians(ran.results["latency"], prompt_tokens=16, **OURS)
        config = m3_engine(args, max_model_len=8, max_num_seqs=1, pool_tokens=16).model.config
        moved = decode_bytes(config, 1, 18, "float32")
        share = moved * value["decode_throughput"] / BANDWIDTH
        assert ran.summaries[1].startswith("m4_flash one stream, sdpa, eager: ")
        assert f" tok/s · MBU {share:.1%} of " in ran.summaries[1]


class TestThroughput:
    def test_both_stages_serve_the_same_in_turn(self, ran: SmokeRun) -> None:
        workload, batch = random_lengths(4, (4, 8), (2, 6), temperature=0.0), fixed(2, 8, 4)
        both = ["m4_flash", "m3_paged"]
        assert [stage for stage, _, _ in ran.served] == both * (1 + 3 + 3)
        served = [w for _, w, _ in ran.served]
        assert served == [fixed(2, 16, 4)] * 2 + [workload] * 6 + [batch] * 6
        for (_, _, ours), (_, _, below) in zip(ran.served[::2], ran.served[1::2], strict=True):
            assert ids_of(ours) == ids_of(below)
        assert ran.results["throughput"].workload == workload.info

    def test_both_are_measured_alike(self, ran: SmokeRun) -> None:
        result = ran.results["throughput"]
        units = SERVED | {"sequences_per_step": "count", "preemptions": "count"}
        for workload in (random_lengths(4, (4, 8), (2, 6), temperature=0.0), fixed(2, 8, 4)):
            for labels, more in ((OURS, {"speedup_over_m3": "ratio"}), (BELOW, {})):
                rows = result.select(workload=workload.name, **labels)
                assert {row["metric"]: row["unit"] for row in rows} == units | more
                value = medians(result, workload=workload.name, **labels)
                tokens = value["output_throughput"] * value["duration"]
                assert tokens == pytest.approx(workload.max_output_tokens)
                assert value["preemptions"] == 0
        rows = result.select(workload="fixed-2x8+4", metric="sequences_per_step")
        assert [row["median"] for row in rows] == [6 / 4] * 2, "eight tokens, two of them prefill"

    def test_a_part_is_compared_with_itself(
        self, args: Namespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On a GPU: the whole for this stage alone, once the part with M3, then the batches."""
        calls: list[tuple[list[Any], str, int]] = []

        def served(engines: list[Any], workload: Workload, rounds: int) -> list[Row]:
            calls.append((engines, workload.name, rounds))
            return []

        monkeypatch.setattr(throughput, "served_rows", served)
        args.device, args.smoke, args.repeat = "cuda", False, 3
        size, notes = throughput.sizes(args), list[str]()
        ours: list[Any] = ["triton", "flash_attn"]
        throughput.workload_rows(ours, "m3", size, args, notes)  # type: ignore[arg-type]
        whole = "random-256x100-1024+100-1024"
        assert calls == [
            (ours, whole, 3),
            (["triton", "m3"], f"{whole}[:96]", 1),
            ([*ours, "m3"], "fixed-16x512+128", 3),
            ([*ours, "m3"], "fixed-64x512+128", 3),
        ]
        assert "the first 96 requests" in notes[0]
        args.full = True
        throughput.workload_rows(ours, "m3", size, args, notes)  # type: ignore[arg-type]
        assert calls[5][2] == 3

    def test_a_cpu_takes_five_rounds(
        self, args: Namespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rounds: list[int] = []

        def served(_engines: list[Any], _workload: Workload, count: int) -> list[Row]:
            rounds.append(count)
            return []

        monkeypatch.setattr(throughput, "served_rows", served)
        args.smoke = False
        throughput.workload_rows(["m4"], "m3", throughput.sizes(args), args, [])  # type: ignore[arg-type,list-item]
        assert rounds == [5, 5]

    def test_pools_hold_everybody(self) -> None:
        for device, full in (("cpu", False), ("cpu", True), ("cuda", False)):
            size = throughput.sizes(Namespace(smoke=False, device=device, full=full))
            for workload in (size.whole, *size.batches):
                for item in workload.requests:
                    longest = len(item.prompt_token_ids) + item.sampling_params.max_tokens
                    assert longest <= size.max_model_len
                assert len(workload.requests) <= len(size.whole.requests)
            assert size.pool_tokens % 256 == size.m3_pool_tokens % 16 == 0 or device == "cpu"

    def test_busy_is_measured_in_three_parts_of_a_run(
        self, args: Namespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The profiler needs a GPU; here something else stands in its place, and looks."""
        engine = m4_engine(args, "sdpa", max_model_len=32, max_num_seqs=16, pool_tokens=512)
        seen: list[tuple[int, int, int]] = []

        def profile(work: Callable[[], object], device: str) -> KernelProfile:
            assert device == "cpu"
            before, running = engine.stats().num_steps, len(engine.scheduler.running)
            work()
            seen.append(
                (running, engine.stats().num_steps - before, len(engine.scheduler.running))
            )  # fmt: skip
            return KernelProfile(10.0, ((0.0, 2.0), (1.0, 3.0), (6.0, 7.0), (7.0, 8.0)), 0.9)

        monkeypatch.setattr(throughput, "profile_kernels", profile)
        workload = random_lengths(16, (4, 8), (6, 16), temperature=0.0)
        rows = throughput.busy_rows(engine, workload, "cpu", window=2)
        outputs = sorted(params.max_tokens for params in workload.sampling_params)
        assert seen[:2] == [(0, 1, 16), (16, 2, 16)]
        assert seen[2][0] <= 2, "an eighth of the requests is left"
        assert outputs[-1] > outputs[-3], "or there would be no tail"
        assert [r["phase"] for r in rows if r["metric"] == "busy"] == ["prompts", "decode", "tail"]
        decode = {r["metric"]: r["median"] for r in rows if r["phase"] == "decode"}
        assert decode == {
            "busy": 0.5, "kernels_per_step": 2, "profiled_step_time": 5, "nvml_utilization": 0.9,
        }  # fmt: skip
        assert not engine.has_unfinished_requests(), "what was left is given up"

    def test_a_part_without_steps_has_no_row(
        self, args: Namespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def profile(work: Callable[[], object], device: str) -> KernelProfile:
            work()
            return KernelProfile(1.0, ())

        monkeypatch.setattr(throughput, "profile_kernels", profile)
        engine = m4_engine(args, "sdpa", max_model_len=32, max_num_seqs=2, pool_tokens=64)
        rows = throughput.busy_rows(engine, fixed(2, 4, 2), "cpu", window=5)
        assert {row["phase"] for row in rows} == {"prompts", "decode"}
        assert "nvml_utilization" not in {row["metric"] for row in rows}

    def test_the_summary_is_reached_over_reachable(self, ran: SmokeRun) -> None:
        assert ran.summaries[2].startswith("m4_flash sdpa, random-4x4-8+2-6: ")
        assert " tok/s · MBU " in ran.summaries[2]


class TestEngines:
    def test_labels_say_what_ran(self, args: Namespace) -> None:
        limits: dict[str, Any] = {"max_model_len": 32, "max_num_seqs": 2, "pool_tokens": 40}
        below, ours = m3_engine(args, **limits), m4_engine(args, "sdpa", **limits)
        assert (labels_of(below), labels_of(ours)) == (BELOW, OURS)
        assert name_of(ours) == "m4_flash sdpa 16 eager"
        assert below.kv_bytes() == ours.kv_bytes() == 3 * 16 * TOKEN_BYTES, "whole blocks"

    def test_recorded_steps_are_labelled(
        self, args: Namespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        limits: dict[str, Any] = {"max_model_len": 32, "max_num_seqs": 1, "pool_tokens": 32}
        assert m4_engine(args, "triton", **limits, graphs=False).config.enforce_eager
        engine = m4_engine(args, "sdpa", **limits)
        assert not engine.config.enforce_eager
        monkeypatch.setattr(engine.runner, "graphs", object())
        assert labels_of(engine) == OURS | {"graphs": True}
        assert name_of(engine) == "m4_flash sdpa 16 graphs"

    def test_reasons_are_noted(self, args: Namespace) -> None:
        notes: list[str] = []
        assert usable(("naive", "flash_attn"), model_shape(args), notes) == ("naive",)
        assert notes == [
            "flash_attn is left out: FlashAttention-2 needs a CUDA device, got cpu"
        ]  # fmt: skip

    def test_estimates(self, args: Namespace, capsys: pytest.CaptureFixture[str]) -> None:
        announce("a part", args, 1, 2)
        args.smoke = False
        announce("a part", args, 60, 20)
        args.device = "cuda"
        announce("a part", args, 60, 20)
        assert capsys.readouterr().out.splitlines() == [
            "a part: about 20 s on two CPU cores", "a part: about 60 s on one H100",
        ]  # fmt: skip


def test_files_name_no_folder_of_this_machine(ran: SmokeRun, model: Path) -> None:
    assert set(ran.results) == set(NAMES[:3])
    assert str(model.parent) not in ran.text


def test_the_command_itself_refuses_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "m4_flash.benchmarks", "--only", "nothing"],
        capture_output=True, text=True, cwd=ROOT, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert all(repr(name) in done.stderr for name in NAMES)
    assert done.stderr.count("\n") == 1


@pytest.mark.gpu
def test_latency_on_a_gpu(tmp_path: Path) -> None:
    result = run_bench("latency", write_half_model(tmp_path / "model"), tmp_path, "cuda")
    for backend in ("naive", "paged", "sdpa", "triton"):
        rows = result.select(engine="m4_flash", backend=backend, metric="ttft")
        assert [row["prompt_tokens"] for row in rows] == [16, 32]
        assert {row["graphs"] for row in rows} == {backend == "triton"}
    steps = result.select(engine="m4_flash", backend="triton", metric="step_time")
    assert {row["graphs"] for row in steps} == {True, False}


@pytest.mark.gpu
def test_throughput_on_a_gpu(tmp_path: Path) -> None:
    result = run_bench("throughput", write_half_model(tmp_path / "model"), tmp_path, "cuda")
    rows = result.select(metric="busy", phase="prompts")
    assert {(row["engine"], row["backend"]) for row in rows} == {
        ("m4_flash", "triton"), ("m3_paged", "paged"),
    }  # fmt: skip
    assert all(0 < row["median"] <= 1 for row in rows)


@pytest.mark.gpu
def test_few_rows_on_a_gpu(tmp_path: Path) -> None:
    result = run_bench("few_rows", write_half_model(tmp_path / "model"), tmp_path, "cuda")
    times = result.select(metric="time", rows=1)
    assert {row["product"] for row in times} >= {"torch", "gemv"}
    assert all(row["median"] > 0 for row in times)
