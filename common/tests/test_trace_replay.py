"""Every promise that a replay checks, kept and broken."""

import dataclasses
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from common.step_record import Admission, BlockEvent, Finish, ScheduledSlice, StepRecord
from common.tests.sample_traces import m1_trace, make_seq, toys
from common.tests.toy_scheduler import Toy
from common.trace import Trace, TraceError, TraceInfo
from common.trace_replay import state_after


def changed(trace: Trace, step_index: int, /, **fields: object) -> Trace:
    """``trace`` with fields of one step replaced."""
    step = trace[step_index]
    trace.steps[step_index] = dataclasses.replace(step, **fields)  # type: ignore[arg-type]
    return trace


def sliced(trace: Trace, index: int, **fields: object) -> Trace:
    """``trace`` with fields of one step's first slice replaced."""
    first, *rest = trace[index].slices
    part = dataclasses.replace(first, **fields)  # type: ignore[arg-type]
    return changed(trace, index, slices=(part, *rest))


class TestValidate:
    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda t: changed(t, 1, index=2), "expected index 1"),
            (lambda t: changed(t, 1, running=(7,)), "names unknown sequence 7"),
            (lambda t: changed(t, 1, running=(0, 0)), "names a sequence twice"),
            (lambda t: changed(t, 1, running=()), "step 1: running lost sequence 0"),
            (lambda t: changed(t, 1, waiting=()), "step 1: waiting lost sequence 1"),
            (lambda t: changed(t, 4, running=(1, 0)), "sequence 0, which was not running"),
            (lambda t: changed(t, 3, admitted=()), "sequence 1 computes but is not running"),
            (lambda t: changed(t, 1, preempted=(1,)), "is preempted but was not running"),
            (lambda t: changed(t, 1, admitted=(Admission(0),)), "admitted but was not waiting"),
            (lambda t: sliced(t, 1, start=4), "has 5 computed tokens, the slice starts at 4"),
            (lambda t: sliced(t, 0, num_tokens=6), "computes up to 6 of 5 known tokens"),
            (lambda t: sliced(t, 0, num_tokens=0), "computes 0 tokens"),
            (lambda t: sliced(t, 0, num_tokens=3), "samples after a partial prefill"),
            (lambda t: sliced(t, 1, num_known_tokens=7), "has 6 known tokens, the slice says 7"),
            (lambda t: sliced(t, 1, phase="prefill"), "is in decode, the slice says prefill"),
            (lambda t: sliced(t, 1, token_ids=()), "was sampled but got no id"),
            (lambda t: sliced(t, 1, token_ids=(1, 2)), "got 2 ids for 1 rows"),
            (lambda t: sliced(t, 1, request_id="r1"), "answers 'r0', not 'r1'"),
            (lambda t: changed(t, 2, finished=()), "running lost sequence 0"),
            (
                lambda t: changed(t, 4, finished=(Finish(0, "length"), Finish(1, "length"))),
                "sequence 0 finishes twice",
            ),
        ],
    )
    def test_every_contradiction_is_found(
        self, spoil: Callable[[Trace], Trace], message: str
    ) -> None:
        with pytest.raises(TraceError) as caught:
            spoil(m1_trace()).validate()
        assert message in str(caught.value)

    def test_more_tokens_than_asked_for(self) -> None:
        trace = m1_trace()
        trace.requests["r0"] = dataclasses.replace(trace.requests["r0"], max_tokens=2)
        with pytest.raises(TraceError, match="has 3 of 2 tokens"):
            trace.validate()

    def test_a_step_may_be_empty_and_may_report_an_abort(self) -> None:
        trace = m1_trace()
        trace.steps[2:] = [
            StepRecord(2, waiting=(1,), finished=(Finish(0, "abort"),)),
            StepRecord(3, finished=(Finish(1, "abort"),)),
        ]
        trace.validate()

    @given(toys, st.data())
    @settings(max_examples=40, deadline=None)
    def test_dropping_a_step_of_a_longer_life_is_found(self, toy: Toy, data: st.DataObject) -> None:
        trace = toy.run()
        # A sequence that lives for one step only leaves no gap when that step is dropped.
        lives = Counter(part.seq_id for step in trace for part in step.slices)
        linked = [
            index
            for index, step in enumerate(trace.steps[:-1])
            if any(lives[part.seq_id] > 1 for part in step.slices)
        ]
        assume(linked)
        gone = data.draw(st.sampled_from(linked))
        trace.steps = [
            dataclasses.replace(step, index=index)
            for index, step in enumerate(trace.steps[:gone] + trace.steps[gone + 1 :])
        ]
        with pytest.raises(TraceError):
            trace.validate()

    @given(toys, st.data())
    @settings(max_examples=60, deadline=None)
    def test_dropping_an_ownership_event_is_found(self, toy: Toy, data: st.DataObject) -> None:
        trace = toy.run()
        places = [
            (i, j)
            for i, step in enumerate(trace.steps)
            for j, event in enumerate(step.block_events)
            if event.kind in ("alloc", "free")
        ]
        i, j = data.draw(st.sampled_from(places))
        events = trace[i].block_events
        changed(trace, i, block_events=events[:j] + events[j + 1 :])
        with pytest.raises(TraceError):
            trace.validate()


