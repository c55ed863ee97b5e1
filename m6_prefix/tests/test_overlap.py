"""Prefix caching under the overlapped loop, and after a step that failed."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from common.request import SamplingParams
from common.testing.conformance import EngineConformance, build, ids_of
from common.testing.fixtures import TinyModel


class TestOverlapped(EngineConformance):
    """The whole public surface with one step in flight and blocks that are found again."""

    stage = "m6_prefix"
    below = "m5_chunked"
    options: ClassVar[dict[str, Any]] = {
        "max_num_seqs": 8, "num_blocks": 128, "block_size": 4, "max_num_batched_tokens": 16,
        "overlap": True,
    }  # fmt: skip
    below_options: ClassVar[dict[str, Any]] = {"max_num_seqs": 8, "num_blocks": 64}


def make(model: TinyModel, **options: Any) -> Any:
    base = {"num_blocks": 64, "block_size": 4, "max_num_seqs": 4, "trace": True}
    return build("m6_prefix", model, **{**base, **options})


@pytest.mark.parametrize("overlap", [False, True])
def test_a_later_turn_finds_what_an_earlier_one_generated(tiny: TinyModel, overlap: bool) -> None:
    """An id in flight names no block; when it is known, the block it completes is published."""
    engine = make(tiny, overlap=overlap)
    prompt = tiny.prompts[1]
    params = SamplingParams(temperature=0, max_tokens=14, ignore_eos=True)
    (first,) = engine.generate([prompt], params)
    turn = [*prompt, *first.outputs[0].token_ids, 5, 6]
    (second,) = engine.generate([turn], params)
    assert second.metrics.num_cached_tokens == 20  # of 7 + 14 tokens the last was never computed
    assert list(second.outputs[0].token_ids) == tiny.oracle.greedy(turn, 14)
    engine.trace.validate()
    engine.manager.check()


@pytest.mark.parametrize("overlap", [False, True])
def test_blocks_of_a_failed_step_are_not_found(
    tiny: TinyModel, monkeypatch: pytest.MonkeyPatch, overlap: bool
) -> None:
    """They were published when the step was planned, and hold nothing."""
    engine = make(tiny, overlap=overlap)
    prompt = tiny.prompts[3]

    def fail(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine.runner.backend, "forward", fail)
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    with pytest.raises(KeyboardInterrupt):
        engine.generate([prompt], params)
    monkeypatch.undo()
    (again,) = engine.generate([prompt], params)
    assert again.metrics.num_cached_tokens == 0
    assert ids_of([again]) == [[tuple(tiny.oracle.greedy(prompt, 4))]]
