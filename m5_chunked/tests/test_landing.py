"""One long prompt on settled streams: chunks, who is first, and what is recommended."""

from __future__ import annotations

from argparse import Namespace

import pytest

from m4_flash.engine import LLMEngine as M4Engine
from m5_chunked.benchmarks.landing import SETTLE, Case, land, recommend
from m5_chunked.benchmarks.variants import UNCHUNKED, Variant
from m5_chunked.engine import LLMEngine


class TestLanding:
    @pytest.mark.parametrize(("budget", "threshold"), [(8, 0), (8, 4), (UNCHUNKED, 0)])
    def test_a_long_prompt_lands(self, args: Namespace, budget: int, threshold: int) -> None:
        """What the trace says, and the idle engine afterwards."""
        case = Case(2, 4, 40)
        engine = LLMEngine(
            args.model, device="cpu", num_blocks=40, max_num_seqs=4, trace=True,
            max_num_batched_tokens=budget, long_prefill_token_threshold=threshold,
        )  # fmt: skip
        found = land(engine, case, budget)
        assert not engine.has_unfinished_requests()
        assert engine.scheduler.manager.pool.num_free == 40
        assert engine.trace is not None
        long = [part for step in engine.trace for part in step.slices if part.seq_id == 2]
        chunks = {(8, 0): [6] * 6 + [4], (8, 4): [4] * 10, (UNCHUNKED, 0): [40]}
        assert [part.num_tokens for part in long] == chunks[budget, threshold]
        assert found.gaps.count == 2
        assert found.step > 0
        first = {
            part.seq_id: step.index
            for step in engine.trace for part in step.slices if part.seq_id > 1 and part.token_ids
        }  # fmt: skip
        if threshold:
            assert first[3] < first[2], "room beside the long prompt"
            assert found.short_ttft < found.long_ttft
        else:  # in the same step, or later
            assert first[3] - first[2] == (0 if budget > 44 else 1)

    def test_m4_lets_its_streams_wait(self, pair: tuple[M4Engine, LLMEngine]) -> None:
        m4, m5 = pair
        case = Case(2, 4, 64)
        found = land(Variant(m4).ready(), case, 16)
        assert found.gaps.min >= found.long_ttft, "the gap holds the whole prefill"
        chunked = land(Variant(m5, 16).ready(), case, 16)
        assert chunked.gaps.max < chunked.long_ttft, "tokens came in between"

    def test_streams_have_settled(self, args: Namespace) -> None:
        engine = LLMEngine(args.model, device="cpu", num_blocks=40, max_num_seqs=4, trace=True)
        land(engine, Case(2, 4, 40), UNCHUNKED)
        assert engine.trace is not None
        admitted = [step.index for step in engine.trace for _ in step.admitted]
        assert admitted[:2] == [0, 0]
        assert len(admitted) == 4
        assert min(admitted[2:]) >= SETTLE

    @pytest.mark.parametrize(("budget", "long"), [(128, 8192), (32, 1024), (16, 64), (8192, 8192)])
    def test_streams_last_and_pools_hold_them(self, budget: int, long: int) -> None:
        """A chunk a step at half the budget, the slowest that is run."""
        case = Case(*((32, 128) if budget >= 128 else (2, 4)), long)
        steps = SETTLE + case.streams * case.prompt // max(budget - case.streams, 1)
        steps += -(-case.long // (budget // 2)) + -(-case.prompt // (budget // 2)) + 2
        assert steps <= case.stream_tokens(budget) or budget // 2 > budget - case.streams
        assert case.longest(budget) == case.prompt + case.stream_tokens(budget)
        places = case.streams * case.longest(budget) + case.long + case.prompt
        assert case.pool_tokens(budget) >= places + (case.streams + 2) * 16

    def test_the_recommended_budget_is_the_largest_within_the_target(self) -> None:
        points = {64: 3.0, 128: 5.0, 256: 5.5, 8192: 40.0}
        assert recommend(points, 5.0) == 128
        assert recommend(points, 5.5) == 256
        assert recommend(points, 100.0) == 8192
        assert recommend(points, 2.9) is None
        assert recommend({64: 9.0, 128: 4.0}, 5.0) == 128, "noise bends the curve"
