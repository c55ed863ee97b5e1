"""The benchmarks at their smallest: who serves which requests, what is counted, what ends."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from common.model_costs import decode_bytes
from common.profiling import KernelProfile
from common.results import Result
from common.serve import run_batch
from common.testing.conformance import ids_of
from common.workload import Workload, fixed, random_lengths
from m2_batching.benchmarks import static_batching, throughput
from m2_batching.engine import LLMEngine
from m2_batching.request_queue import FCFSQueue
from m2_batching.scheduler import Scheduler
from m2_batching.tests.bench_runs import (
    BANDWIDTH,
    SERVED,
    SmokeRun,
    medians,
    smoke,
    write_wide_model,
)
from m2_batching.tests.helpers import make_sequence, step, stop_by_length

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("throughput", "static_batching")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wide_model(tmp_path_factory.mktemp("wide"))


@pytest.fixture(scope="module")
def ran(model: Path, tmp_path_factory: pytest.TempPathFactory) -> SmokeRun:
    """Both benchmarks, once; medians of three."""
    return smoke("m2_batching", NAMES, model, tmp_path_factory.mktemp("out"), throughput, 3)


class TestThroughput:
    @pytest.fixture
    def result(self, ran: SmokeRun) -> Result:
        return ran.results["throughput"]

    def test_both_engines_serve_the_same_requests_in_turn(self, ran: SmokeRun) -> None:
        rounds = [("m2_batching", batch) for batch in (1, 2) for _ in range(4)]
        expected = [pair for stage, b in rounds for pair in ((stage, b), ("m1_basic", b))]
        assert [(stage, len(w.requests)) for stage, w, _ in ran.served] == expected
        answers: dict[int, list[list[tuple[int, ...]]]] = {}
        for _, workload, outputs in ran.served:
            batch = len(workload.requests)
            assert workload == fixed(batch, 8, 4)
            assert ids_of(outputs) == answers.setdefault(batch, ids_of(outputs))

    def test_both_engines_are_measured_alike(self, result: Result) -> None:
        for engine in ("m1_basic", "m2_batching"):
            for batch in (1, 2):
                rows = result.select(engine=engine, batch=batch)
                found = {row["metric"]: (row["unit"], row["n"]) for row in rows}
                ceiling = {"roofline": ("tok/s", 1)} if engine == "m2_batching" else {}
                assert found == {name: (unit, 3) for name, unit in SERVED.items()} | ceiling
        assert len(result.rows) == 4 * len(SERVED) + 2

    def test_tokens_are_counted_exactly(self, result: Result) -> None:
        """Eight of the prompt and four of the output; medians of an odd number keep ratios."""
        for engine in ("m1_basic", "m2_batching"):
            for batch in (1, 2):
                value = medians(result, engine=engine, batch=batch)
                tokens = value["output_throughput"] * value["duration"]
                assert tokens == pytest.approx(4 * batch)
                assert value["total_throughput"] == pytest.approx(3 * value["output_throughput"])

    def test_the_roofline_is_bytes_over_bandwidth(self, result: Result, model: Path) -> None:
        """At half of the output, the context is 8 + 2 tokens."""
        config = LLMEngine(model, device="cpu", max_num_seqs=1).model.config
        for batch in (1, 2):
            seconds = decode_bytes(config, batch, 10, "float32") / BANDWIDTH
            found = medians(result, engine="m2_batching", batch=batch)["roofline"]
            assert found == pytest.approx(batch / seconds)

    def test_a_step_is_bound_by_its_bytes_or_by_its_arithmetic(self, model: Path) -> None:
        config = LLMEngine(model, device="cpu", max_num_seqs=1).model.config
        matrices = 3 * (64 * (128 + 64 + 64) + 128 * 64 + 3 * 64 * 96) + 64 * 10_240
        floor = throughput._floor(config, 2, 10, "float32", bandwidth=1e30, flops=1e6)
        assert floor == pytest.approx(2 * 2 * matrices / 1e6)
        moved = decode_bytes(config, 2, 10, "float32")
        assert throughput._floor(config, 2, 10, "float32", 1e6, 1e30) == moved / 1e6

    def test_the_file_says_what_ran(self, result: Result, model: Path) -> None:
        assert result.workload == fixed(2, 8, 4).info
        assert result.config["model"] == model.name
        assert (result.config["batches"], result.config["max_model_len"]) == ([1, 2], 12)
        assert any("a subset has the same tok/s" in note for note in result.notes)


class TestStaticBatching:
    @pytest.fixture
    def result(self, ran: SmokeRun) -> Result:
        return ran.results["static_batching"]

    def test_steps_and_seats_are_exact(self, result: Result) -> None:
        """Two slots: a static group takes as many steps as its longest output has tokens."""
        workload = random_lengths(4, (4, 8), (2, 6), temperature=0.0)
        assert result.workload == workload.info
        longest = [params.max_tokens for params in workload.sampling_params]
        static_steps = max(longest[:2]) + max(longest[2:])
        for mode, steps in (("static", static_steps), ("continuous", continuous(workload, 2))):
            value = medians(result, batching=mode)
            assert value["steps"] == steps
            assert value["useful_seats"] == pytest.approx(sum(longest) / (2 * steps))

    def test_both_ways_are_measured_alike(self, result: Result) -> None:
        units = SERVED | {"steps": "count", "useful_seats": "share"}
        for mode in ("static", "continuous"):
            assert {row["metric"]: row["unit"] for row in result.select(batching=mode)} == units
            value = medians(result, batching=mode)
            assert result.workload is not None
            tokens = value["output_throughput"] * value["duration"]
            assert tokens == pytest.approx(result.workload.max_output_tokens)
        assert len(result.rows) == 2 * len(units)
        assert result.config["slots"] == 2

    def test_groups_do_not_mix_and_the_tokens_are_the_same(self, model: Path) -> None:
        workload = random_lengths(5, (4, 8), (2, 6), temperature=0.0)
        engine = LLMEngine(model, device="cpu", max_num_seqs=2, max_model_len=16, trace=True)
        static = static_batching.static(engine, workload, 2)
        trace = engine.trace
        assert trace is not None
        groups = [{item.seq_id // 2 for item in entry.slices} for entry in trace]
        assert groups == sorted(groups, key=min)
        assert {len(group) for group in groups} == {1}, "never two groups in one step"
        before = len(trace)
        together = run_batch(engine, workload)
        mixed = [{(i.seq_id - 5) // 2 for i in entry.slices} for entry in trace.steps[before:]]
        assert any(len(group) > 1 for group in mixed), "a free seat is taken at once"
        assert len(mixed) == continuous(workload, 2)
        assert ids_of(static) == ids_of(together)
        for params, output in zip(workload.sampling_params, static, strict=True):
            assert len(output.outputs[0].token_ids) == params.max_tokens

    def test_a_later_group_has_waited_since_the_start(self, model: Path) -> None:
        engine = LLMEngine(model, device="cpu", max_num_seqs=1, max_model_len=16)
        outputs = static_batching.static(engine, fixed(3, 4, 2), 1)
        assert len({output.metrics.arrival_time for output in outputs}) == 1
        for early, late in pairwise(outputs):
            assert early.metrics.finished_time is not None
            assert late.metrics.ttft is not None
            wait = early.metrics.finished_time - early.metrics.arrival_time
            assert late.metrics.ttft > wait > 0


def continuous(workload: Workload, slots: int) -> int:
    """Steps that the scheduler itself needs, without a model."""
    scheduler = Scheduler(FCFSQueue(), slots, 10**6, stop_by_length)
    for number, item in enumerate(workload.requests):
        length, limit = len(item.prompt_token_ids), item.sampling_params.max_tokens
        scheduler.add([make_sequence(number, length, max_tokens=limit)])
    steps = 0
    while scheduler.has_unfinished():
        step(scheduler)
        steps += 1
    return steps


def test_what_is_profiled_are_eight_full_decode_steps(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The profiler needs a GPU; here something else stands in its place, and looks."""
    seen: list[tuple[int, list[int]]] = []
    work_of_engine = throughput._steps

    def steps(engine: LLMEngine, count: int) -> None:
        before = {s.seq_id: s.num_tokens for s in engine.scheduler.running}
        work_of_engine(engine, count)
        after = {s.seq_id: s.num_tokens for s in engine.scheduler.running}
        seen.append((count, [after[number] - tokens for number, tokens in before.items()]))

    def profile(work: Callable[[], object], device: str) -> KernelProfile:
        assert device == "cpu"
        work()
        return KernelProfile(10.0, ((0.0, 2.0), (1.0, 3.0), (6.0, 7.0), (7.0, 8.0)))

    monkeypatch.setattr(throughput, "_steps", steps)
    monkeypatch.setattr(throughput, "profile_kernels", profile)
    args = Namespace(model=str(model), dtype="auto", device="cpu")
    rows = throughput._busy_rows(args, 2, (8, 16))
    assert seen == [(2, [2, 2]), (8, [8, 8])] * 2, "two sequences get a token in every step"
    for context in (8, 16):
        found = {row["metric"]: row["median"] for row in rows if row["context"] == context}
        assert found == {"busy": 0.5, "kernels_per_step": 0.5}


