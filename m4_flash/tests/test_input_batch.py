"""Rows, deltas, and the arithmetic that turns an index list into a step."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.request import Request, SamplingParams, Sequence
from common.seeds import sequence_seed
from m2_batching.plan import ScheduledSequence, SchedulerOutput
from m4_flash.backends.base import HostLengths
from m4_flash.input_batch import InputBatch, StepTensors

CPU = torch.device("cpu")
SIZE = 4

BOTH = pytest.mark.parametrize(
    "use_kernel",
    [
        False,
        pytest.param(
            True,
            marks=pytest.mark.skipif(
                torch.cuda.is_available() or find_spec("triton") is None,
                reason="needs Triton's interpreter; compiled in test_gpu.py",
            ),
        ),
    ],
    ids=["torch", "kernel"],
)


def make_batch(
    num_rows: int = 4, max_model_len: int = 32, *, use_kernel: bool = False
) -> InputBatch:
    return InputBatch(num_rows, max_model_len, SIZE, CPU, engine_seed=5, use_kernel=use_kernel)


def make(seq_id: int, token_ids: list[int], **params: float) -> Sequence:
    request = Request(f"r{seq_id}", tuple(token_ids), SamplingParams(**params))  # type: ignore[arg-type]
    return Sequence(seq_id, request)


def part(
    sequence: Sequence, start: int, count: int, blocks: tuple[int, ...] = (), table_start: int = 0
) -> ScheduledSequence:
    known = sequence.num_tokens
    draws = int(start + count == known)
    return ScheduledSequence(sequence, start, count, known, blocks, table_start, draws)


def expand(
    batch: InputBatch, items: list[ScheduledSequence], tokens: int = 0, seqs: int = 0
) -> StepTensors:
    """The step's tensors, padded to ``tokens`` and ``seqs`` where these are given."""
    host = HostLengths(tuple(i.num_tokens for i in items), tuple(i.end for i in items))
    batch.send(items, seqs or len(items))
    return batch.expand(
        tokens or host.num_tokens,
        seqs or len(items),
        max_query_len=max(host.query_lens),
        host=host,
    )


class TestRows:
    def test_a_sequence_keeps_its_row_until_it_leaves(self) -> None:
        batch = make_batch()
        a, b, c = (make(i, [1, 2, 3]) for i in range(3))
        batch.apply(SchedulerOutput(new=(part(a, 0, 3, (0,)), part(b, 0, 3, (1,)))))
        assert [batch.row(s.seq_id) for s in (a, b)] == [0, 1]
        batch.apply(SchedulerOutput(new=(part(c, 0, 3, (2,)),), finished=(0,)))
        assert [batch.row(s.seq_id) for s in (b, c)] == [1, 0]
        batch.apply(SchedulerOutput(preempted=(1,), finished=(7,)))  # 7 never ran
        with pytest.raises(KeyError):
            batch.row(1)

    def test_parameters_travel_with_the_row(self) -> None:
        batch = make_batch()
        greedy, seeded = make(3, [9, 8], temperature=0.0), make(4, [7], temperature=0.6, seed=11)
        batch.apply(SchedulerOutput(new=(part(greedy, 0, 2, (0,)), part(seeded, 0, 1, (1,)))))
        batch.send([], 1)
        rows = batch.sampling
        assert rows.token_ids[0, :2].tolist() == [9, 8]
        assert rows.token_ids[1, :1].tolist() == [7]
        assert rows.prompt_lens[:2].tolist() == [2, 1]
        assert rows.temperature[:2].tolist() == pytest.approx([0.0, 0.6])
        assert rows.seeds[:2].tolist() == [sequence_seed(5, greedy), 11]

    def test_a_resumed_sequence_brings_its_output_along(self) -> None:
        batch = make_batch()
        sequence = make(0, [5, 6])
        sequence.token_ids += [7, 8]
        batch.apply(SchedulerOutput(new=(part(sequence, 0, 4, (2,)),)))
        batch.send([], 1)
        assert batch.sampling.token_ids[0, :4].tolist() == [5, 6, 7, 8]
        assert batch.sampling.prompt_lens[0] == 2

    def test_table_entries_are_appended_and_replaced(self) -> None:
        batch = make_batch()
        sequence = make(0, list(range(9)))
        batch.apply(SchedulerOutput(new=(part(sequence, 0, 9, (7, 3, 5)),)))
        batch.send([], 1)
        assert batch.block_tables[0, :3].tolist() == [7, 3, 5]
        batch.apply(SchedulerOutput(advanced=(part(sequence, 8, 1, (6, 1), 2),)))
        batch.send([], 1)
        assert batch.block_tables[0, :4].tolist() == [7, 3, 6, 1]

    def test_the_bytes_of_the_rows(self) -> None:
        batch = make_batch(num_rows=2, max_model_len=8)
        ids, params, tables, header = 3 * 9 * 4, 2 * (4 + 4 + 8), 2 * 2 * 4, 4 * 2 * 8
        assert batch.nbytes == ids + params + tables + header


