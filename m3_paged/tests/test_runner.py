"""Hand-made plans: the flat runner takes any mix of prefills, chunks, decodes, forks and copies."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from common.request import Request, SamplingParams, Sequence
from common.testing.conformance import build
from common.testing.fixtures import TinyModel
from m2_batching.plan import BlockCopy, ScheduledSequence, SchedulerOutput
from m2_batching.runner import Flight

SIZE = 4


@pytest.fixture
def runner(tiny: TinyModel) -> Any:
    """A flat runner over 16 blocks of 4, all of them NaN until written."""
    engine = build("m3_paged", tiny, num_blocks=16, block_size=SIZE, max_model_len=64)
    engine.runner.cache.kv.fill_(float("nan"))
    return engine.runner


def greedy(seq_id: int, token_ids: list[int]) -> Sequence:
    request = Request(f"r{seq_id}", tuple(token_ids), SamplingParams(temperature=0))
    return Sequence(seq_id, request)


def part(
    sequence: Sequence, count: int, blocks: tuple[int, ...] = (), table_start: int = 0, **more: Any
) -> ScheduledSequence:
    """The next ``count`` tokens of a sequence; samples where they are its last ones."""
    start, known = sequence.num_computed_tokens, sequence.num_tokens
    sequence.num_computed_tokens = start + count
    sampled = int(start + count == known)
    return ScheduledSequence(
        sequence, start, count, known, blocks, table_start, num_sampled=sampled, **more
    )


def run(runner: Any, tiny: TinyModel, plan: SchedulerOutput) -> list[int]:
    """Launch; every sampled row must have the reference's logits. Appends; returns who sampled."""
    flight: Flight = runner.launch(plan)
    for row, item in zip(flight.logits, flight.scheduled, strict=True):
        expected = tiny.oracle.hidden_states(item.sequence.token_ids).logits[-1]
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-4)
    result = flight.result()
    assert result.num_padding_tokens == 0
    for item in flight.scheduled:
        item.sequence.append(result.token_ids[item.seq_id], 0.0)
    return sorted(result.token_ids)


def test_prefill_chunk_and_decode_in_one_plan(runner: Any, tiny: TinyModel) -> None:
    """A prompt in three chunks beside a decoding sequence and one that arrives meanwhile."""
    a = greedy(0, tiny.prompts[2][:12])
    b = greedy(1, tiny.prompts[1])
    c = greedy(2, tiny.prompts[3][:3])
    plan = SchedulerOutput(new=(part(a, 5, (9, 3)), part(b, 7, (0, 12))))
    assert run(runner, tiny, plan) == [1]
    plan = SchedulerOutput(
        new=(part(c, 3, (7,)),), advanced=(part(a, 5, (4,), 2), part(b, 1, (), 2))
    )
    assert run(runner, tiny, plan) == [1, 2]
    plan = SchedulerOutput(
        advanced=(part(c, 1, (), 1), part(a, 2, (), 3), part(b, 1, (15,), 2)),
    )
    assert run(runner, tiny, plan) == [0, 1, 2]
    for sequence, prompt in ((a, 12), (b, 7), (c, 3)):
        path = tiny.oracle.greedy(sequence.token_ids[:prompt], sequence.num_output_tokens)
        assert sequence.output_token_ids == path


def test_a_mixed_plan_equals_the_same_parts_in_separate_plans(runner: Any, tiny: TinyModel) -> None:
    def play(*, mixed: bool) -> list[list[int]]:
        a, b = greedy(0, tiny.prompts[2][:9]), greedy(1, tiny.prompts[1])
        run(runner, tiny, SchedulerOutput(new=(part(b, 7, (0, 1)),)))
        first, second = part(a, 6, (2, 3)), part(b, 1, (), 2)
        third, fourth = part(a, 3, (4,), 2), None
        if mixed:
            run(runner, tiny, SchedulerOutput(new=(first,), advanced=(second,)))
            fourth = part(b, 1, (5,), 2)
            run(runner, tiny, SchedulerOutput(advanced=(fourth, third)))
        else:
            run(runner, tiny, SchedulerOutput(new=(first,)))
            run(runner, tiny, SchedulerOutput(advanced=(third,)))
            run(runner, tiny, SchedulerOutput(advanced=(second,)))
            fourth = part(b, 1, (5,), 2)
            run(runner, tiny, SchedulerOutput(advanced=(fourth,)))
        return [a.output_token_ids, b.output_token_ids]

    assert play(mixed=True) == play(mixed=False)


def test_a_plan_of_partial_prefills_samples_nobody(runner: Any, tiny: TinyModel) -> None:
    a = greedy(0, tiny.prompts[2][:6])
    flight = runner.launch(SchedulerOutput(new=(part(a, 5, (0, 1)),)))
    assert flight.logits.shape == (0, 320)
    assert flight.result().token_ids == {}


@pytest.mark.parametrize("length", [4, 5, 6, 7, 8, 9])
def test_forks_share_blocks_and_copy_what_they_write(
    runner: Any, tiny: TinyModel, length: int
) -> None:
    """Two samples of one prompt, each with an own copy of the block it writes into."""
    prompt = tiny.prompts[2][:length]
    a, b = greedy(0, prompt), greedy(1, prompt)
    full, partial = divmod(length - 1, SIZE)
    shared = tuple(range(full + bool(partial)))
    assert run(runner, tiny, SchedulerOutput(new=(part(a, length - 1, shared),))) == []
    b.num_computed_tokens = length - 1
    # Where the prompt's last token opens a block, both take a fresh one; else a copies the partial
    # block and b, its last owner, writes in place.
    table = shared if partial else (*shared, 11)
    plan = SchedulerOutput(
        new=(part(b, 1, table, forked_from=0),),
        advanced=(part(a, 1, (10,), full),),
        copies=(BlockCopy(full, 10),) if partial else (),
    )
    assert run(runner, tiny, plan) == [0, 1]
    assert a.output_token_ids == b.output_token_ids  # both greedy
    a.token_ids[-1] = (a.token_ids[-1] + 1) % 256  # now they differ, in blocks of their own
    pieces = []
    for sequence, fresh in ((a, 12), (b, 13)):
        begins = sequence.num_computed_tokens % SIZE == 0
        entry = full + 1
        pieces.append(part(sequence, 1, (fresh,) if begins else (), entry))
    assert run(runner, tiny, SchedulerOutput(advanced=tuple(pieces))) == [0, 1]


def test_a_preempted_sequence_starts_with_a_new_table(runner: Any, tiny: TinyModel) -> None:
    a = greedy(0, tiny.prompts[1])
    run(runner, tiny, SchedulerOutput(new=(part(a, 7, (0, 1)),)))
    runner.cache.kv[:, :, :2] = float("nan")  # its blocks belong to somebody else
    a.num_computed_tokens = 0
    b = greedy(1, tiny.prompts[0])
    run(runner, tiny, SchedulerOutput(new=(part(b, 1, (1,)),), preempted=(0,)))
    assert run(runner, tiny, SchedulerOutput(new=(part(a, 8, (5, 6)),))) == [0]
    assert a.output_token_ids == tiny.oracle.greedy(tiny.prompts[1], 2)


def test_a_table_that_is_too_short_is_noticed(runner: Any, tiny: TinyModel) -> None:
    a = greedy(3, tiny.prompts[1])
    with pytest.raises(AssertionError, match="sequence 3 has too few blocks"):
        runner.launch(SchedulerOutput(new=(part(a, 7, (0,)),)))