@pytest.mark.parametrize(
    ("smallest", "full", "gpu", "batches"),
    [
        (True, False, True, (1, 2)),
        (False, False, False, (1, 8)),
        (False, True, False, (1, 2, 4, 8, 16, 32)),
        (False, False, True, (1, 2, 4, 8, 16, 32, 64, 128, 256)),
    ],
    ids=["smoke", "default", "full", "gpu"],
)
def test_sizes(smallest: bool, full: bool, gpu: bool, batches: tuple[int, ...]) -> None:
    args = Namespace(smoke=smallest, full=full)
    assert throughput._sizes(args, gpu)[0] == batches
    workload, slots = static_batching._sizes(args, gpu)
    assert len(workload.requests) > slots, "or there would be nothing to wait for"
    assert len({params.max_tokens for params in workload.sampling_params}) > 1


def test_each_benchmark_ends_with_its_summary(ran: SmokeRun) -> None:
    value = medians(ran.results["throughput"], engine="m2_batching", batch=2)
    share = value["output_throughput"] / value["roofline"]
    first, second = ran.summaries
    assert first.startswith("m2_batching, batch 2: ")
    assert f"tok/s · MBU {share:.1%} of " in first, "reached over reachable"
    assert second.startswith("m2_batching, continuous: ")
    assert ran.printed.endswith(second + "\n")


def test_files_name_no_folder_of_this_machine(ran: SmokeRun, model: Path) -> None:
    assert str(model.parent) not in ran.text


def test_the_command_itself_refuses_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "m2_batching.benchmarks", "--only", "nothing"],
        capture_output=True, text=True, cwd=ROOT, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "'throughput', 'static_batching'" in done.stderr
    assert done.stderr.count("\n") == 1
