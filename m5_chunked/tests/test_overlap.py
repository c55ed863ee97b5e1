"""The overlapped loop gives what the plain one gives, one step later."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.request import SamplingParams
from common.testing.conformance import EngineConformance, build, ids_of
from common.testing.fixtures import TinyModel
from m2_batching.step_loop import StepLoop
from m5_chunked.overlap import OverlappedLoop, choose_loop

MIXED = [
    SamplingParams(temperature=0, max_tokens=20, ignore_eos=True),
    SamplingParams(seed=3, max_tokens=20, temperature=0.8, top_p=0.9),
    SamplingParams(seed=9, max_tokens=12, n=3, frequency_penalty=0.5),
    SamplingParams(temperature=0, max_tokens=9, repetition_penalty=1.3, min_tokens=3),
]


class TestOverlapped(EngineConformance):
    """The whole public surface with one step in flight."""

    stage = "m5_chunked"
    below = "m4_flash"
    options: ClassVar[dict[str, Any]] = {
        "max_num_seqs": 8, "num_blocks": 64, "max_num_batched_tokens": 16, "overlap": True,
    }  # fmt: skip
    below_options: ClassVar[dict[str, Any]] = {"max_num_seqs": 8, "num_blocks": 64}


def make(model: TinyModel, **options: Any) -> Any:
    base = {"num_blocks": 64, "max_num_seqs": 4, "trace": True}
    return build("m5_chunked", model, **{**base, **options})


def test_the_loop_follows_the_device_unless_it_is_asked_for(tiny: TinyModel) -> None:
    engine = make(tiny)
    assert type(engine.loop) is StepLoop
    assert type(make(tiny, overlap=True).loop) is OverlappedLoop
    assert type(choose_loop(engine, None, "cuda:0")) is OverlappedLoop
    assert type(choose_loop(engine, False, "cuda:0")) is StepLoop


@pytest.mark.parametrize("blocks", [64, 14])
@pytest.mark.parametrize("budget", [5, 64])
def test_outputs_equal_the_plain_loops(tiny: TinyModel, budget: int, blocks: int) -> None:
    """Roomy, and in a pool that preempts sequences with a token in flight."""
    options = {"num_blocks": blocks, "block_size": 4, "max_num_batched_tokens": budget}
    plain, ahead = (
        make(tiny, **options, max_model_len=48),
        make(tiny, **options, max_model_len=48, overlap=True),
    )
    ours, theirs = (engine.generate(tiny.prompts, MIXED) for engine in (ahead, plain))
    assert [o.outputs for o in ours] == [o.outputs for o in theirs]
    assert (ahead.scheduler.num_preemptions > 0) == (blocks == 14)
    for engine in (plain, ahead):
        engine.trace.validate()
        engine.scheduler.manager.check()
        assert engine.scheduler.manager.pool.num_free == blocks
    assert (plain.trace.info.lookahead, ahead.trace.info.lookahead) == (0, 1)


def test_a_limit_is_foreseen_and_a_stop_is_not(tiny: TinyModel) -> None:
    """Nothing is computed beyond max_tokens; behind an EOS one token is."""
    prompt = tiny.prompts[1]
    path = tiny.oracle.greedy(prompt, 12)
    engine = make(tiny, overlap=True)
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    engine.generate(prompt, params)
    assert sum(step.num_tokens for step in engine.trace.steps) == len(prompt) + 5
    engine = make(tiny, overlap=True)
    stop = SamplingParams(temperature=0, max_tokens=12, stop_token_ids=(path[5],))
    (output,) = engine.generate(prompt, stop)
    end = path.index(path[5]) + 1
    assert list(output.outputs[0].token_ids) == path[:end]
    computed = sum(step.num_tokens for step in engine.trace.steps)
    assert computed == len(prompt) + end  # the last id's own token is computed for nothing
    engine.trace.validate()


def test_the_first_step_only_launches(tiny: TinyModel) -> None:
    engine = make(tiny, overlap=True)
    engine.add_request(
        tiny.prompts[1], SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    )
    lengths = []
    while engine.has_unfinished_requests():
        outputs = engine.step()
        lengths.append(len(outputs[0].outputs[0].token_ids) if outputs else 0)
    assert lengths == [0, 1, 2, 3]


def test_a_sequence_never_outgrows_the_context(tiny: TinyModel) -> None:
    engine = make(tiny, overlap=True, max_model_len=16, num_blocks=4, block_size=4)
    prompt = tiny.prompts[2][:13]
    params = SamplingParams(temperature=0, max_tokens=50, ignore_eos=True)
    (output,) = engine.generate([prompt], params)
    assert list(output.outputs[0].token_ids) == tiny.oracle.greedy(prompt, 3)
    assert max(part.start + part.num_tokens for s in engine.trace.steps for part in s.slices) == 15


@pytest.mark.parametrize("step", range(5))
def test_abort_with_a_token_in_flight(tiny: TinyModel, step: int) -> None:
    engine = make(tiny, overlap=True)
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    first = engine.add_request(tiny.prompts[1], params)
    for _ in range(step):
        engine.step()
    engine.abort(first)
    assert not engine.has_unfinished_requests()
    assert engine.scheduler.manager.pool.num_free == 64
    after = engine.generate(tiny.prompts[2], params)
    assert ids_of(after) == [[tuple(tiny.oracle.greedy(tiny.prompts[2], 20))]]
    engine.trace.validate()


def test_rows_come_back_whatever_ends_a_request(tiny: TinyModel) -> None:
    engine = make(tiny, overlap=True, max_num_seqs=2)
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    for _ in range(4):
        engine.generate(tiny.prompts[:2], params)
        names = [engine.add_request(prompt, params) for prompt in tiny.prompts[:2]]
        engine.step()
        for name in names:
            engine.abort(name)
        assert engine.step() == []
    engine.trace.validate()


def test_a_failed_step_forgets_what_was_in_flight(
    tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make(tiny, overlap=True)
    params = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
    engine.add_request(tiny.prompts[1], params)
    engine.step()

    def fail(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine.runner, "launch", fail)
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    monkeypatch.undo()
    assert not engine.has_unfinished_requests()
    after = engine.generate(tiny.prompts[2], params)
    assert ids_of(after) == [[tuple(tiny.oracle.greedy(tiny.prompts[2], 9))]]
    engine.trace.validate()


@settings(max_examples=12, deadline=None)
@example(budget=8, blocks=20, aborts=[(15, 2)])  # a step that only preempts
@given(
    budget=st.integers(2, 40),
    blocks=st.integers(12, 40),
    aborts=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), max_size=2),
)
def test_any_run_equals_the_plain_one(
    tiny: TinyModel, budget: int, blocks: int, aborts: list[tuple[int, int]]
) -> None:
    """Requests that nobody aborts give the same ids, whatever happens around them."""
    options = {
        "num_blocks": blocks, "block_size": 4, "max_num_batched_tokens": budget,
        "max_model_len": 48,
    }  # fmt: skip
    aborted = {number for _, number in aborts}
    results = []
    for overlap in (False, True):
        engine = make(tiny, **options, overlap=overlap)
        names = [
            engine.add_request(prompt, params)
            for prompt, params in zip(tiny.prompts, MIXED, strict=True)
        ]
        done, count = {}, 0
        while engine.has_unfinished_requests():
            for at, number in aborts:
                if at == count:
                    engine.abort(names[number])
            for output in engine.step():
                if output.finished:
                    done[output.request_id] = output.outputs
            count += 1
        engine.trace.validate()
        engine.scheduler.manager.check()
        assert engine.scheduler.manager.pool.num_free == blocks
        results.append({n: done.get(names[n]) for n in range(4) if n not in aborted})
    assert results[0] == results[1]
