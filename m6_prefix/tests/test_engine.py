"""The M6 engine: hits that skip work, sharing within a step, salts, limits, ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from common.errors import ConfigError, InvalidRequestError, OutOfMemoryError
from common.request import SamplingParams
from common.testing.conformance import ids_of
from common.testing.fixtures import TinyModel
from m6_prefix.tests.engine_cases import OFF, cached, computed, finish, greedy, make, serve


@pytest.mark.parametrize("index", ["hash", "tree"])
class TestHits:
    def test_a_hit_is_not_computed(self, tiny: TinyModel, index: str) -> None:
        """33 tokens, then one."""
        engine = make(tiny, prefix_index=index)
        prompt = tiny.prompts[3]
        cold, hit = serve(engine, prompt, 5), serve(engine, prompt, 5)
        decodes = [33, 34, 35, 36]
        assert computed(engine) == [
            [(0, 0, 33)], *([(0, at, 1)] for at in decodes),
            [(1, 32, 1)], *([(1, at, 1)] for at in decodes),
        ]  # fmt: skip
        assert (cached(cold), cached(hit)) == (0, 32)
        path = tiny.oracle.greedy(prompt, 5)
        assert [list(out.outputs[0].token_ids) for out in (cold, hit)] == [path, path]
        finish(engine)

    def test_whole_blocks_leave_the_last_one_to_compute(self, tiny: TinyModel, index: str) -> None:
        engine = make(tiny, prefix_index=index)
        prompt = tiny.prompts[2]
        assert len(prompt) == 16
        assert [cached(serve(engine, prompt)) for _ in range(2)] == [0, 12]
        assert computed(engine, since=3)[0] == [(1, 12, 4)]
        finish(engine)

    def test_outputs_are_found_too(self, tiny: TinyModel, index: str) -> None:
        """7 + 9 tokens, of which the last was never computed: three full blocks."""
        engine = make(tiny, prefix_index=index)
        prompt = tiny.prompts[1]
        first = serve(engine, prompt, 9)
        longer = prompt + list(first.outputs[0].token_ids) + [1, 2, 3]
        assert cached(serve(engine, longer)) == 12
        finish(engine)

    def test_a_shorter_prompt_than_a_block_finds_nothing(self, tiny: TinyModel, index: str) -> None:
        engine = make(tiny, prefix_index=index)
        prompt = tiny.prompts[1][:4]
        assert [cached(serve(engine, prompt)) for _ in range(2)] == [0, 0]
        finish(engine)

    def test_salts_never_meet(self, tiny: TinyModel, index: str) -> None:
        engine = make(tiny, prefix_index=index)
        prompt = tiny.prompts[2]
        salts = [None, "a", "b", "a", None, "ab", "b"]
        outputs = [serve(engine, prompt, salt=salt) for salt in salts]
        assert [cached(output) for output in outputs] == [0, 0, 0, 12, 12, 0, 12]
        path = tuple(tiny.oracle.greedy(prompt, 3))
        assert {output.outputs[0].token_ids for output in outputs} == {path}
        finish(engine)

    def test_samples_of_a_cached_prompt(self, tiny: TinyModel, index: str) -> None:
        """The parent leaves the last token to its samples, and computes one before it."""
        below = make(tiny, "m5_chunked")
        engine = make(tiny, prefix_index=index)
        params = SamplingParams(n=3, seed=5, max_tokens=6, ignore_eos=True)
        for prompt, hit in ((tiny.prompts[3], 28), (tiny.prompts[2], 12), (tiny.prompts[1], 4)):
            expected = ids_of(below.generate(prompt, params))
            outputs = [engine.generate(prompt, params) for _ in range(2)]
            assert [ids_of(each) for each in outputs] == [expected, expected]
            assert [cached(each[0]) for each in outputs] == [0, hit]
        finish(engine)


class TestTheSameStep:
    @pytest.mark.parametrize("backend", ["naive", "paged", "sdpa"])
    def test_equal_prompts_share(self, tiny: TinyModel, backend: str) -> None:
        """The second reads, in every layer, what the first stores in this very step."""
        engine = make(tiny, attention_backend=backend)
        engine.runner.cache.kv.fill_(float("nan"))
        prompt = tiny.prompts[3]
        outputs = engine.generate([prompt, prompt, tiny.prompts[1]], greedy(12))
        assert computed(engine)[0] == [(0, 0, 33), (1, 32, 1), (2, 0, 7)]
        assert [cached(output) for output in outputs] == [0, 32, 0]
        prompts = [prompt, prompt, tiny.prompts[1]]
        assert ids_of(outputs) == [[tuple(tiny.oracle.greedy(p, 12))] for p in prompts]
        finish(engine)

    def test_equal_prompts_share_in_our_kernels(self, tiny: TinyModel) -> None:
        """Triton's interpreter where there is no GPU; steps go through padded buckets."""
        engine = make(
            tiny, attention_backend="triton", device=device(), num_blocks=8, max_model_len=32,
            max_num_seqs=2,
        )  # fmt: skip
        engine.runner.cache.kv.fill_(float("nan"))
        prompt = tiny.prompts[1]
        outputs = engine.generate([prompt, prompt], greedy(2))
        assert computed(engine)[0] == [(0, 0, 7), (1, 4, 3)]
        assert ids_of(outputs) == [[tuple(tiny.oracle.greedy(prompt, 2))]] * 2
        finish(engine)

    def test_chunks_are_found_as_they_come(self, tiny: TinyModel) -> None:
        """A budget of 10: the second finds what the first has computed when its turn comes."""
        engine = make(tiny, max_num_batched_tokens=10)
        prompt = tiny.prompts[3]
        outputs = engine.generate([prompt, prompt], greedy(4))
        assert computed(engine)[:4] == [
            [(0, 0, 10)], [(0, 10, 10)], [(0, 20, 10)], [(0, 30, 3), (1, 32, 1)],
        ]  # fmt: skip
        assert ids_of(outputs) == [[tuple(tiny.oracle.greedy(prompt, 4))]] * 2
        finish(engine)

    def test_with_a_step_in_flight(self, tiny: TinyModel) -> None:
        """The overlapped loop finds the same."""
        engine = make(tiny, overlap=True)
        prompt = tiny.prompts[3]
        outputs = engine.generate([prompt, prompt], greedy(9))
        again = engine.generate(prompt, greedy(9))
        assert [cached(output) for output in (*outputs, *again)] == [0, 32, 32]
        assert ids_of([*outputs, *again]) == [[tuple(tiny.oracle.greedy(prompt, 9))]] * 3
        finish(engine)


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


