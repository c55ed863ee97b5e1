"""The scheduler with a real model: outputs, and traces that tell chunks from decodes."""

from __future__ import annotations

import random
from typing import Any

import pytest

from common.outputs import RequestOutput
from common.request import SamplingParams
from common.step_record import ScheduledSlice
from common.testing.conformance import build, ids_of
from common.testing.fixtures import TinyModel
from m2_batching.tests.helpers import run_all
from m5_chunked.tests.helpers import Engine, make_engine

BUDGETS = (1, 2, 3, 7, 16, 64)


def greedy(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)


def finish(engine: Engine) -> None:
    """Nothing is left of what ran, the trace holds, and each slice was published once."""
    assert not engine.has_unfinished_requests()
    engine.manager.check()
    assert engine.manager.pool.num_free == engine.cache.num_blocks
    assert engine.trace is not None
    engine.trace.validate()
    slices = [
        (part.seq_id, part.start + part.num_tokens) for step in engine.trace for part in step.slices
    ]
    assert sorted(engine.published.take()) == sorted(slices)
    limit = engine.config.scheduler.max_num_batched_tokens
    assert max(step.num_tokens for step in engine.trace) <= limit


def slices_of(engine: Engine, seq_id: int) -> list[tuple[str, int, int, int]]:
    """Phase, first position, tokens and sampled rows of each slice of a sequence."""
    assert engine.trace is not None
    parts: list[ScheduledSlice] = [
        part for step in engine.trace for part in step.slices if part.seq_id == seq_id
    ]
    return [(part.phase, part.start, part.num_tokens, part.num_sampled) for part in parts]


@pytest.fixture(scope="module")
def below(tiny: TinyModel) -> Any:
    """M3 with room for everybody."""
    return build("m3_paged", tiny, num_blocks=400, block_size=4)


class TestPhases:
    """A slice is a decode when it computes the one token that is left, and that is an output."""

    def test_chunk_chunk_last_chunk_decode(self, tiny: TinyModel) -> None:
        engine = make_engine(tiny, max_num_batched_tokens=7)
        engine.generate(tiny.prompts[2], greedy(3))  # 16 tokens
        assert slices_of(engine, 0) == [
            ("prefill", 0, 7, 0),
            ("prefill", 7, 7, 0),
            ("prefill", 14, 2, 1),
            ("decode", 16, 1, 1),
            ("decode", 17, 1, 1),
        ]
        finish(engine)

    def test_a_last_chunk_of_one_token_is_a_prefill(self, tiny: TinyModel) -> None:
        engine = make_engine(tiny, max_num_batched_tokens=5)
        engine.generate(tiny.prompts[2], greedy(2))
        assert slices_of(engine, 0)[-2:] == [("prefill", 15, 1, 1), ("decode", 16, 1, 1)]
        finish(engine)

    def test_a_mixed_step_counts_both(self, tiny: TinyModel) -> None:
        engine = make_engine(tiny, max_num_batched_tokens=8)
        engine.add_request(tiny.prompts[1], greedy(9))  # 7 tokens
        engine.step()
        engine.add_request(tiny.prompts[2], greedy(2))
        engine.step()
        assert engine.trace is not None
        step = engine.trace[1]
        assert (step.tokens_of("decode"), step.tokens_of("prefill")) == (1, 7)
        assert step.sampled.keys() == {0}
        assert "prefill 7 + decode 1 tokens" in step.summary()
        run_all(engine)
        finish(engine)

    def test_a_preempted_sequence_prefills_its_own_output(self, tiny: TinyModel) -> None:
        """Two sequences, a pool of four blocks: the second is computed again, in chunks of 4."""
        engine = make_engine(tiny, num_blocks=4, max_num_batched_tokens=4)
        prompts = [tiny.prompts[1][:4], tiny.prompts[2][:4]]
        engine.generate(prompts, [greedy(9), greedy(5)])
        assert slices_of(engine, 1) == [
            ("prefill", 0, 3, 0),
            ("prefill", 3, 1, 1),
            ("decode", 4, 1, 1),
            ("decode", 5, 1, 1),
            ("prefill", 0, 4, 0),
            ("prefill", 4, 3, 1),
            ("decode", 7, 1, 1),
        ]
        assert engine.trace is not None
        assert sum(len(step.preempted) for step in engine.trace) == 1
        finish(engine)

    def test_samples_compute_the_last_token_of_their_prompt_as_a_prefill(
        self, tiny: TinyModel
    ) -> None:
        engine = make_engine(tiny, max_num_batched_tokens=4)
        params = SamplingParams(n=2, seed=0, max_tokens=2, ignore_eos=True)
        engine.generate(tiny.prompts[1], params)
        assert slices_of(engine, 0) == [
            ("prefill", 0, 4, 0),
            ("prefill", 4, 2, 0),
            ("prefill", 6, 1, 1),
            ("decode", 7, 1, 1),
        ]
        assert slices_of(engine, 1) == [("prefill", 6, 1, 1), ("decode", 7, 1, 1)]
        assert engine.trace is not None
        (fork,) = engine.trace[2].admitted
        assert (fork.seq_id, fork.num_cached_tokens, fork.forked_from) == (1, 6, 0)
        finish(engine)

    def test_equal_runs_have_equal_traces(self, tiny: TinyModel) -> None:
        traces = []
        for _ in range(2):
            engine = make_engine(tiny, max_num_batched_tokens=6, num_blocks=20)
            engine.generate(tiny.prompts, SamplingParams(seed=1, max_tokens=8, ignore_eos=True))
            traces.append(engine.trace)
        assert traces[0] == traces[1]


