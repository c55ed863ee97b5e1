"""What StepEngine adds to the surface: requests that come and go while others run."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from common.config import options_of
from common.errors import InvalidRequestError, UnsupportedOptionError
from common.outputs import RequestOutput
from common.request import SamplingParams
from common.testing.conformance import build, ids_of
from common.testing.fixtures import TinyModel
from m2_batching import LLMEngine
from m2_batching.tests.helpers import run_all


def greedy(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)


def seeded(seed: int, tokens: int, **more: Any) -> SamplingParams:
    return SamplingParams(seed=seed, max_tokens=tokens, ignore_eos=True, **more)


def make(model: TinyModel, slots: int = 4, **options: Any) -> Any:
    return build("m2_batching", model, max_num_seqs=slots, **{"trace": True, **options})


@pytest.fixture(scope="module")
def engine(tiny: TinyModel) -> Any:
    """For tests that leave it as they found it."""
    return make(tiny)


class TestSteps:
    def test_a_loop_over_step_equals_generate(self, tiny: TinyModel, engine: Any) -> None:
        params = [seeded(i, 3 + 4 * i) for i in range(4)]
        names = [engine.add_request(p, s) for p, s in zip(tiny.prompts, params, strict=True)]
        outputs = run_all(engine)
        assert [outputs[name].outputs for name in names] == [
            o.outputs for o in engine.generate(tiny.prompts, params)
        ]

    def test_a_step_returns_the_requests_that_got_a_token(
        self, tiny: TinyModel, engine: Any
    ) -> None:
        a = engine.add_request(tiny.prompts[1], greedy(3))
        assert engine.has_unfinished_requests()
        first = engine.step()
        assert [(o.request_id, len(o.outputs[0].token_ids)) for o in first] == [(a, 1)]
        b = engine.add_request(tiny.prompts[2], greedy(2))
        assert [o.request_id for o in engine.step()] == [b]  # prefill first
        both = engine.step()
        assert [(o.request_id, o.finished) for o in both] == [(a, False), (b, True)]
        assert [(o.request_id, o.finished) for o in engine.step()] == [(a, True)]
        assert not engine.has_unfinished_requests()

    def test_a_step_without_requests_does_nothing(self, engine: Any) -> None:
        before = engine.stats().num_steps
        assert engine.step() == []
        assert engine.stats().num_steps == before

    def test_the_completions_of_a_request_come_together(self, tiny: TinyModel, engine: Any) -> None:
        engine.add_request(tiny.prompts[1], seeded(5, 4, n=3))
        (output,) = engine.step()
        assert [len(c.token_ids) for c in output.outputs] == [1, 1, 1]
        run_all(engine)

    def test_requests_that_arrive_while_others_run_change_no_token(
        self, tiny: TinyModel, engine: Any
    ) -> None:
        """A random mix of arrivals against each request alone, and against M1."""
        prompts = [tiny.prompts[i % 4] for i in range(12)]
        params = [
            seeded(i, 2 + 3 * i % 11, temperature=0.8, top_p=0.9) if i % 3 else greedy(2 + i)
            for i in range(12)
        ]
        names = []
        outputs: dict[str, RequestOutput] = {}
        for i, (prompt, each) in enumerate(zip(prompts, params, strict=True)):
            names.append(engine.add_request(prompt, each))
            for _ in range(i % 3):
                outputs |= {o.request_id: o for o in engine.step()}
        outputs |= run_all(engine)
        mixed = [outputs[name].outputs for name in names]
        assert all(outputs[name].finished for name in names)
        alone = [engine.generate(p, s)[0].outputs for p, s in zip(prompts, params, strict=True)]
        below = build("m1_basic", tiny).generate(prompts, params)
        assert mixed == alone == [o.outputs for o in below]

    def test_finish_and_admit_in_the_same_step(self, tiny: TinyModel) -> None:
        engine = make(tiny, slots=1)
        engine.generate(tiny.prompts[:2], [greedy(1), greedy(2)])
        trace = engine.trace
        assert [[f.seq_id for f in step.finished] for step in trace] == [[0], [], [1]]
        assert [[a.seq_id for a in step.admitted] for step in trace] == [[0], [1], []]
        kinds = [(e.kind, e.block, e.seq_id) for step in trace for e in step.block_events]
        assert kinds == [("alloc", 0, 0), ("free", 0, 0), ("alloc", 0, 1), ("free", 0, 1)]
        trace.validate()


class TestAbort:
    def test_waiting_running_and_finished(self, tiny: TinyModel) -> None:
        engine = make(tiny, slots=1)
        a, b, c = (engine.add_request(tiny.prompts[1], greedy(n)) for n in (6, 6, 4))
        engine.step()
        engine.abort(b)  # waits
        engine.step()
        engine.abort(a)  # runs
        outputs = run_all(engine)
        assert set(outputs) == {c}
        engine.abort(c)  # has finished
        engine.abort("no such request")
        assert engine.stats().num_requests == 3
        assert engine.scheduler.slots.num_free == 1
        assert ids_of([outputs[c]]) == ids_of(engine.generate(tiny.prompts[1], greedy(4)))
        reasons = [(f.seq_id, f.reason) for step in engine.trace for f in step.finished]
        assert reasons == [(1, "abort"), (0, "abort"), (2, "length"), (3, "length")]
        engine.trace.validate()

    def test_preempted(self, tiny: TinyModel) -> None:
        engine = make(tiny, slots=1, policy="priority")
        low = engine.add_request(tiny.prompts[1], greedy(9), priority=2)
        engine.step()
        high = engine.add_request(tiny.prompts[2], greedy(3), priority=1)
        engine.step()
        engine.abort(low)
        assert set(run_all(engine)) == {high}
        engine.trace.validate()

    def test_the_last_request_leaves_an_idle_engine(self, tiny: TinyModel) -> None:
        engine = make(tiny)
        name = engine.add_request(tiny.prompts[1], seeded(1, 9, n=2))
        engine.step()
        engine.abort(name)
        assert not engine.has_unfinished_requests()
        assert engine.step() == []
        assert engine.scheduler.slots.num_free == 4
        assert [f.reason for f in engine.trace[-1].finished] == ["abort", "abort"]
        engine.trace.validate()

    def test_whatever_ends_generate_early_leaves_nothing_behind(
        self, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = make(tiny)
        real, left = engine.runner.launch, 3

        def launch(plan: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
            return real(plan)

        monkeypatch.setattr(engine.runner, "launch", launch)
        with pytest.raises(KeyboardInterrupt):
            engine.generate(tiny.prompts, greedy(9))
        assert not engine.has_unfinished_requests()
        assert engine.scheduler.slots.num_free == 4
        monkeypatch.undo()
        fresh = make(tiny).generate(tiny.prompts, greedy(5))
        assert ids_of(engine.generate(tiny.prompts, greedy(5))) == ids_of(fresh)


class TestPriority:
    def test_smaller_numbers_first_and_a_newcomer_takes_a_place(self, tiny: TinyModel) -> None:
        engine = make(tiny, slots=1, policy="priority")
        prompts, params = tiny.prompts[:3], greedy(4)
        names = [engine.add_request(prompts[0], params, priority=3)]
        engine.step()
        engine.step()
        names.append(engine.add_request(prompts[1], params, priority=2))
        names.append(engine.add_request(prompts[2], params, priority=1))
        outputs: dict[str, RequestOutput] = {}
        order = []
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    order.append(output.request_id)
                    outputs[output.request_id] = output
        assert order == [names[2], names[1], names[0]]
        assert [step.preempted for step in engine.trace if step.preempted] == [(0,)]
        assert ids_of([outputs[n] for n in names]) == ids_of(make(tiny).generate(prompts, params))
        engine.trace.validate()

    def test_a_victim_that_has_aged_past_the_newcomer_is_not_lost(self, tiny: TinyModel) -> None:
        """It goes back to the very front of the queue, ahead of the request that displaced it."""
        engine = make(tiny, slots=1, policy="priority")
        params = greedy(80)
        low = engine.add_request(tiny.prompts[1], params, priority=1)
        for _ in range(70):  # more than a point of priority is worth
            engine.step()
        high = engine.add_request(tiny.prompts[2], greedy(3), priority=0)
        outputs = run_all(engine)
        assert set(outputs) == {low, high}
        assert ids_of([outputs[low]]) == ids_of(engine.generate(tiny.prompts[1], params))
        engine.trace.validate()

    def test_fcfs_refuses_what_it_would_ignore(self, tiny: TinyModel, engine: Any) -> None:
        with pytest.raises(InvalidRequestError, match=r"priority is -1, and the policy is fcfs"):
            engine.add_request(tiny.prompts[0], greedy(1), priority=-1)
        assert not engine.has_unfinished_requests()


def test_the_constructor_lists_the_options_of_its_stage() -> None:
    found = inspect.signature(LLMEngine).parameters
    assert list(found) == [row.name for row in options_of("m2_batching")]
    assert found["max_num_seqs"].default == 256
    assert found["model"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert found["policy"].kind is inspect.Parameter.KEYWORD_ONLY


def test_options_of_later_stages_are_refused(tiny: TinyModel) -> None:
    with pytest.raises(UnsupportedOptionError, match="'block_size': it arrives with m3_paged"):
        make(tiny, block_size=16)
    with pytest.raises(UnsupportedOptionError, match="'use_cache': it ended with m1_basic"):
        make(tiny, use_cache=False)


def test_without_a_trace_no_events_pile_up(tiny: TinyModel) -> None:
    """Nobody would ever drain them."""
    plain, traced = make(tiny, trace=False), make(tiny, trace=True)
    for engine in (plain, traced):
        engine.add_request(tiny.prompts[0], greedy(3))
        engine.scheduler.schedule()
    assert plain.scheduler.drain_events() == ()
    assert [event.kind for event in traced.scheduler.drain_events()] == ["alloc"]