class TestOptions:
    def test_without_caching_it_is_m5(self, tiny: TinyModel) -> None:
        """The same steps, blocks and tokens, preemptions included."""
        params = [greedy(40), greedy(30), SamplingParams(n=2, seed=1, max_tokens=9), greedy(40)]
        prompts = [tiny.prompts[2], tiny.prompts[2], tiny.prompts[1], tiny.prompts[3]]
        tight: dict[str, Any] = {"num_blocks": 24, "max_num_batched_tokens": 12}
        off, below = make(tiny, **tight, **OFF), make(tiny, "m5_chunked", **tight)
        outputs = [engine.generate(prompts, params) for engine in (off, below)]
        assert ids_of(outputs[0]) == ids_of(outputs[1])
        assert off.trace.steps == below.trace.steps
        assert off.scheduler.num_preemptions > 0
        assert all(cached(output) == 0 for output in outputs[0])
        assert off.manager.stats().num_queries == 0
        finish(off)

    def test_the_cap_on_cached_blocks(self, tiny: TinyModel) -> None:
        """The tail goes first, so what is kept is the start of the prompt."""
        for cap, found in ((0, 0), (2, 8), (100, 32)):
            engine = make(tiny, max_cached_blocks=cap)
            serve(engine, tiny.prompts[3])
            assert cached(serve(engine, tiny.prompts[3])) == found
            finish(engine)

    def test_blocks_in_use_are_found_whatever_the_cap(self, tiny: TinyModel) -> None:
        engine = make(tiny, max_cached_blocks=0)
        outputs = engine.generate([tiny.prompts[3]] * 2, greedy(4))
        assert [cached(output) for output in outputs] == [0, 32]
        finish(engine)

    def test_refusals_by_name(self, tiny: TinyModel) -> None:
        with pytest.raises(InvalidRequestError, match="cache_salt is 'a', and m5_chunked shares"):
            make(tiny, "m5_chunked").add_request(tiny.prompts[1], cache_salt="a")
        with pytest.raises(InvalidRequestError, match="cache_salt must be a non-empty string"):
            make(tiny).add_request(tiny.prompts[1], cache_salt="")
        with pytest.raises(ConfigError, match="prefix_index"):
            make(tiny, prefix_index="radix")
        with pytest.raises(ConfigError, match="max_cached_blocks"):
            make(tiny, max_cached_blocks=-1)
        with pytest.raises(InvalidRequestError, match=r"n is 9, more than max_num_seqs \(8\)"):
            make(tiny).generate(tiny.prompts[1], SamplingParams(n=9))


