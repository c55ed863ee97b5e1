import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from common.errors import FoloError
from common.request import Request, SamplingParams, Sequence
from common.step_record import Admission, Finish, ScheduledSlice, StepRecord, phase_of
from common.tests.sample_traces import m1_trace, toys
from common.tests.toy_scheduler import Toy
from common.trace import Trace, TraceError, TraceInfo


class TestPhase:
    @pytest.mark.parametrize(
        ("start", "known", "prompt", "phase"),
        [
            (0, 1, 1, "prefill"),  # a prompt of one token is still a prompt
            (0, 5, 5, "prefill"),
            (4, 5, 5, "prefill"),  # last chunk, or the token left after a full prefix hit
            (5, 6, 5, "decode"),
            (0, 8, 5, "prefill"),  # recomputation after preemption
            (5, 8, 5, "prefill"),  # its second chunk: three known tokens are missing
            (7, 8, 5, "decode"),
        ],
    )
    def test_follows_from_the_counters(
        self, start: int, known: int, prompt: int, phase: str
    ) -> None:
        assert phase_of(start, known, prompt) == phase


class TestStepRecord:
    def test_queues_after_the_step_follow_from_its_decisions(self) -> None:
        step = StepRecord(
            0,
            waiting=(3, 4),
            running=(0, 1, 2),
            admitted=(Admission(3),),
            preempted=(2,),
            finished=(Finish(0, "stop"), Finish(4, "abort")),
        )
        assert step.running_after == (1, 3)
        assert step.waiting_after == (2,)

    def test_summary_names_every_event(self) -> None:
        part = ScheduledSlice(1, "r1", 0, 5, 5, "prefill", 1, (7,))
        step = StepRecord(
            4,
            running=(1,),
            slices=(part,),
            preempted=(2,),
            finished=(Finish(1, "stop"),),
            num_padding_tokens=3,
        )
        assert step.summary() == (
            "step 4 | waiting 1 | running 0 | prefill 5 + decode 0 tokens | padding 3 | "
            "preempted 2 | finished 1 (stop)"
        )


class TestTrace:
    def test_m1_trace_is_valid_and_has_the_tokens(self) -> None:
        trace = m1_trace()
        trace.validate()
        assert [step.slices[0].phase for step in trace] == [
            "prefill",
            "decode",
            "decode",
            "prefill",
            "decode",
        ]
        assert trace.output_token_ids(0) == (15, 16, 17)
        assert trace[0].sampled == {0: (15,)}

    def test_without_a_cache_every_step_is_a_prefill_of_everything(self) -> None:
        trace = m1_trace(kv_cache=False)
        trace.validate()
        assert [step.num_tokens for step in trace] == [5, 6, 7, 1, 2]
        assert {step.slices[0].phase for step in trace} == {"prefill"}

    def test_times_are_no_part_of_equality_or_of_the_canonical_form(self) -> None:
        trace, slower = m1_trace(), m1_trace()
        slower.steps[0] = dataclasses.replace(slower.steps[0], elapsed_ms=99.0)
        assert trace == slower
        assert trace.digest == slower.digest
        assert "elapsed_ms" not in trace.to_json()
        assert trace.to_json(timings=True) != slower.to_json(timings=True)

    def test_different_decisions_are_not_equal(self) -> None:
        trace, other = m1_trace(), m1_trace()
        other.steps[0] = dataclasses.replace(other.steps[0], num_padding_tokens=1)
        assert trace != other

    @given(toys)
    @settings(max_examples=40, deadline=None)
    def test_any_schedule_survives_the_file(self, toy: Toy) -> None:
        trace = toy.run()
        trace.validate()
        with_times = Trace.from_json(trace.to_json(timings=True))
        assert with_times == trace == Trace.from_json(trace.to_json())
        assert [step.elapsed_ms for step in with_times] == [step.elapsed_ms for step in trace]

    def test_write_and_read(self, tmp_path: Path) -> None:
        path = m1_trace().write(tmp_path / "deep" / "trace.json")
        assert Trace.read(path) == m1_trace()
        steps = [line for line in path.read_text().splitlines() if line.startswith('{"index"')]
        assert len(steps) == 5

    def test_paths_of_the_machine_stay_out(self) -> None:
        trace = Trace(TraceInfo("m1_basic", config={"model": "/home/me/models/Qwen3-0.6B"}))
        assert trace.info.config == {"model": "Qwen3-0.6B"}

    def test_sampling_keeps_what_differs_from_the_defaults(self) -> None:
        trace = Trace(TraceInfo("m1_basic"))
        params = SamplingParams(top_p=0.9, seed=4, stop="END", max_tokens=7)
        trace.add_sequence(Sequence(0, Request("a", (1, 2), params, priority=2)))
        request = trace.request_of(0)
        assert request.sampling == {"top_p": 0.9, "seed": 4, "stop": ["END"]}
        assert (request.max_tokens, request.num_prompt_tokens, request.priority) == (7, 2, 2)
        assert Trace.from_json(trace.to_json()) == trace

    def test_needs_no_torch(self) -> None:
        code = (
            "import sys; sys.modules['torch'] = None\n"
            "import common.trace, common.trace_replay, common.metrics, common.workload\n"
            "import common.bench, common.plots"
        )
        subprocess.run([sys.executable, "-c", code], check=True)


class TestBadFiles:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda d: d.update(schema="other"), "schema must be 'folovllm.trace', got 'other'"),
            (lambda d: d.update(version=9), "version must be 1, got 9"),
            (lambda d: d.pop("steps"), "trace has no key 'steps'"),
            (lambda d: d.update(extra=1), "trace has an unknown key 'extra'"),
            (lambda d: d["steps"][1].pop("index"), "trace.steps[1] has no key 'index'"),
            (lambda d: d["steps"][0].update(running="0"), "trace.steps[0].running must be a list"),
            (
                lambda d: d["steps"][0]["slices"][0].update(num_tokens=True),
                "trace.steps[0].slices[0].num_tokens must be int, got True",
            ),
            (
                lambda d: d["steps"][0]["slices"][0].update(phase="idle"),
                "phase must be one of 'prefill', 'decode', got 'idle'",
            ),
            (lambda d: d.update(requests=[]), "sequence 0 names no request: 'r0'"),
        ],
    )
    def test_error_names_the_place(
        self, change: Callable[[dict[str, Any]], object], message: str
    ) -> None:
        data = json.loads(m1_trace().to_json())
        change(data)
        with pytest.raises(TraceError) as caught:
            Trace.from_json(json.dumps(data))
        assert message in str(caught.value)
        assert isinstance(caught.value, FoloError)

    @pytest.mark.parametrize("text", ["", "{", "[]", "null"])
    def test_no_trace_at_all(self, text: str, tmp_path: Path) -> None:
        path = tmp_path / "bad.json"
        path.write_text(text)
        with pytest.raises(TraceError, match=r"bad\.json"):
            Trace.read(path)

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(TraceError, match="cannot read trace"):
            Trace.read(tmp_path / "none.json")