class TestOutputs:
    @pytest.mark.parametrize("block_size", [3, 4, 16])
    @pytest.mark.parametrize("budget", BUDGETS)
    def test_greedy_ids_equal_transformers_in_a_tight_pool(
        self, tiny: TinyModel, budget: int, block_size: int
    ) -> None:
        """Four prompts of 57 tokens and 48 of output in a pool of 64 places."""
        engine = make_engine(
            tiny,
            block_size=block_size,
            num_blocks=-(-64 // block_size),
            max_num_batched_tokens=budget,
        )
        outputs = engine.generate(tiny.prompts, greedy(12))
        assert ids_of(outputs) == [[tuple(tiny.oracle.greedy(p, 12))] for p in tiny.prompts]
        finish(engine)

    @pytest.mark.parametrize("budget", BUDGETS)
    def test_seeds_samples_and_penalties_equal_m3(
        self, tiny: TinyModel, below: Any, budget: int
    ) -> None:
        params = [
            SamplingParams(seed=3, max_tokens=7, temperature=0.8, top_p=0.9, ignore_eos=True),
            SamplingParams(seed=5, n=3, max_tokens=6, ignore_eos=True),
            SamplingParams(n=2, seed=9, max_tokens=7, frequency_penalty=0.5, ignore_eos=True),
            SamplingParams(temperature=0, max_tokens=9, repetition_penalty=1.3, logprobs=2),
        ]
        engine = make_engine(tiny, num_blocks=24, max_num_batched_tokens=budget)
        ours = engine.generate(tiny.prompts, params)
        theirs = below.generate(tiny.prompts, params)
        assert ids_of(ours) == ids_of(theirs)
        assert [[c.text for c in o.outputs] for o in ours] == [
            [c.text for c in o.outputs] for o in theirs
        ]
        finish(engine)

    @pytest.mark.parametrize("length", [3, 4, 5, 7, 8, 9, 12, 13])
    @pytest.mark.parametrize("n", [1, 3])
    def test_prompts_around_block_and_chunk_borders(
        self, tiny: TinyModel, below: Any, length: int, n: int
    ) -> None:
        engine = make_engine(tiny, max_num_batched_tokens=4)
        params = SamplingParams(seed=length, n=n, max_tokens=6, ignore_eos=True)
        prompt = tiny.prompts[2][:length]
        assert ids_of(engine.generate(prompt, params)) == ids_of(below.generate(prompt, params))
        finish(engine)

    def test_poisoned_memory_changes_no_token(self, tiny: TinyModel, below: Any) -> None:
        engine = make_engine(tiny, num_blocks=24, max_num_batched_tokens=5)
        engine.cache.kv.fill_(float("nan"))
        params = [
            SamplingParams(seed=i, n=1 + i % 3, max_tokens=9, ignore_eos=True) for i in range(4)
        ]
        outputs = engine.generate(tiny.prompts, params)
        assert ids_of(outputs) == ids_of(below.generate(tiny.prompts, params))
        finish(engine)

    def test_a_prompt_preempted_between_its_chunks(self, tiny: TinyModel) -> None:
        engine = make_engine(tiny, num_blocks=12, max_num_batched_tokens=8)
        names = [engine.add_request(p, greedy(14)) for p in (tiny.prompts[0], tiny.prompts[1])]
        engine.step()
        names.append(engine.add_request(tiny.prompts[3], greedy(3)))  # 33 tokens: nine blocks
        outputs = run_all(engine)
        prompts = [(tiny.prompts[0], 14), (tiny.prompts[1], 14), (tiny.prompts[3], 3)]
        for name, (prompt, tokens) in zip(names, prompts, strict=True):
            assert list(outputs[name].outputs[0].token_ids) == tiny.oracle.greedy(prompt, tokens)
        parts = slices_of(engine, 2)
        begun = [i for i, (_, start, _, _) in enumerate(parts) if start == 0]
        assert len(begun) == 2
        assert not any(sampled for _, _, _, sampled in parts[: begun[1]])
        finish(engine)

    @pytest.mark.parametrize("threshold", [1, 5, 32])
    def test_a_threshold_changes_no_token(self, tiny: TinyModel, threshold: int) -> None:
        engine = make_engine(
            tiny, max_num_batched_tokens=16, long_prefill_token_threshold=threshold
        )
        outputs = engine.generate(tiny.prompts, greedy(12))
        assert ids_of(outputs) == [[tuple(tiny.oracle.greedy(p, 12))] for p in tiny.prompts]
        finish(engine)

    @pytest.mark.parametrize("budget", [2, 6, 64])
    def test_priorities_change_the_order_and_no_token(self, tiny: TinyModel, budget: int) -> None:
        engine = make_engine(tiny, num_blocks=20, policy="priority", max_num_batched_tokens=budget)
        names = [engine.add_request(tiny.prompts[3], greedy(12), priority=3)]
        for _ in range(3):
            engine.step()
        names += [
            engine.add_request(p, greedy(12), priority=i) for i, p in enumerate(tiny.prompts[1:])
        ]
        outputs = run_all(engine)
        assert list(outputs)[-1] == names[0]
        prompts = [tiny.prompts[3], *tiny.prompts[1:]]
        for name, prompt in zip(names, prompts, strict=True):
            assert list(outputs[name].outputs[0].token_ids) == tiny.oracle.greedy(prompt, 12)
        finish(engine)


class TestAbort:
    @pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 7])
    def test_in_every_state(self, tiny: TinyModel, steps: int) -> None:
        """Waiting, between chunks, at the fork and after it."""
        engine = make_engine(tiny, max_num_batched_tokens=4)
        name = engine.add_request(tiny.prompts[1], SamplingParams(n=3, seed=1, max_tokens=9))
        other = engine.add_request(tiny.prompts[2], greedy(6))
        for _ in range(steps):
            engine.step()
        engine.abort(name)
        outputs = run_all(engine)
        assert set(outputs) == {other}
        path = tiny.oracle.greedy(tiny.prompts[2], 6)
        assert list(outputs[other].outputs[0].token_ids) == path
        finish(engine)

    def test_closing_a_stream_between_chunks(self, tiny: TinyModel) -> None:
        engine = make_engine(tiny, max_num_batched_tokens=4)
        stream: Any = engine.stream(tiny.prompts[3], greedy(5))
        engine.step()
        stream.close()
        outputs = engine.generate(tiny.prompts[1], greedy(5))
        assert list(outputs[0].outputs[0].token_ids) == tiny.oracle.greedy(tiny.prompts[1], 5)
        finish(engine)


