"""What the M1 engine promises beyond the surface that every stage shares."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
import torch

from common.errors import InvalidRequestError, OutOfMemoryError
from common.model_costs import kv_bytes, weight_bytes
from common.output_processor import RequestState
from common.outputs import RequestOutput
from common.request import SamplingParams
from common.step_record import Admission, Finish, ScheduledSlice, StepRecord
from common.testing.conformance import build, ids_of
from common.testing.fixtures import TinyModel
from m1_basic.engine import LLMEngine


def greedy(tokens: int, **more: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, **more)


def make(model: TinyModel, **options: Any) -> LLMEngine:
    engine: LLMEngine = build("m1_basic", model, **options)
    return engine


def steps_of(engine: LLMEngine) -> list[StepRecord]:
    """The records of a trace that holds together."""
    assert engine.trace is not None
    engine.trace.validate()
    return list(engine.trace)


class TestStats:
    def test_nothing_has_happened_yet(self, tiny: TinyModel) -> None:
        engine = make(tiny, max_model_len=64)
        stats, config = engine.stats(), engine.model.config
        assert (stats.num_requests, stats.num_steps, stats.generated_tokens) == (0, 0, 0)
        assert (stats.prefill_seconds, stats.decode_seconds) == (0.0, 0.0)
        assert stats.weight_bytes == weight_bytes(config, "float32")
        assert stats.kv_bytes == kv_bytes(config, 64, "float32")

    def test_prefill_and_decode_are_timed_apart(self, tiny: TinyModel) -> None:
        engine = make(tiny)
        begin = time.perf_counter()
        engine.generate([tiny.prompts[2]], greedy(1))
        first = engine.stats()
        assert first.prefill_seconds > 0
        assert first.decode_seconds == 0.0
        engine.generate([tiny.prompts[2]], greedy(5))
        second = engine.stats()
        assert second.prefill_seconds > first.prefill_seconds
        assert second.decode_seconds > 0
        elapsed = time.perf_counter() - begin
        assert second.prefill_seconds + second.decode_seconds < elapsed

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, [(True, 7), (False, 1), (False, 1)]),
            ({"use_cache": False}, [(True, 7), (False, 8), (False, 9)]),
        ],
        ids=["cache", "no cache"],
    )
    def test_tokens_computed_per_step(
        self,
        tiny: TinyModel,
        monkeypatch: pytest.MonkeyPatch,
        options: dict[str, Any],
        expected: list[tuple[bool, int]],
    ) -> None:
        engine, passes, steps = make(tiny, **options), list[int](), list[tuple[bool, int]]()
        forward = engine.model.forward

        def counted(ids: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
            passes.append(len(ids))
            return forward(ids, *rest, **more)

        monkeypatch.setattr(engine.model, "forward", counted)
        monkeypatch.setattr(
            engine.recorder,
            "on_step",
            lambda _, prefill, num_tokens, **_more: steps.append((prefill, num_tokens)),
        )
        engine.generate([tiny.prompts[1]], greedy(3))
        assert steps == expected
        assert passes == [count for _, count in expected]
        assert (engine.stats().kv_bytes == 0) == (options == {"use_cache": False})

    def test_generate_takes_one_snapshot_and_stream_one_per_token(
        self, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine, taken, output = make(tiny), list[str](), RequestState.output

        def counted(self: RequestState) -> RequestOutput:
            taken.append(self.request.request_id)
            return output(self)

        monkeypatch.setattr(RequestState, "output", counted)
        engine.generate([tiny.prompts[1]] * 2, greedy(9))
        assert len(taken) == 2
        assert len(list(engine.stream(tiny.prompts[1], greedy(9)))) == 9
        assert len(taken) == 2 + 9


class TestOneAtATime:
    def test_a_second_request_has_to_wait_for_an_open_stream(self, tiny: TinyModel) -> None:
        engine = make(tiny)
        first, second = (engine.stream(tiny.prompts[i], greedy(8)) for i in (1, 2))
        next(first)
        message = "one request at a time: end or close the stream of request 0"
        with pytest.raises(InvalidRequestError, match=message):
            next(second)
        with pytest.raises(InvalidRequestError, match=message):
            engine.generate([tiny.prompts[2]], greedy(8))
        *_, last = first
        assert last.outputs[0].token_ids == tuple(tiny.oracle.greedy(tiny.prompts[1], 8))
        after = engine.generate([tiny.prompts[2]], greedy(8))
        assert ids_of(after) == [[tuple(tiny.oracle.greedy(tiny.prompts[2], 8))]]

    def test_streams_opened_together_run_one_after_the_other(self, tiny: TinyModel) -> None:
        engine = make(tiny, trace=True)
        streams = [engine.stream(prompt, greedy(4)) for prompt in tiny.prompts]
        outputs = [list(stream)[-1] for stream in streams]
        assert ids_of(outputs) == [[tuple(tiny.oracle.greedy(p, 4))] for p in tiny.prompts]
        assert [output.request_id for output in outputs] == ["0", "1", "2", "3"]
        arrivals = [output.metrics.arrival_time for output in outputs]
        ends = [output.metrics.finished_time for output in outputs]
        assert max(arrivals) < min(end for end in ends if end is not None)
        steps_of(engine)

    def test_a_stream_closed_before_its_first_token_never_happened(self, tiny: TinyModel) -> None:
        engine = make(tiny, trace=True)
        engine.stream(tiny.prompts[1], greedy(8)).close()
        assert (engine.stats().num_requests, engine.stats().num_steps) == (0, 0)
        assert steps_of(engine) == []
        after = engine.generate([tiny.prompts[1]], greedy(8))
        assert ids_of(after) == [[tuple(tiny.oracle.greedy(tiny.prompts[1], 8))]]

    def test_a_forgotten_stream_frees_the_engine(self, tiny: TinyModel) -> None:
        engine = make(tiny)
        stream = engine.stream(tiny.prompts[1], greedy(8))
        next(stream)
        del stream
        assert engine.stats().num_requests == 1
        engine.generate([tiny.prompts[1]], greedy(1))

    def test_a_stream_is_checked_before_its_first_token(self, tiny: TinyModel) -> None:
        with pytest.raises(InvalidRequestError, match="empty"):
            make(tiny).stream([], greedy(1))


class TestTrace:
    def slice(self, path: list[int], start: int, num_tokens: int) -> ScheduledSlice:
        """The step that computes ``start`` … of a 7-token prompt and samples the next of path."""
        known = start + num_tokens
        phase = "prefill" if start < 7 else "decode"
        return ScheduledSlice(0, "0", start, num_tokens, known, phase, 1, (path[known - 7],))  # type: ignore[arg-type]

    @pytest.mark.parametrize("use_cache", [True, False])
    def test_the_records_of_three_tokens(self, tiny: TinyModel, use_cache: bool) -> None:
        engine = make(tiny, trace=True, use_cache=use_cache)
        engine.generate([tiny.prompts[1]], greedy(3))
        path = tiny.oracle.greedy(tiny.prompts[1], 3)
        parts = [(0, 7), (7, 1), (8, 1)] if use_cache else [(0, 7), (0, 8), (0, 9)]
        first, second, third = (self.slice(path, *part) for part in parts)
        assert steps_of(engine) == [
            StepRecord(0, waiting=(0,), admitted=(Admission(0),), slices=(first,)),
            StepRecord(1, running=(0,), slices=(second,)),
            StepRecord(2, running=(0,), slices=(third,), finished=(Finish(0, "length"),)),
        ]
        assert engine.trace is not None
        assert engine.trace.info.kv_cache is use_cache
        assert all(step.elapsed_ms is not None and step.elapsed_ms > 0 for step in engine.trace)

    def test_completions_follow_each_other(self, tiny: TinyModel) -> None:
        engine = make(tiny, trace=True)
        params = SamplingParams(n=2, seed=0, max_tokens=2, ignore_eos=True)
        [output] = engine.generate([tiny.prompts[1]], params)
        records = steps_of(engine)
        assert [step.slices[0].seq_id for step in records] == [0, 0, 1, 1]
        assert [step.slices[0].phase for step in records] == ["prefill", "decode"] * 2
        assert engine.trace is not None
        for completion in output.outputs:
            assert engine.trace.output_token_ids(completion.index) == completion.token_ids

    def test_an_abort_is_a_record_of_its_own(self, tiny: TinyModel) -> None:
        engine = make(tiny, trace=True)
        stream = engine.stream(tiny.prompts[1], greedy(8))
        next(stream), next(stream)
        stream.close()
        records = steps_of(engine)
        assert len(records) == 3
        assert records[2] == StepRecord(2, running=(0,), finished=(Finish(0, "abort"),))
        assert engine.stats().generated_tokens == 2

    def test_completions_that_never_started_are_not_in_the_trace(self, tiny: TinyModel) -> None:
        engine = make(tiny, trace=True)
        params = SamplingParams(n=3, seed=0, max_tokens=4, ignore_eos=True)
        stream = engine.stream(tiny.prompts[1], params)
        for _ in range(5):  # four tokens of completion 0, one of completion 1
            next(stream)
        stream.close()
        steps_of(engine)
        assert engine.trace is not None
        assert set(engine.trace.sequences) == {0, 1}
        ended = [(end.seq_id, end.reason) for step in engine.trace for end in step.finished]
        assert ended == [(0, "length"), (1, "abort")]


class TestOutOfMemory:
    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        ],
        ids=["gpu", "cpu"],
    )
    @pytest.mark.parametrize("after", [0, 3])
    def test_the_request_ends_and_the_engine_goes_on(
        self, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch, error: Exception, after: int
    ) -> None:
        engine, calls = make(tiny, trace=True), itertools.count()
        forward = engine.model.forward

        def failing(*args: Any, **more: Any) -> torch.Tensor:
            if next(calls) == after:
                raise error
            return forward(*args, **more)

        monkeypatch.setattr(engine.model, "forward", failing)
        tokens, context = (7, 7) if after == 0 else (1, 10)
        with pytest.raises(
            OutOfMemoryError, match=rf"pass over {tokens} tokens \(context {context}\).* cpu"
        ) as caught:
            engine.generate([tiny.prompts[1]], greedy(8))
        assert caught.value.__cause__ is error
        assert engine.stats().num_requests == 1
        finished = [end for step in steps_of(engine) for end in step.finished]
        assert finished == ([Finish(0, "abort")] if after else [])
        after_it = engine.generate([tiny.prompts[2]], greedy(8))
        assert ids_of(after_it) == [[tuple(tiny.oracle.greedy(tiny.prompts[2], 8))]]

    def test_other_failures_are_not_called_out_of_memory(
        self, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = make(tiny)

        def broken(*_args: Any) -> torch.Tensor:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

        monkeypatch.setattr(engine.model, "forward", broken)
        with pytest.raises(RuntimeError, match="mat1"):
            engine.generate([tiny.prompts[1]], greedy(8))
