"""The benchmarks at their smallest: equal memory, exact counts, what is timed, what ends."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from common.model_costs import decode_bytes
from common.outputs import RequestOutput
from common.results import Result
from common.testing.conformance import ids_of
from common.workload import random_lengths
from m2_batching.tests.bench_runs import (
    BANDWIDTH,
    SERVED,
    SmokeRun,
    medians,
    smoke,
    write_wide_model,
)
from m3_paged.benchmarks import (
    memory_use,
    scheduler_cost,
    simulate,
    swap_or_recompute,
    throughput,
)
from m3_paged.engine import LLMEngine

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("memory_use", "throughput", "scheduler_cost", "swap_or_recompute")
TOKEN_BYTES = 3 * 2 * 2 * 32 * 4  # layers, K and V, KV heads, head_dim, float32


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wide_model(tmp_path_factory.mktemp("wide"))


@pytest.fixture(scope="module")
def ran(model: Path, tmp_path_factory: pytest.TempPathFactory) -> SmokeRun:
    """All benchmarks, once; medians of three."""
    return smoke("m3_paged", NAMES, model, tmp_path_factory.mktemp("out"), throughput, 3)


class TestMemoryUse:
    @pytest.fixture
    def result(self, ran: SmokeRun) -> Result:
        return ran.results["memory_use"]

    def test_slots_and_blocks_at_equal_memory(self, result: Result) -> None:
        slots = medians(result, engine="m2_batching", block_size=None)
        assert 3.9 < slots["running"] <= 4, "a seat is empty for one step after an end"
        unused = memory_use.MAX_MODEL_LEN * (1 - slots["stored_of_allocated"])
        assert slots["unused_per_sequence"] == pytest.approx(unused)
        wasted = [0.0]
        for size in (8, 16, 32, 64, 128, 256):
            blocks = medians(result, engine="m3_paged", block_size=size)
            assert wasted[-1] < blocks["unused_per_sequence"] < size
            wasted.append(blocks["unused_per_sequence"])
            for metric in ("stored_of_allocated", "stored_of_pool", "running"):
                assert blocks[metric] > slots[metric]
            assert blocks["steps"] < slots["steps"]
        assert result.config["places"] == 4 * 2048
        assert result.workload == random_lengths().subset(16).info
        assert all(row["n"] == 1 for row in result.rows), "counts, not measurements"


class TestThroughput:
    @pytest.fixture
    def result(self, ran: SmokeRun) -> Result:
        return ran.results["throughput"]

    def test_both_engines_serve_the_same_requests_in_turn(self, ran: SmokeRun) -> None:
        workload = random_lengths(4, (4, 8), (2, 6), temperature=0.0)
        both = ["m2_batching", "m3_paged"]
        assert [stage for stage, _, _ in ran.served] == both * 4
        answers: dict[str, list[list[RequestOutput]]] = {name: [] for name in both}
        for number, (stage, served, outputs) in enumerate(ran.served):
            assert served == (workload if number >= 2 else workload.subset(2)), "a warm-up is short"
            answers[stage].append(outputs)
        for first, second in zip(*answers.values(), strict=True):
            assert ids_of(first) == ids_of(second)
        assert ran.results["throughput"].workload == workload.info

    def test_both_engines_are_measured_alike(self, result: Result) -> None:
        units = SERVED | {"sequences_per_step": "count"}
        for engine, more in (
            ("m2_batching", {}),
            ("m3_paged", {"kv_bytes": "B", "preemptions": "count"}),
        ):
            rows = result.select(engine=engine)
            assert {row["metric"]: row["unit"] for row in rows} == units | more
            assert {row["n"] for row in rows if row["metric"] in SERVED} == {3}
            value = medians(result, engine=engine)
            assert result.workload is not None
            tokens = value["output_throughput"] * value["duration"]
            assert tokens == pytest.approx(result.workload.max_output_tokens)

    def test_counts_are_exact(self, result: Result) -> None:
        """Two slots of 32 places are four blocks of 16: each request is at home in one block."""
        workload = random_lengths(4, (4, 8), (2, 6), temperature=0.0)
        outputs = [params.max_tokens for params in workload.sampling_params]
        paged = medians(result, engine="m3_paged")
        assert paged["sequences_per_step"] == pytest.approx((sum(outputs) - 4) / max(outputs))
        assert (paged["kv_bytes"], paged["preemptions"]) == (2 * 32 * TOKEN_BYTES, 0)
        scheduler = simulate.slot_scheduler(2, 32, 10**6)
        simulate.add_all(scheduler, workload)
        steps = len(list(simulate.run(scheduler, lambda _: 32, 64)))
        slots = medians(result, engine="m2_batching")["sequences_per_step"]
        assert slots == pytest.approx((sum(outputs) - 4) / steps)
        assert slots < paged["sequences_per_step"]
        assert (result.config["slots"], result.config["num_blocks"]) == (2, 4)

    def test_the_summary_is_reached_over_reachable(self, ran: SmokeRun, model: Path) -> None:
        config = LLMEngine(model, device="cpu", num_blocks=4).model.config
        value = medians(ran.results["throughput"], engine="m3_paged")
        batch, info = value["sequences_per_step"], ran.results["throughput"].workload
        assert info is not None
        context = (info.prompt_tokens + info.max_output_tokens // 2) // 4
        moved = decode_bytes(config, round(batch), context, "float32")
        share = moved * value["output_throughput"] / batch / BANDWIDTH
        assert ran.summaries[1].startswith("m3_paged, random lengths: ")
        assert f" tok/s · MBU {share:.1%} of " in ran.summaries[1]

    @pytest.mark.parametrize(
        ("smallest", "device", "count", "slots", "longest"),
        [(True, "cuda", 4, 2, 32), (False, "cuda", 96, 32, 2048), (False, "cpu", 12, 2, 96)],
        ids=["smoke", "gpu", "cpu"],
    )
    def test_sizes(self, smallest: bool, device: str, count: int, slots: int, longest: int) -> None:
        sizes = throughput._sizes(Namespace(smoke=smallest, device=device))
        assert (len(sizes[0].requests), *sizes[1:]) == (count, slots, longest)
        assert longest % 16 == 0, "or the blocks would not hold what the slots hold"
        for item in sizes[0].requests:
            assert len(item.prompt_token_ids) + item.sampling_params.max_tokens <= longest


class TestSchedulerCost:
    def test_every_round_decides_for_everybody(self, monkeypatch: pytest.MonkeyPatch) -> None:
        decided: list[int] = []
        step = simulate.step

        def spy(scheduler: simulate.AnyScheduler) -> int:
            decided.append(step(scheduler))
            return decided[-1]

        monkeypatch.setattr(simulate, "step", spy)
        times = scheduler_cost._step_times(3, 7, rounds=5)
        assert decided == [3] * 6, "one step admits, five are timed"
        assert len(times) == 5
        assert min(times) > 0

    def test_the_file(self, ran: SmokeRun) -> None:
        rows = ran.results["scheduler_cost"].rows
        assert [(row["metric"], row["unit"], row["n"]) for row in rows] == [
            ("step_time", "s", 5)
        ] * 2
        assert [(row["running"], row["waiting"]) for row in rows] == [(8, 10), (8, 100)]
        slowest = max(row["median"] for row in rows)
        assert (
            ran.summaries[2] == f"m3_paged: {slowest * 1e6:.0f} µs to decide a step of 8 sequences"
        )


class TestSwapOrRecompute:
    def test_three_ways_at_three_lengths(self, ran: SmokeRun) -> None:
        result = ran.results["swap_or_recompute"]
        times = dict.fromkeys(("swap_out", "swap_in", "recompute"), ("s", 3))
        for context in (16, 32, 48):
            rows = result.select(context=context)
            found = {row["metric"]: (row["unit"], row["n"]) for row in rows}
            assert found == times | {"kv_bytes": ("B", 1)}
            value = medians(result, context=context)
            assert value.pop("kv_bytes") == context * TOKEN_BYTES
            assert min(value.values()) > 0
        assert len(result.rows) == 12
        assert ran.summaries[3].startswith("m3_paged recompute of 48 tokens: ")

    def test_what_goes_out_comes_back(self, model: Path) -> None:
        engine = LLMEngine(model, device="cpu", num_blocks=8)
        kv = engine.runner.cache.kv
        kv.copy_(torch.arange(kv.numel(), dtype=kv.dtype).view_as(kv))
        before = kv.clone()
        out, back, size = swap_or_recompute._swaps(engine, 3, pinned=False)
        assert size == 3 * 16 * TOKEN_BYTES
        out()
        kv.zero_()
        back()
        returned = [i for i in range(8) if torch.equal(kv[:, :, i], before[:, :, i])]
        assert len(returned) == 3
        assert kv.count_nonzero() == before[:, :, returned].count_nonzero()

    def test_recomputing_is_one_step_over_the_whole_length(self, model: Path) -> None:
        engine = LLMEngine(model, device="cpu", num_blocks=8, trace=True)
        swap_or_recompute._prefill(engine, 48)()
        assert engine.trace is not None
        assert [[s.num_tokens for s in step.slices] for step in engine.trace] == [[48]]


def test_files_name_no_folder_of_this_machine(ran: SmokeRun, model: Path) -> None:
    assert set(ran.results) == set(NAMES)
    assert str(model.parent) not in ran.text
    assert ran.summaries[0].startswith("m3_paged: ")
    assert ran.summaries[0].endswith("% of allocated places hold tokens")


def test_the_command_itself_refuses_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "m3_paged.benchmarks", "--only", "nothing"],
        capture_output=True, text=True, cwd=ROOT, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert all(repr(name) in done.stderr for name in NAMES)
    assert done.stderr.count("\n") == 1
