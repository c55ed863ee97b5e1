"""Hand-made plans through the runner, eagerly and as padded recorded steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from common.request import Request, SamplingParams, Sequence
from common.testing.conformance import build
from common.testing.fixtures import TinyModel
from m2_batching.plan import BlockCopy, ScheduledSequence, SchedulerOutput
from m4_flash.cuda_graph import Buckets, NullCapture

SIZE = 16
WARM = 20


def make_runner(tiny: TinyModel, backend: str, **options: Any) -> Any:
    engine = build(
        "m4_flash", tiny, attention_backend=backend, num_blocks=12, block_size=SIZE,
        max_model_len=64, max_num_seqs=4, enforce_eager=True, **options,
    )  # fmt: skip
    engine.runner.cache.kv.fill_(float("nan"))
    return engine.runner


@pytest.fixture(params=["naive", "paged", "sdpa", "triton", "triton-graph"])
def runner(request: pytest.FixtureRequest, tiny: TinyModel) -> Iterator[Any]:
    """Every backend that runs here; the last one in padded steps that know no lengths."""
    name, _, graph = str(request.param).partition("-")
    made = make_runner(tiny, name)
    if graph:
        made.record_graphs(SmallBuckets(), NullCapture())
    yield made
    assert not graph or made.replayed, "no step ran as a recorded one"


class SmallBuckets(Buckets):
    """Few sizes, because the interpreter takes its time; all of them padded in these tests."""

    def __init__(self) -> None:
        super().__init__(4, max_mixed_tokens=0)
        self.decode_sizes, self.mixed_tokens, self.mixed_seqs = [4], [16], [4]


def greedy(seq_id: int, token_ids: list[int]) -> Sequence:
    request = Request(f"r{seq_id}", tuple(token_ids), SamplingParams(temperature=0))
    return Sequence(seq_id, request)


def part(
    sequence: Sequence, count: int, blocks: tuple[int, ...] = (), table_start: int = 0, **more: Any
) -> ScheduledSequence:
    """The next ``count`` tokens of a sequence; samples where they are its last ones."""
    start, known = sequence.num_computed_tokens, sequence.num_tokens
    sequence.num_computed_tokens = start + count
    draws = int(start + count == known)
    return ScheduledSequence(
        sequence, start, count, known, blocks, table_start, num_sampled=draws, **more
    )


def run(runner: Any, plan: SchedulerOutput) -> dict[int, int]:
    """Launch and append; the sampled ids."""
    found = runner.graphs.find(plan.num_tokens, len(plan.scheduled)) if runner.graphs else None
    result = runner.launch(plan).result()
    padding = found.num_tokens - plan.num_tokens if found else 0
    assert result.num_padding_tokens == padding
    runner.replayed = getattr(runner, "replayed", False) or padding > 0
    for item in plan.scheduled:
        if item.seq_id in result.token_ids:
            item.sequence.append(result.token_ids[item.seq_id], 0.0)
    ids: dict[int, int] = result.token_ids
    return ids


def test_chunks_and_decodes_in_one_plan(runner: Any, tiny: TinyModel) -> None:
    """A prompt in three chunks beside a decoding sequence and one that arrives meanwhile."""
    a, b = greedy(0, tiny.prompts[2][:12]), greedy(1, tiny.prompts[1])
    c = greedy(2, tiny.prompts[3][:3])
    assert list(run(runner, SchedulerOutput(new=(part(a, 5, (9,)), part(b, 7, (0,)))))) == [1]
    plan = SchedulerOutput(new=(part(c, 3, (7,)),), advanced=(part(a, 5), part(b, 1)))
    assert sorted(run(runner, plan)) == [1, 2]
    plan = SchedulerOutput(advanced=(part(c, 1), part(a, 2), part(b, 1)))
    assert sorted(run(runner, plan)) == [0, 1, 2]
    plan = SchedulerOutput(advanced=(part(c, 1), part(a, 1), part(b, 1)))
    assert sorted(run(runner, plan)) == [0, 1, 2]
    for sequence, prompt in ((a, 12), (b, 7), (c, 3)):
        path = tiny.oracle.greedy(sequence.token_ids[:prompt], sequence.num_output_tokens)
        assert sequence.output_token_ids == path


def test_a_fork_reads_its_parents_block_until_it_has_a_copy(runner: Any, tiny: TinyModel) -> None:
    prompt = tiny.prompts[2][:9]
    parent, child = greedy(0, prompt), greedy(1, prompt)
    run(runner, SchedulerOutput(new=(part(parent, 8, (3,)),)))
    child.num_computed_tokens = 8
    plan = SchedulerOutput(
        new=(part(child, 1, (5,), forked_from=0),),
        advanced=(part(parent, 1),),
        copies=(BlockCopy(3, 5),),
    )
    ids = run(runner, plan)
    assert ids[0] == ids[1] == tiny.oracle.greedy(prompt, 1)[0]
    run(runner, SchedulerOutput(advanced=(part(child, 1), part(parent, 1))))
    assert parent.output_token_ids == child.output_token_ids == tiny.oracle.greedy(prompt, 2)


def test_a_preempted_sequence_comes_back_in_another_row(runner: Any, tiny: TinyModel) -> None:
    a, b = greedy(0, tiny.prompts[1]), greedy(1, tiny.prompts[2][:5])
    run(runner, SchedulerOutput(new=(part(a, 7, (1,)), part(b, 5, (2,)))))
    a.num_computed_tokens = 0
    run(runner, SchedulerOutput(advanced=(part(b, 1),), preempted=(0,)))
    c = greedy(2, tiny.prompts[3][:4])
    plan = SchedulerOutput(new=(part(c, 4, (4,)), part(a, 8, (6,))), advanced=(part(b, 1),))
    run(runner, plan)
    for sequence, prompt in ((a, 7), (b, 5), (c, 4)):
        path = tiny.oracle.greedy(sequence.token_ids[:prompt], sequence.num_output_tokens)
        assert sequence.output_token_ids == path


def test_a_chunk_alone_scores_nothing(tiny: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """An eager step in which nobody samples multiplies no row by the vocabulary."""
    runner = make_runner(tiny, "sdpa")
    rows: list[int] = []
    real = runner.model.logits

    def spy(hidden: torch.Tensor) -> torch.Tensor:
        rows.append(len(hidden))
        scores: torch.Tensor = real(hidden)
        return scores

    monkeypatch.setattr(runner.model, "logits", spy)
    a = greedy(0, tiny.prompts[2])
    assert run(runner, SchedulerOutput(new=(part(a, 5, (0,)),))) == {}
    run(runner, SchedulerOutput(advanced=(part(a, 11),)))
    assert rows == [0, 1]


def test_graphs_need_a_backend_that_can_be_captured(tiny: TinyModel) -> None:
    with pytest.raises(AssertionError, match="sdpa needs lengths on the host"):
        make_runner(tiny, "sdpa").record_graphs(Buckets(4), NullCapture())


def test_recorded_steps_write_no_kv(tiny: TinyModel) -> None:
    """Recording runs steps of padding only: not a byte of the cache changes."""
    runner = make_runner(tiny, "triton")
    runner.record_graphs(SmallBuckets(), NullCapture())
    assert runner.cache.kv.isnan().all()


def test_warming_up_computes_nothing(tiny: TinyModel) -> None:
    """No K or V is written, no id, no row."""
    runner = make_runner(tiny, "triton")
    known = runner.batch.sampling.token_ids.clone()
    runner.warm_up(WARM)
    assert runner.cache.kv.isnan().all()
    assert runner.batch.sampling.token_ids[:-1].equal(known[:-1])