def two_sequences(*steps: StepRecord, lookahead: int = 0, **info: int) -> Trace:
    """Two sequences of prompt 4 and the steps given."""
    trace = Trace(TraceInfo("m5_chunked", lookahead=lookahead, **info))  # type: ignore[arg-type]
    for seq_id in (0, 1):
        trace.add_sequence(make_seq(seq_id, prompt_len=4, max_tokens=9))
    trace.steps = list(steps)
    return trace


def decode(seq_id: int, known: int, *ids: int) -> ScheduledSlice:
    return ScheduledSlice(seq_id, f"r{seq_id}", known - 1, 1, known, "decode", 1, ids)


FIRST = StepRecord(
    0,
    waiting=(0,),
    admitted=(Admission(0),),
    slices=(ScheduledSlice(0, "r0", 0, 4, 4, "prefill", 1, (50,)),),
)


class TestOverlap:
    """With lookahead 1, step k + 1 is scheduled before the ids of step k are known."""

    steps = (
        FIRST,
        StepRecord(1, running=(0,), slices=(decode(0, 5, 51),), finished=(Finish(0, "stop"),)),
        StepRecord(2, running=(0,), slices=(decode(0, 6),)),
    )

    def test_the_step_after_a_stop_is_wasted_but_legal(self) -> None:
        two_sequences(*self.steps, lookahead=1).validate()

    def test_the_plain_loop_may_not_do_that(self) -> None:
        with pytest.raises(TraceError, match="sequence 0, which was not running"):
            two_sequences(*self.steps).validate()

    def test_two_wasted_steps_are_one_too_many(self) -> None:
        late = StepRecord(3, running=(0,), slices=(decode(0, 7),))
        with pytest.raises(TraceError, match="step 3"):
            two_sequences(*self.steps, late, lookahead=1).validate()

    def test_a_preempted_sequence_drops_its_token(self) -> None:
        again = ScheduledSlice(0, "r0", 0, 5, 5, "prefill", 1, (51,))
        steps = (
            FIRST,
            StepRecord(1, running=(0,), slices=(decode(0, 5),)),
            StepRecord(2, running=(0,), preempted=(0,)),
            StepRecord(3, waiting=(0,), admitted=(Admission(0),), slices=(again,)),
        )
        two_sequences(*steps, lookahead=1).validate()
        with pytest.raises(TraceError, match="was sampled but got no id"):
            two_sequences(*steps).validate()

    def test_a_dropped_token_needs_a_reason(self) -> None:
        steps = (
            FIRST,
            StepRecord(1, running=(0,), slices=(decode(0, 5),)),
            StepRecord(2, running=(0,), slices=(decode(0, 5, 52),)),
        )
        with pytest.raises(TraceError, match="step 1: sequence 0 was sampled but got no id"):
            two_sequences(*steps, lookahead=1).validate()


class TestForks:
    def fork(self, num_cached: int) -> Trace:
        parent = ScheduledSlice(0, "r0", 0, 4, 4, "prefill", 1, (50,))
        child = ScheduledSlice(1, "r1", num_cached, 0, 4, "prefill", 1, (60,))
        events = (
            BlockEvent("alloc", 0, 0),
            BlockEvent("alloc", 1, 0),
            BlockEvent("share", 0, 1),
            BlockEvent("share", 1, 1),
        )
        step = StepRecord(
            0,
            waiting=(0,),
            admitted=(Admission(0), Admission(1, num_cached, forked_from=0)),
            slices=(parent, child),
            block_events=events,
        )
        after = StepRecord(
            1,
            running=(0, 1),
            slices=(decode(0, 5, 51), decode(1, 5, 61)),
            # The four prompt tokens fill blocks 0 and 1, so neither writes into a shared block.
            block_events=(BlockEvent("alloc", 2, 0), BlockEvent("alloc", 3, 1)),
        )
        return two_sequences(step, after, block_size=2, num_blocks=4)

    def test_a_child_draws_from_its_parents_row(self) -> None:
        trace = self.fork(4)
        trace.validate()
        blocks = state_after(trace, 1).blocks
        assert blocks.tables == {0: [0, 1, 2], 1: [0, 1, 3]}
        assert [blocks.ref_count(block) for block in range(4)] == [2, 2, 1, 1]

    def test_a_child_cannot_have_more_than_its_parent(self) -> None:
        trace = self.fork(4)
        step = trace[0]
        changed(trace, 0, admitted=(step.admitted[0], Admission(1, 5, forked_from=0)))
        with pytest.raises(TraceError, match="starts at 4"):
            trace.validate()
        first = dataclasses.replace(step.slices[0], num_tokens=3, num_sampled=0, token_ids=())
        trace = self.fork(4)
        changed(trace, 0, slices=(first, step.slices[1]))
        with pytest.raises(TraceError, match="starts with 4 tokens of sequence 0, which has 3"):
            trace.validate()


class TestStateAfter:
    def test_counts_from_the_end(self) -> None:
        trace = m1_trace()
        assert state_after(trace, -1).finished_at == {0: 2, 1: 4}
        assert state_after(trace, 0).num_computed == {0: 5}

    @pytest.mark.parametrize("index", [5, -6])
    def test_no_such_step(self, index: int) -> None:
        with pytest.raises(TraceError, match=r"step must be in \[0, 4\]"):
            state_after(m1_trace(), index)
