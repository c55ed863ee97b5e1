"""The M3 engine: edge positions, what it refuses, how large its pool is, and parallel samples."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

import m3_paged.paged_attention
from common.errors import ConfigError, InvalidRequestError, OutOfMemoryError
from common.request import SamplingParams
from common.testing.conformance import build, ids_of
from common.testing.fixtures import TinyModel
from m0_init.device_memory import DeviceMemory
from m2_batching.tests.helpers import run_all
from m3_paged import pool_size, reserve
from m3_paged.engine import kernel_supports

BLOCK_BYTES = 3 * 2 * 2 * 32 * 4  # per token: layers, K and V, KV heads, head_dim, float32


def make(model: TinyModel, **options: Any) -> Any:
    return build("m3_paged", model, **{"num_blocks": 64, "block_size": 4, "trace": True, **options})


def greedy(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)


def finish(engine: Any) -> None:
    """Nothing is left of what ran."""
    assert not engine.has_unfinished_requests()
    engine.scheduler.manager.check()
    assert engine.scheduler.manager.pool.num_free == engine.runner.cache.num_blocks
    engine.trace.validate()


@pytest.fixture(scope="module")
def below(tiny: TinyModel) -> Any:
    """M2 with room for everybody."""
    return build("m2_batching", tiny, max_num_seqs=8)


class TestEdges:
    @pytest.mark.parametrize("length", [1, 3, 4, 5, 7, 8, 9, 12, 13])
    @pytest.mark.parametrize("n", [1, 3])
    def test_prompts_around_block_borders(
        self, tiny: TinyModel, below: Any, length: int, n: int
    ) -> None:
        engine = make(tiny)
        params = SamplingParams(seed=length, n=n, max_tokens=6, ignore_eos=True)
        prompt = tiny.prompts[2][:length]
        assert ids_of(engine.generate(prompt, params)) == ids_of(below.generate(prompt, params))
        finish(engine)

    def test_eos_as_the_first_token(self, tiny: TinyModel) -> None:
        engine = make(tiny)
        (eos,) = tiny.oracle.greedy(tiny.prompts[1], 1)
        engine.eos_token_ids = engine.sampler.eos_token_ids = (eos,)
        outputs = engine.generate(
            [tiny.prompts[1], tiny.prompts[2]], SamplingParams(temperature=0, max_tokens=9)
        )
        completion = outputs[0].outputs[0]
        assert (completion.token_ids, completion.text) == ((eos,), "")
        assert completion.finish_reason == "stop"
        finish(engine)

    def test_the_longest_prompt_leaves_one_token(self, tiny: TinyModel) -> None:
        """Of a pool that holds exactly one such request."""
        engine = make(tiny, num_blocks=8, max_model_len=32)
        prompt = tiny.prompts[3][:31]
        (output,) = engine.generate(prompt, greedy(9))
        assert list(output.outputs[0].token_ids) == tiny.oracle.greedy(prompt, 1)
        assert output.outputs[0].finish_reason == "length"
        finish(engine)

    def test_alone_it_fills_the_pool_to_the_last_place(self, tiny: TinyModel) -> None:
        engine = make(tiny, num_blocks=8, max_model_len=32)
        (output,) = engine.generate(tiny.prompts[1], greedy(64))
        assert list(output.outputs[0].token_ids) == tiny.oracle.greedy(tiny.prompts[1], 25)
        assert engine.scheduler.num_preemptions == 0
        finish(engine)

    def test_finish_and_admit_in_the_same_step(self, tiny: TinyModel) -> None:
        engine = make(tiny, max_num_seqs=1)
        engine.generate(tiny.prompts[1:3], [greedy(1), greedy(2)])
        assert [[f.seq_id for f in step.finished] for step in engine.trace] == [[0], [], [1]]
        assert [[a.seq_id for a in step.admitted] for step in engine.trace] == [[0], [1], []]
        finish(engine)

    @pytest.mark.parametrize("block_size", [1, 2, 7, 16])
    def test_a_preempted_sequence_resumes_with_the_same_tokens(
        self, tiny: TinyModel, block_size: int
    ) -> None:
        """Four prompts (57 tokens) and 160 tokens of output in a pool of 80."""
        engine = make(tiny, block_size=block_size, num_blocks=-(-80 // block_size))
        outputs = engine.generate(tiny.prompts, greedy(40))
        assert ids_of(outputs) == [[tuple(tiny.oracle.greedy(p, 40))] for p in tiny.prompts]
        assert engine.scheduler.num_preemptions > 0
        assert sum(len(step.preempted) for step in engine.trace) > 0
        finish(engine)

    def test_samples_that_find_no_room_at_their_fork(self, tiny: TinyModel, below: Any) -> None:
        """Eleven blocks: the prompt takes nine, and four samples want one more each."""
        engine = make(tiny, num_blocks=11)
        params = SamplingParams(seed=1, n=4, max_tokens=8, ignore_eos=True)
        prompt = tiny.prompts[3]
        assert ids_of(engine.generate(prompt, params)) == ids_of(below.generate(prompt, params))
        assert engine.scheduler.num_preemptions > 0
        finish(engine)

    def test_poisoned_memory_changes_no_token(self, tiny: TinyModel, below: Any) -> None:
        engine = make(tiny, num_blocks=24)
        engine.runner.cache.kv.fill_(float("nan"))
        params = [SamplingParams(seed=i, n=1 + i % 3, max_tokens=9) for i in range(4)]
        outputs = engine.generate(tiny.prompts, params)
        assert ids_of(outputs) == ids_of(below.generate(tiny.prompts, params))
        finish(engine)

    def test_priorities_change_the_order_and_no_token(self, tiny: TinyModel) -> None:
        engine = make(tiny, num_blocks=20, policy="priority")
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
        assert engine.trace.steps[3].preempted == (0,)
        finish(engine)


class TestRefusals:
    def test_more_samples_than_seats(self, tiny: TinyModel) -> None:
        engine = make(tiny, max_num_seqs=2)
        with pytest.raises(InvalidRequestError, match=r"n is 3, more than max_num_seqs \(2\)"):
            engine.generate(tiny.prompts[1], SamplingParams(n=3))
        finish(engine)

    def test_a_length_that_the_pool_cannot_hold(self, tiny: TinyModel) -> None:
        message = "max_model_len is 65 tokens and the KV pool holds 64"
        with pytest.raises(ConfigError, match=message):
            make(tiny, num_blocks=16, max_model_len=65)
        assert make(tiny, num_blocks=16, max_model_len=64).max_model_len == 64

    def test_a_prompt_that_the_pool_cannot_hold(
        self, tiny: TinyModel, caplog: pytest.LogCaptureFixture
    ) -> None:
        engine = make(tiny, num_blocks=4)
        assert engine.max_model_len == 16
        assert "max_model_len is limited to the 16 tokens of the pool" in caplog.text
        with pytest.raises(InvalidRequestError, match=r"16 tokens.*max_model_len \(16\)"):
            engine.generate(tiny.prompts[2], greedy(1))
        assert len(engine.generate(tiny.prompts[2][:15], greedy(9))[0].outputs[0].token_ids) == 1
        finish(engine)


class TestPool:
    def test_the_measured_memory_decides(
        self, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        memory = DeviceMemory("cpu", "a CPU", 10**9, 200 * 16 * BLOCK_BYTES)
        monkeypatch.setattr(pool_size, "device_memory", lambda _device: memory)
        with caplog.at_level(logging.INFO):
            engine = build("m3_paged", tiny, gpu_memory_utilization=0.5)
        assert (engine.runner.cache.num_blocks, engine.runner.cache.block_size) == (100, 16)
        assert engine.kv_bytes() == engine.stats().kv_bytes == 100 * 16 * BLOCK_BYTES
        assert "100 KV blocks of 16 tokens, 0.00 GiB (50% of 0.00 GiB available)" in caplog.text

    def test_never_more_than_all_seats_can_use(self, tiny: TinyModel) -> None:
        engine = build("m3_paged", tiny, max_num_seqs=3, block_size=5)
        assert engine.runner.cache.num_blocks == 3 * 103  # 512 tokens each

    def test_not_one_block_fits(self, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
        memory = DeviceMemory("cpu", "a CPU", 10**9, 1000)
        monkeypatch.setattr(pool_size, "device_memory", lambda _device: memory)
        with pytest.raises(
            OutOfMemoryError, match=r"one block of 16 tokens needs 0\.02 MiB; left:"
        ):
            build("m3_paged", tiny)

    @pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
    def test_a_device_that_refuses_the_pool(
        self, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
    ) -> None:
        def refuse(*args: Any) -> None:
            raise error("no room")

        monkeypatch.setattr(reserve, "PagedKVCache", refuse)
        with pytest.raises(OutOfMemoryError, match="cpu refuses 64 blocks of 4 tokens"):
            make(tiny)

    def test_out_of_memory_in_a_step_has_a_type_and_leaves_nothing_behind(
        self, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = make(tiny)

        def fail(*args: Any) -> None:
            raise torch.OutOfMemoryError("injected")

        monkeypatch.setattr(m3_paged.paged_attention, "gathered_decode", fail)
        with pytest.raises(OutOfMemoryError, match="a step does not fit cpu: injected"):
            engine.generate(tiny.prompts, greedy(5))
        monkeypatch.undo()
        engine.scheduler.manager.check()
        assert engine.scheduler.manager.pool.num_free == 64
        again = engine.generate(tiny.prompts[1], greedy(5))
        assert list(again[0].outputs[0].token_ids) == tiny.oracle.greedy(tiny.prompts[1], 5)


class TestParallelSamples:
    def test_the_prompt_is_computed_once_and_stored_once(self, tiny: TinyModel) -> None:
        engine = make(tiny, block_size=16)
        params = SamplingParams(n=4, seed=0, max_tokens=3, ignore_eos=True)
        engine.generate(tiny.prompts[3], params)
        first, second = engine.trace[0], engine.trace[1]
        assert [(s.seq_id, s.num_tokens, s.num_sampled) for s in first.slices] == [(0, 32, 0)]
        assert [(s.seq_id, s.start, s.num_tokens) for s in second.slices] == [
            (i, 32, 1) for i in range(4)
        ]
        assert [a.forked_from for a in second.admitted] == [0, 0, 0]
        kinds = [event.kind for event in second.block_events]
        assert (kinds.count("share"), kinds.count("alloc"), kinds.count("copy")) == (6, 4, 0)
        finish(engine)

    def test_the_partial_block_is_copied_by_all_but_the_last(self, tiny: TinyModel) -> None:
        engine = make(tiny, block_size=16)
        params = SamplingParams(n=3, seed=0, max_tokens=3, ignore_eos=True)
        engine.generate(tiny.prompts[1], params)
        kinds = [event.kind for event in engine.trace[1].block_events]
        assert kinds == ["share", "share", "copy", "copy"]
        finish(engine)

    @pytest.mark.parametrize("steps", [0, 1, 2, 4])
    def test_abort_in_every_state(self, tiny: TinyModel, steps: int) -> None:
        engine = make(tiny)
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


def test_the_parts_are_those_of_this_stage(tiny: TinyModel) -> None:
    engine = make(tiny)
    assert type(engine.scheduler).__module__ == "m3_paged.scheduler"
    assert type(engine.scheduler.manager).__module__ == "m3_paged.kv_cache_manager"
    assert type(engine.runner).__module__ == "m3_paged.runner"
    assert not engine.runner.use_kernel
    assert not kernel_supports(torch.device("cpu"), 32, 16)
    info = engine.trace.info
    assert (info.stage, info.block_size, info.num_blocks) == ("m3_paged", 4, 64)