class TestLife:
    def test_a_preempted_request_hits_its_own_blocks(self, tiny: TinyModel) -> None:
        """Four requests of up to 73 tokens in a pool of 80, each resumed from what is left."""
        engine = make(tiny, num_blocks=20)
        engine.runner.cache.kv.fill_(float("nan"))
        outputs = engine.generate(tiny.prompts, greedy(40))
        assert ids_of(outputs) == [[tuple(tiny.oracle.greedy(p, 40))] for p in tiny.prompts]
        stats = engine.manager.stats()
        assert engine.scheduler.num_preemptions == stats.num_resumed > 0
        assert stats.resumed_hit_tokens > 0
        begun: dict[int, list[int]] = {}
        for step in engine.trace:
            for item in step.admitted:
                begun.setdefault(item.seq_id, []).append(item.num_cached_tokens)
        again = [hits for first, *hits in begun.values() if hits]
        assert sum(map(sum, again)) == stats.resumed_hit_tokens
        assert all(cached(output) == 0 for output in outputs), "nobody shared when it first began"
        finish(engine)

    def test_evicted_blocks_are_computed_again(self, tiny: TinyModel) -> None:
        """The first leaves ten blocks of twelve, the second needs ten: two at the head are left."""
        engine = make(tiny, num_blocks=12)
        other = list(reversed(tiny.prompts[3]))
        outputs = [serve(engine, prompt, 8) for prompt in (tiny.prompts[3], other, tiny.prompts[3])]
        assert [cached(output) for output in outputs] == [0, 0, 8]
        assert outputs[0].outputs == outputs[2].outputs
        assert engine.manager.stats().evicted_blocks == 8 + 8
        finish(engine)

    def test_counts_are_exact(self, tiny: TinyModel) -> None:
        engine = make(tiny)
        for prompt in (tiny.prompts[3], tiny.prompts[3], tiny.prompts[2], tiny.prompts[2]):
            serve(engine, prompt)
        stats = engine.manager.stats()
        assert (stats.num_queries, stats.num_resumed, stats.evicted_blocks) == (4, 0, 0)
        assert (stats.queried_tokens, stats.hit_tokens) == (2 * 33 + 2 * 16, 32 + 12)
        assert engine.stats().prompt_tokens == 98

    def test_a_stream_says_what_it_found(self, tiny: TinyModel) -> None:
        engine = make(tiny)
        prompt = tiny.prompts[3]
        serve(engine, prompt)
        outputs = list(engine.stream(prompt, greedy(5)))
        assert [cached(output) for output in outputs] == [32] * 5
        assert list(outputs[-1].outputs[0].token_ids) == tiny.oracle.greedy(prompt, 5)
        finish(engine)

    @pytest.mark.parametrize("steps", [1, 2, 6])
    def test_an_aborted_request_leaves_what_it_computed(self, tiny: TinyModel, steps: int) -> None:
        """One step computes 33 tokens, each further one adds one; the tail of a block is lost."""
        engine = make(tiny)
        prompt = tiny.prompts[3]
        path = tiny.oracle.greedy(prompt, 20)
        name = engine.add_request(prompt, greedy(20))
        for _ in range(steps):
            engine.step()
        engine.abort(name)
        finish(engine)
        output = serve(engine, prompt + path[:10], 5)
        assert cached(output) == (32 + steps) // 4 * 4
        assert list(output.outputs[0].token_ids) == path[10:15]
        finish(engine)

    def test_a_stream_closed_early_shares_with_the_next(self, tiny: TinyModel) -> None:
        engine = make(tiny)
        stream = engine.stream(tiny.prompts[3], greedy(20))
        next(stream)
        stream.close()
        assert cached(serve(engine, tiny.prompts[3])) == 32
        finish(engine)

    def test_an_abort_in_the_queue_leaves_nothing(self, tiny: TinyModel) -> None:
        engine = make(tiny)
        engine.abort(engine.add_request(tiny.prompts[3], greedy(4)))
        assert cached(serve(engine, tiny.prompts[3])) == 0
        finish(engine)

    def test_a_failed_step_is_never_found(
        self, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its blocks were published, and hold no K and V."""
        engine = make(tiny)

        def fail(*args: Any) -> None:
            raise torch.OutOfMemoryError("injected")

        monkeypatch.setattr(engine.runner.backend, "forward", fail)
        with pytest.raises(OutOfMemoryError, match="a step does not fit cpu: injected"):
            engine.generate(tiny.prompts, greedy(4))
        monkeypatch.undo()
        output = serve(engine, tiny.prompts[3], 5)
        assert cached(output) == 0
        assert list(output.outputs[0].token_ids) == tiny.oracle.greedy(tiny.prompts[3], 5)
        engine.manager.check()


@pytest.mark.parametrize("stage", ["m3_paged", "m4_flash", "m5_chunked", "m6_prefix"])
def test_without_a_trace_no_events_pile_up(tiny: TinyModel, stage: str) -> None:
    """Nobody would ever drain them."""
    plain, traced = make(tiny, stage, trace=False), make(tiny, stage)
    for engine in (plain, traced):
        engine.add_request(tiny.prompts[3], greedy(3))
        engine.scheduler.schedule()
    assert plain.scheduler.drain_events() == ()
    assert len(traced.scheduler.drain_events()) >= 9