def test_many_requests_with_random_aborts_in_a_tight_pool(tiny: TinyModel, below: Any) -> None:
    """Sixty requests, some with samples, every output that of a solo run in M3."""
    rng = random.Random(11)
    engine = make_engine(tiny, num_blocks=26, max_num_seqs=24, max_num_batched_tokens=24)
    names: dict[str, tuple[list[int], SamplingParams]] = {}
    for i in range(60):
        tokens = rng.randint(1, 10)
        if i % 4 == 0:
            prompt, params = tiny.prompts[i // 4 % 4], greedy(tokens)
        else:
            prompt = [rng.randrange(256) for _ in range(rng.randint(1, 30))]
            params = SamplingParams(
                seed=i, n=rng.choice([1, 1, 1, 2, 3]), max_tokens=tokens, ignore_eos=True
            )
        names[engine.add_request(prompt, params)] = (prompt, params)
    last: dict[str, RequestOutput] = {}
    aborted: set[str] = set()
    while engine.has_unfinished_requests():
        for output in engine.step():
            assert output.request_id not in aborted
            last[output.request_id] = output
        if rng.random() < 0.1:
            victim = rng.choice(list(names))
            if victim not in last or not last[victim].finished:
                aborted.add(victim)
                engine.abort(victim)
    finish(engine)
    assert engine.scheduler.num_preemptions > 3
    assert 3 < len(aborted) < 30
    done = {name for name, output in last.items() if output.finished}
    assert done == set(names) - aborted
    for name, output in last.items():
        alone = below.generate(*names[name])[0].outputs
        for ours, solo in zip(output.outputs, alone, strict=True):
            assert ours.token_ids == solo.token_ids[: len(ours.token_ids)]