@BOTH
class TestExpand:
    def test_a_mixed_step_by_hand(self, use_kernel: bool) -> None:
        batch = make_batch(use_kernel=use_kernel)
        a, b = make(0, [10, 11, 12, 13, 14, 15]), make(1, [20, 21, 22])
        items = [part(b, 2, 1, (3,)), part(a, 1, 4, (6, 2))]
        batch.apply(SchedulerOutput(new=tuple(items)))
        step = expand(batch, items)
        assert step.token_ids.tolist() == [22, 11, 12, 13, 14]
        assert step.positions.tolist() == [2, 1, 2, 3, 4]
        assert step.last.tolist() == [0, 4]
        assert step.draws.tolist() == [1, 0]
        attention = step.attention
        assert attention.slot_mapping.tolist() == [14, 25, 26, 27, 8]
        assert attention.cu_seqlens_q.tolist() == [0, 1, 5]
        assert attention.seq_lens.tolist() == [3, 5]
        assert attention.block_tables[:, :2].tolist() == [[3, 0], [6, 2]]
        assert (attention.max_query_len, attention.max_seq_len) == (4, 5)

    def test_padding_computes_nothing_and_writes_nowhere(self, use_kernel: bool) -> None:
        batch = make_batch(use_kernel=use_kernel)
        a = make(0, [10, 11, 12])
        item = part(a, 0, 3, (5,))
        batch.apply(SchedulerOutput(new=(item,)))
        step = expand(batch, [item], tokens=6, seqs=3)
        assert step.attention.slot_mapping.tolist() == [20, 21, 22, -1, -1, -1]
        assert step.attention.cu_seqlens_q.tolist() == [0, 3, 3, 3]
        assert step.attention.seq_lens.tolist() == [3, 0, 0]
        assert step.draws.tolist() == [1, 0, 0]
        assert step.positions.tolist()[3:] == [0, 0, 0]
        before = batch.sampling.token_ids.clone()
        batch.append(step, torch.tensor([77, 88, 99]))
        before[0, 3] = 77
        assert batch.sampling.token_ids[:-1].equal(before[:-1])

    def test_a_header_is_overwritten_by_a_shorter_one(self, use_kernel: bool) -> None:
        batch = make_batch(use_kernel=use_kernel)
        a, b = make(0, [1, 2]), make(1, [3, 4])
        items = [part(a, 1, 1, (0,)), part(b, 1, 1, (1,))]
        batch.apply(SchedulerOutput(new=tuple(items)))
        expand(batch, items)
        step = expand(batch, items[1:], tokens=2, seqs=2)
        assert step.token_ids.tolist()[0] == 4
        assert step.attention.seq_lens.tolist() == [2, 0]

    def test_a_sampled_id_is_the_next_steps_token(self, use_kernel: bool) -> None:
        batch = make_batch(use_kernel=use_kernel)
        a = make(0, [1, 2, 3])
        first = part(a, 0, 3, (4,))
        batch.apply(SchedulerOutput(new=(first,)))
        batch.append(expand(batch, [first]), torch.tensor([42]))
        a.append(42, 0.0)
        second = part(a, 3, 1)
        assert expand(batch, [second]).token_ids.tolist() == [42]

    def test_the_last_id_of_the_longest_sequence_has_a_place(self, use_kernel: bool) -> None:
        batch = make_batch(max_model_len=4, use_kernel=use_kernel)
        a = make(0, [1, 2, 3, 4])
        item = part(a, 0, 4, (1,))
        batch.apply(SchedulerOutput(new=(item,)))
        batch.append(expand(batch, [item]), torch.tensor([9]))
        assert batch.sampling.token_ids[0].tolist() == [1, 2, 3, 4, 9]

    def test_a_partial_prefill_drops_what_was_sampled(self, use_kernel: bool) -> None:
        batch = make_batch(use_kernel=use_kernel)
        a = make(0, [1, 2, 3, 4])
        item = part(a, 0, 2, (1,))
        batch.apply(SchedulerOutput(new=(item,)))
        batch.append(expand(batch, [item]), torch.tensor([9]))
        assert batch.sampling.token_ids[0, :4].tolist() == [1, 2, 3, 4]

    # The class is run once with each way to expand, which Hypothesis takes for two executors.
    @settings(
        max_examples=60,
        deadline=None,
        suppress_health_check=[HealthCheck.differing_executors],
    )
    @given(
        lengths=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12)), min_size=1, max_size=4),
        pad=st.integers(0, 5),
        order=st.randoms(use_true_random=False),
    )
    def test_any_step_equals_the_loop(
        self, use_kernel: bool, lengths: list[tuple[int, int]], pad: int, order: object
    ) -> None:
        """The arithmetic on the device against the obvious loop over tokens."""
        batch = make_batch(num_rows=8, use_kernel=use_kernel)
        items, block = [], 0
        for seq_id, (count, past) in enumerate(lengths):
            total = past + count
            blocks = tuple(range(block, block + -(-total // SIZE)))
            block += len(blocks)
            ids = [100 * seq_id + i for i in range(total)]
            items.append(part(make(seq_id, ids), past, count, blocks))
        order.shuffle(items)  # type: ignore[attr-defined]
        batch.apply(SchedulerOutput(new=tuple(items)))
        items.sort(key=lambda item: item.num_tokens != 1)
        tokens = sum(item.num_tokens for item in items)
        step = expand(batch, items, tokens + pad, len(items) + min(pad, 4))
        ids, positions, slots = [], [], []
        for item in items:
            for position in range(item.start, item.end):
                ids.append(item.sequence.token_ids[position])
                positions.append(position)
                slots.append(item.new_block_ids[position // SIZE] * SIZE + position % SIZE)
        assert step.token_ids.tolist()[:tokens] == ids
        assert step.positions.tolist()[:tokens] == positions
        assert step.attention.slot_mapping.tolist() == slots + [-1] * pad
