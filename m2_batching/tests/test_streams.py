"""Streams beside each other, read late or closed early, and what the progress bar shows."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from common.errors import InvalidRequestError
from common.outputs import RequestOutput
from common.request import SamplingParams
from common.testing.conformance import build
from common.testing.fixtures import TinyModel


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


class TestStreams:
    def test_two_streams_in_turns_share_their_steps(self, tiny: TinyModel, engine: Any) -> None:
        params = [seeded(1, 8), seeded(2, 8)]
        alone = [engine.generate(p, s)[0] for p, s in zip(tiny.prompts[1:3], params, strict=True)]
        before = engine.stats().num_steps
        streams = [engine.stream(p, s) for p, s in zip(tiny.prompts[1:3], params, strict=True)]
        pieces: list[list[RequestOutput]] = [[], []]
        for _ in range(8):
            for got, stream in zip(pieces, streams, strict=True):
                got.append(next(stream))
        for got, stream, whole in zip(pieces, streams, alone, strict=True):
            assert list(stream) == []
            assert [len(piece.outputs[0].token_ids) for piece in got] == list(range(1, 9))
            assert got[-1].outputs == whole.outputs
        assert engine.stats().num_steps - before == 8  # one prefill, seven decodes

    def test_a_stream_that_is_read_late_has_what_was_generated_meanwhile(
        self, tiny: TinyModel, engine: Any
    ) -> None:
        slow = engine.stream(tiny.prompts[1], greedy(5))
        list(engine.stream(tiny.prompts[2], greedy(9)))
        (last,) = slow
        assert last.finished
        assert len(last.outputs[0].token_ids) == 5

    @pytest.mark.parametrize("taken", [0, 1, 3])
    def test_closing_a_stream_aborts_it_and_leaves_the_others(
        self, tiny: TinyModel, engine: Any, taken: int
    ) -> None:
        kept = engine.stream(tiny.prompts[2], greedy(6))
        closed = engine.stream(tiny.prompts[1], greedy(9))
        for _ in range(taken):
            next(closed)
        before = engine.stats().num_requests
        closed.close()
        assert engine.stats().num_requests == before + 1
        assert [len(s.token_ids) for s in list(kept)[-1].outputs] == [6]
        assert not engine.has_unfinished_requests()

    def test_a_stream_that_nobody_holds_is_aborted(self, tiny: TinyModel, engine: Any) -> None:
        engine.stream(tiny.prompts[1], greedy(9))
        gc.collect()
        assert not engine.has_unfinished_requests()

    def test_a_stream_whose_request_is_aborted_ends(self, tiny: TinyModel, engine: Any) -> None:
        stream = engine.stream(tiny.prompts[1], greedy(9))
        name = next(stream).request_id
        engine.abort(name)
        assert list(stream) == []

    def test_a_bad_request_is_refused_at_the_call(self, tiny: TinyModel, engine: Any) -> None:
        with pytest.raises(InvalidRequestError, match="empty"):
            engine.stream("", greedy(1))
        assert not engine.has_unfinished_requests()


class Bar:
    """In tqdm's place: what a terminal would show."""

    shown: list[Any]

    def __init__(self, *, total: int, unit: str, disable: bool | None) -> None:
        self.disable, self.done = bool(disable), 0
        Bar.shown = [(total, unit, disable)]

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        Bar.shown.append(self.done)

    def update(self) -> None:
        self.done += 1

    def set_postfix_str(self, text: str) -> None:
        Bar.shown.append(text)


def test_the_progress_bar_shows_both_paces(
    tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make(tiny)
    monkeypatch.setattr("m2_batching.step_engine.tqdm", Bar)
    engine.generate(tiny.prompts[:3], [greedy(n) for n in (2, 1, 2)])
    head, prefill, decode, done = Bar.shown
    assert (head, done) == ((3, "req", None), 3)  # None: hidden unless stderr is a terminal
    stats = engine.stats()
    pace = f"prefill {sum(map(len, tiny.prompts[:3])) / stats.prefill_seconds:.0f} tok/s"
    assert prefill == f"{pace}, decode 0 tok/s"
    assert decode == f"{pace}, decode {2 / stats.decode_seconds:.0f} tok/s"
    engine.generate(tiny.prompts[0], greedy(2))
    assert Bar.shown == [(1, "req", True), 1]


def test_a_step_can_leave_out_those_who_go_on(tiny: TinyModel) -> None:
    engine = build("m2_batching", tiny, max_num_seqs=4)
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (1, 2)]
    first, second = (
        engine.add_request(prompt, each)
        for prompt, each in zip(tiny.prompts[1:], params, strict=False)
    )
    assert [output.request_id for output in engine.step(only_finished=True)] == [first]
    assert [output.request_id for output in engine.step(only_finished=True)] == [second]
    assert not engine.has_unfinished_requests()
