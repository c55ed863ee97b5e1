"""The benchmarks at their smallest: what is cold, what hits, what is counted, and what ends."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from common.model_costs import decode_bytes
from common.outputs import CompletionOutput
from common.results import Result
from common.testing.conformance import ids_of
from common.workload import fixed, random_lengths
from m1_basic.benchmarks.command import bench
from m2_batching.tests.bench_runs import (
    BANDWIDTH,
    SERVED,
    SmokeRun,
    medians,
    smoke,
    write_wide_model,
)
from m4_flash.tests.bench_runs import bench_args, write_half_model
from m6_prefix.assembly import INDEXES
from m6_prefix.benchmarks import chat, throughput, ttft
from m6_prefix.benchmarks.engines import backend, first_token, forget, options
from m6_prefix.benchmarks.throughput import Variant
from m6_prefix.engine import LLMEngine

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("ttft", "hit_rate", "index_cost", "chat", "throughput")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wide_model(tmp_path_factory.mktemp("wide"))


@pytest.fixture(scope="module")
def ran(model: Path, tmp_path_factory: pytest.TempPathFactory) -> SmokeRun:
    """All benchmarks, once; two rounds."""
    return smoke("m6_prefix", NAMES, model, tmp_path_factory.mktemp("out"), throughput, 2)


@pytest.fixture
def args(model: Path) -> Namespace:
    return bench_args(model)


@pytest.fixture
def engine(args: Namespace) -> LLMEngine:
    limits = options(args, max_model_len=96, max_num_seqs=4, pool_tokens=512)
    return LLMEngine(args.model, **limits, trace=True)


class TestEngines:
    def test_a_first_token_knows_what_it_did_not_compute(self, engine: LLMEngine) -> None:
        prompt = list(range(40))
        cold, hit = first_token(engine, prompt), first_token(engine, prompt)
        assert (cold.prompt_tokens, cold.cached_tokens) == (40, 0)
        assert (hit.prompt_tokens, hit.cached_tokens) == (40, 32)
        assert min(cold.seconds, hit.seconds) > 0
        forget(engine)
        assert first_token(engine, prompt).cached_tokens == 0

    def test_a_busy_engine_forgets_nothing(self, engine: LLMEngine) -> None:
        name = engine.add_request(list(range(40)))
        engine.step()
        with pytest.raises(AssertionError, match="cached blocks are in use"):
            forget(engine)
        engine.abort(name)
        forget(engine)

    def test_the_pool_is_as_large_as_asked(self, args: Namespace) -> None:
        limits = options(args, max_model_len=96, max_num_seqs=4, pool_tokens=100, budget=64)
        assert (limits["num_blocks"], limits["max_num_batched_tokens"]) == (7, 64)
        assert backend(args) == "sdpa"
        assert backend(Namespace(device="cuda:0")) == "triton"


class TestTtft:
    @pytest.fixture
    def result(self, ran: SmokeRun) -> Result:
        return ran.results["ttft"]

    @pytest.mark.parametrize("length", [48, 64])
    def test_pairs_are_cold_and_then_cached_up_to_the_tail(
        self, result: Result, length: int
    ) -> None:
        for cache, tokens in (("cold", 0), ("cached", length - 32)):
            rows = result.select(case="pair", prompt_tokens=length, cache=cache)
            found = {row["metric"]: (row["unit"], row["n"]) for row in rows}
            assert found == {"ttft": ("s", 2), "cached_tokens": ("tokens", 2)}
            counted = result.select(metric="cached_tokens", prompt_tokens=length, cache=cache)[0]
            assert (counted["min"], counted["max"]) == (tokens, tokens)
        (gain,) = result.select(metric="cold_over_cached", prompt_tokens=length)
        assert gain["n"] == 2
        assert gain["min"] > 0

    def test_the_tails_of_a_pair_differ(self) -> None:
        pairs = ttft.prefix_pairs((48, 64))
        (a, b, *_), (c, d) = pairs.prompts, pairs.prompts[2:]
        assert (len(a), len(b), len(c), len(d)) == (48, 48, 64, 64)
        assert a[:16] == b[:16]
        assert c[:32] == d[:32]
        assert a[16] != b[16]
        assert c[32] != d[32]
        assert pairs.max_output_tokens == 4

    def test_ratios_hit_what_they_say(self, result: Result) -> None:
        """Of a prompt of 64 tokens that is known whole, the last block is computed again."""
        rows = result.select(case="ratio", metric="cached_tokens")
        found = {row["hit_ratio"]: row["median"] for row in rows}
        assert found == {0.0: 0, 0.25: 16, 0.5: 32, 0.75: 48, 1.0: 48}
        peaks = result.select(case="ratio", metric="peak_memory")
        assert len(peaks) == 5
        assert all(row["median"] > 0 for row in peaks)

    def test_the_line_goes_through_the_medians(self, result: Result) -> None:
        fit = medians(result, case="fit")
        points = []
        for ratio in ttft.RATIOS:
            value = medians_of(result.select(case="ratio", hit_ratio=ratio))
            points.append((64 - value["cached_tokens"], value["ttft"]))
        errors = [fit["fixed_cost"] + fit["time_per_token"] * x - y for x, y in points]
        assert sum(errors) == pytest.approx(0, abs=1e-9)
        assert fit["largest_error"] == pytest.approx(max(map(abs, errors)))

    def test_a_line_by_hand(self) -> None:
        assert ttft.fit_line([(0, 1), (1, 3), (2, 5)]) == pytest.approx((1, 2))
        assert ttft.fit_line([(0, 0), (1, 0), (2, 3)]) == pytest.approx((-0.5, 1.5))

    def test_a_batch_hits_its_share(self, result: Result) -> None:
        rows = result.select(case="batch", metric="hit_rate")
        # 32 tokens of which 8, 16, 24 or 32 are shared, in blocks of 16; the last is computed.
        assert [row["median"] for row in rows] == [0, 0, 0.5, 0.5, 0.5]
        assert {row["n"] for row in rows} == {2}
        for ratio in ttft.RATIOS:
            served = {row["metric"] for row in result.select(case="batch", hit_ratio=ratio)}
            assert served == {*SERVED, "hit_rate"}

    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_sizes_are_whole_blocks_and_fit(self, device: str) -> None:
        lengths, length, batch = ttft.sizes(Namespace(smoke=False, device=device))
        assert list(lengths) == sorted(lengths)
        for total in (length, batch.length):
            assert all(ratio * total % 16 == 0 for ratio in ttft.RATIOS)
        assert max(length, batch.length + batch.output_len) <= lengths[-1]
        for ratio in ttft.RATIOS:
            workload = batch.workload(ratio)
            assert len({tuple(p[: round(ratio * batch.length)]) for p in workload.prompts}) == 1
            assert {len(prompt) for prompt in workload.prompts} == {batch.length}

    def test_the_summary_names_the_longest(self, ran: SmokeRun) -> None:
        assert ran.summaries[0].startswith("m6_prefix, 64 tokens, all but 32 cached: first token")


class TestHitRate:
    def test_every_request_hits_what_the_formula_says(self, ran: SmokeRun) -> None:
        result = ran.results["hit_rate"]
        for index in INDEXES:
            for workload in ("few_shot", "multi_turn", "none_shared"):
                value = medians(result, workload=workload, index=index, pool="roomy")
                assert value["requests_off_formula"] == 0
                assert value["hit_tokens"] == value["expected_hit_tokens"]
                assert value["hit_rate"] == value["expected_hit_rate"]
                assert value["evicted_blocks"] == 0
        assert ran.summaries[1].endswith("0 requests off the formula")

    def test_evictions_in_the_file(self, ran: SmokeRun) -> None:
        result = ran.results["hit_rate"]
        counted = result.select(metric="evicted_blocks", workload="none_shared", index="hash")
        expected = result.select(metric="expected_evicted_blocks")
        assert len(expected) == 2
        tight = [row["median"] for row in counted if row["pool"] != "roomy"]
        assert tight == [row["median"] for row in expected]
        assert tight[-1] > 0


def medians_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {row["metric"]: row["median"] for row in rows}


class TestIndexCost:
    def test_both_indexes_do_everything(self, ran: SmokeRun) -> None:
        result = ran.results["index_cost"]
        operations = {"lookup_first", "lookup_again", "lookup_miss", "insert", "remove"}
        for index in INDEXES:
            for cached in (64, 128):
                for length in (64, 128):
                    rows = result.select(index=index, cached_blocks=cached, prompt_tokens=length)
                    assert {row["metric"] for row in rows} == operations
                    assert all(row["n"] == 2 and row["min"] > 0 for row in rows)
        assert {row["hasher"] for row in result.select(metric="hash_block")} == {
            "blake2b", "sha256",
        }  # fmt: skip
        assert "hash " in ran.summaries[2]
        assert "tree " in ran.summaries[2]


class TestChat:
    def test_each_turn_finds_the_one_before(self, ran: SmokeRun) -> None:
        result = ran.results["chat"]
        assert result.config["text"] is True
        first, second = (medians(result, turn=turn, caching=True) for turn in (1, 2))
        lengths = [row["median"] for row in result.select(metric="prompt_tokens")]
        assert first["cached_tokens"] == 0
        # Everything before the first reply; of the reply as much as the text says the same.
        assert second["cached_tokens"] >= lengths[0] // 16 * 16
        assert lengths[1] > lengths[0] > 0
        for turn in (1, 2):
            plain = result.select(turn=turn, caching=False)
            assert medians(result, turn=turn, caching=False)["cached_tokens"] == 0
            assert all(row["n"] == 2 for row in plain)
            (gain,) = result.select(turn=turn, metric="plain_over_cached")
            assert gain["min"] > 0
        assert ran.summaries[3].startswith("m6_prefix, turn 2 of a chat: first token after ")

    def test_a_chat_in_ids_finds_its_replies(self, engine: LLMEngine) -> None:
        """20 ids, a reply of 5, 20 ids, a reply of 5, 20 ids: 24 and then 49 are computed."""
        size = chat.Sizes(turns=3, reply_len=5, user_len=20, max_model_len=96)
        turns = chat.converse(engine, chat.IdChat(20), size)
        begun = [(t.cached.prompt_tokens, t.cached.cached_tokens) for t in turns]
        assert begun == [(20, 0), (45, 16), (70, 48)]
        assert [t.plain.cached_tokens for t in turns] == [0, 0, 0]
        assert [t.plain.prompt_tokens for t in turns] == [20, 45, 70]

    def test_conversations_are_equal_from_the_start(self) -> None:
        one, other = chat.IdChat(4), chat.IdChat(4)
        assert one.ask(0) == other.ask(0)
        one.answer(CompletionOutput(0, "", (1, 2)))
        assert one.ask(1)[4:6] == [1, 2]

    def test_a_chat_in_words(self) -> None:
        talk = chat.TextChat()
        assert talk.ask(0) == [
            {"role": "system", "content": chat.SYSTEM}, {"role": "user", "content": chat.TURNS[0]},
        ]  # fmt: skip
        talk.answer(CompletionOutput(0, "A shelf.", (1,)))
        prompt: Any = talk.ask(9)
        assert [message["role"] for message in prompt] == ["system", "user", "assistant", "user"]
        assert prompt[-1]["content"] == chat.TURNS[1]

    @pytest.mark.parametrize(("device", "full"), [("cpu", False), ("cpu", True), ("cuda", False)])
    def test_eight_turns_fit(self, device: str, full: bool) -> None:
        size = chat.sizes(Namespace(smoke=False, full=full, device=device))
        assert size.turns == len(chat.TURNS) == 8
        assert size.turns * (size.user_len + size.reply_len) <= size.max_model_len


class TestThroughput:
    def test_every_variant_serves_the_same_and_finds_nothing(self, ran: SmokeRun) -> None:
        workload = random_lengths(4, (4, 8), (2, 6), temperature=0.0)
        result = ran.results["throughput"]
        assert result.workload == workload.info
        both = [("m5_chunked", None), ("m6_prefix", True), ("m6_prefix", False)]
        for stage, caching in both:
            rows = result.select(engine=stage, caching=caching)
            served = {r["metric"]: r["unit"] for r in rows if r["metric"] in SERVED}
            assert served == SERVED
            (cached,) = result.select(engine=stage, caching=caching, metric="cached_tokens")
            assert (cached["max"], cached["n"]) == (0, 2)
            ratios = result.select(engine=stage, caching=caching, metric="throughput_ratio")
            assert [row["over"] for row in ratios] == ([] if caching is None else ["m5_chunked"])
        batches = {row["median"] for row in result.select(metric="sequences_per_step")}
        assert len(batches) == 1, "the same steps with caching and without"

    def test_a_second_run_begins_with_an_empty_cache(self, args: Namespace) -> None:
        variants, engine = throughput.variants(args)
        workload = fixed(2, 20, 3)
        outputs = [variant.serve(workload) for _ in range(2) for variant in variants]
        assert len({str(ids_of(each)) for each in outputs}) == 1
        assert all(o.metrics.num_cached_tokens == 0 for each in outputs for o in each)
        assert engine.manager.stats().hit_tokens == 0
        assert engine.generate(workload.prompts[0])[0].metrics.num_cached_tokens == 0
        Variant(engine, True).serve(workload)
        assert engine.generate(workload.prompts[0])[0].metrics.num_cached_tokens == 16

    def test_m4_comes_along_where_it_is_asked_for(self, args: Namespace) -> None:
        args.full = True
        names = [variant.name for variant in throughput.variants(args)[0]]
        assert names == ["m4_flash None", "m5_chunked None", "m6_prefix True", "m6_prefix False"]

    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_nobody_is_preempted(self, device: str) -> None:
        workload, longest, places = throughput.sizes(Namespace(smoke=False, device=device))
        needed = 0
        for item in workload.requests:
            tokens = len(item.prompt_token_ids) + item.sampling_params.max_tokens
            assert tokens <= longest
            needed += -(-(tokens - 1) // 16) * 16
        # On a GPU not all are at their ends at the same time: 170,640 places is what was counted.
        assert (needed if device == "cpu" else 170_640) <= places

    def test_the_summary_is_reached_over_reachable(self, ran: SmokeRun, model: Path) -> None:
        config = LLMEngine(model, device="cpu", num_blocks=4).model.config
        result = ran.results["throughput"]
        (speed,) = result.select(engine="m6_prefix", caching=True, metric="output_throughput")
        (batch,) = result.select(engine="m6_prefix", caching=True, metric="sequences_per_step")
        info = result.workload
        assert info is not None
        context = (info.prompt_tokens + info.max_output_tokens // 2) // 4
        moved = decode_bytes(config, max(round(batch["median"]), 1), context, "float32")
        share = moved * speed["median"] / batch["median"] / BANDWIDTH
        assert ran.summaries[4].startswith("m6_prefix, random lengths, ")
        assert f" tok/s · MBU {share:.1%} of " in ran.summaries[4]


def test_files_name_no_folder_of_this_machine(ran: SmokeRun, model: Path) -> None:
    assert set(ran.results) == set(NAMES)
    assert str(model.parent) not in ran.text


def test_the_command_itself_refuses_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "m6_prefix.benchmarks", "--only", "nothing"],
        capture_output=True, text=True, cwd=ROOT, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert all(repr(name) in done.stderr for name in NAMES)
    assert done.stderr.count("\n") == 1


@pytest.mark.gpu
def test_benchmarks_on_a_gpu(tmp_path: Path) -> None:
    """Compiled kernels, recorded steps, and M4 beside M6."""
    model = write_half_model(tmp_path / "model")
    for name in ("ttft", "chat", "throughput"):
        command = ["--smoke", "--model", str(model), "--device", "cuda", "--out", str(tmp_path)]
        assert bench("m6_prefix", NAMES, [*command, "--only", name, "--repeat", "1"]) == 0
