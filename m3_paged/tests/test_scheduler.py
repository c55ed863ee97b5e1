"""What M3's scheduler admits and advances, as exact plans: blocks, seats, parallel samples."""

from __future__ import annotations

import pytest

from common.request import SequenceStatus
from common.step_record import BlockEvent
from m2_batching.plan import BlockCopy, ScheduledSequence, SchedulerOutput
from m2_batching.request_queue import PriorityQueue
from m2_batching.tests.helpers import ids, make_sequence
from m3_paged.tests.fake_runner import Bench, samples


class TestBlocks:
    @pytest.mark.parametrize(("prompt_len", "blocks"), [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
    def test_admission_takes_the_blocks_of_the_prompt(self, prompt_len: int, blocks: int) -> None:
        bench = Bench(4)
        bench.add(make_sequence(0, prompt_len))
        plan = bench.step()
        assert plan.new[0].new_block_ids == tuple(range(blocks))
        assert bench.num_free == 4 - blocks

    def test_prefill_then_decode_then_finish_as_exact_plans(self) -> None:
        """A prompt of 3 with blocks of 4: position 3 still fits, position 4 opens a block."""
        bench = Bench(3)
        a = make_sequence(0, 3, max_tokens=3)
        bench.add(a)
        plans = [bench.step() for _ in range(4)]
        assert plans[0] == SchedulerOutput(new=(ScheduledSequence(a, 0, 3, 3, (0,)),))
        assert plans[1] == SchedulerOutput(advanced=(ScheduledSequence(a, 3, 1, 4, (), 1),))
        assert plans[2] == SchedulerOutput(advanced=(ScheduledSequence(a, 4, 1, 5, (1,), 1),))
        assert plans[3] == SchedulerOutput(finished=(0,))
        assert bench.num_free == 3

    def test_the_last_token_takes_no_block(self) -> None:
        """A sequence of k·bs + 1 tokens in all never computes the last one."""
        bench = Bench(1)
        a = make_sequence(0, 3, max_tokens=2)
        bench.add(a)
        assert bench.run() == 2
        assert a.num_tokens == 5

    def test_blocks_that_are_freed_are_taken_in_the_next_plan(self) -> None:
        bench = Bench(1)
        bench.add(make_sequence(0, 4, max_tokens=1))
        bench.add(make_sequence(1, 4))
        bench.step()
        plan = bench.scheduler.schedule()
        assert (plan.finished, ids(plan.new), plan.new[0].new_block_ids) == ((0,), [1], (0,))
        assert bench.scheduler.drain_events() == (
            BlockEvent("alloc", 0, 0),
            BlockEvent("free", 0, 0),
            BlockEvent("alloc", 0, 1),
        )


class TestAdmission:
    @pytest.mark.parametrize(
        ("lengths", "budget", "expected"),
        [
            ([4, 4, 4], 12, [[0, 1, 2]]),
            ([4, 4, 4], 11, [[0, 1], [2]]),
            ([2, 6, 2], 10, [[0, 1, 2]]),  # tokens, not rectangles
            ([9, 1, 1], 8, [[0], [1, 2]]),  # longer than the budget: alone
            ([1, 9, 1], 8, [[0], [1], [2]]),
        ],
    )
    def test_prompts_of_a_step_stay_within_the_budget(
        self, lengths: list[int], budget: int, expected: list[list[int]]
    ) -> None:
        bench = Bench(20, budget=budget)
        for i, length in enumerate(lengths):
            bench.add(make_sequence(i, length))
        assert [ids(bench.step().new) for _ in expected] == expected
        assert ids(bench.step().advanced) == [0, 1, 2]

    def test_the_first_that_does_not_fit_ends_it(self) -> None:
        bench = Bench(4)
        for i, length in enumerate((8, 12, 1)):
            bench.add(make_sequence(i, length, max_tokens=2))
        assert ids(bench.step().new) == [0]
        assert ids(bench.scheduler.waiting) == [1, 2]

    def test_running_never_exceeds_the_seats(self) -> None:
        bench = Bench(40, seqs=3)
        for i in range(9):
            bench.add(make_sequence(i, 2, max_tokens=3 + i))
        while bench.scheduler.has_unfinished():
            before = ids(bench.scheduler.running)
            plan = bench.step()
            assert len(bench.scheduler.running) <= 3
            assert plan.new or ids(plan.advanced) == before

    def test_n_places_are_reserved_before_the_prompt_is_computed(self) -> None:
        bench = Bench(40, seqs=4)
        bench.add(make_sequence(0))
        bench.add(*samples(1, 3, 4))
        bench.add(make_sequence(30))
        assert ids(bench.step().new) == [0, 10]
        assert ids(bench.step().scheduled) == [0, 10, 11, 12]
        assert ids(bench.scheduler.waiting) == [30]

    def test_too_few_places_for_all_samples_admit_none(self) -> None:
        bench = Bench(40, seqs=3)
        bench.add(make_sequence(0, max_tokens=2))
        bench.add(*samples(1, 3, 4, max_tokens=2))
        assert ids(bench.step().new) == [0]
        bench.step()
        assert ids(bench.step().new) == [10]
        bench.run()
        assert bench.num_free == 40


class TestParallelSamples:
    def test_the_prompt_is_computed_once_but_for_its_last_token(self) -> None:
        """A prompt of 7: six tokens once, the seventh by each; two of three copy the block."""
        bench = Bench(8)
        a, b, c = samples(0, 3, 7)
        bench.add(a, b, c)
        assert bench.step() == SchedulerOutput(
            new=(ScheduledSequence(a, 0, 6, 7, (0, 1), num_sampled=0),)
        )
        assert [s.num_output_tokens for s in (a, b, c)] == [0, 0, 0]
        assert bench.step() == SchedulerOutput(
            new=(
                ScheduledSequence(b, 6, 1, 7, (0, 3), forked_from=0),
                ScheduledSequence(c, 6, 1, 7, (0, 1), forked_from=0),
            ),
            advanced=(ScheduledSequence(a, 6, 1, 7, (2,), 1),),
            copies=(BlockCopy(1, 2), BlockCopy(1, 3)),
        )
        assert [s.num_output_tokens for s in (a, b, c)] == [1, 1, 1]
        assert a.token_ids[-1] != b.token_ids[-1]
        # Position 7 still fits everybody's second block; position 8 opens one each.
        assert [i.new_block_ids for i in bench.step().advanced] == [(), (), ()]
        assert [i.new_block_ids for i in bench.step().advanced] == [(4,), (5,), (6,)]

    @pytest.mark.parametrize("prompt_len", [5, 9])
    def test_a_prompt_of_full_blocks_and_one_token_needs_no_copy(self, prompt_len: int) -> None:
        bench = Bench(16)
        bench.add(*samples(0, 3, prompt_len))
        full = prompt_len // 4
        assert bench.step().new[0].new_block_ids == tuple(range(full))
        plan = bench.step()
        assert plan.copies == ()
        assert [i.new_block_ids for i in plan.advanced] == [(full,)]
        shared = tuple(range(full))
        assert [i.new_block_ids for i in plan.new] == [(*shared, full + 1), (*shared, full + 2)]

    def test_a_prompt_of_full_blocks_copies_the_last(self) -> None:
        bench = Bench(16)
        bench.add(*samples(0, 2, 8))
        bench.step()
        plan = bench.step()
        assert plan.copies == (BlockCopy(1, 2),)
        assert [(i.table_start, i.new_block_ids) for i in plan.advanced] == [(1, (2,))]

    def test_a_prompt_of_one_token_has_nothing_to_share(self) -> None:
        bench = Bench(8)
        bench.add(*samples(0, 3, 1))
        plan = bench.step()
        assert [(i.seq_id, i.new_block_ids, i.forked_from) for i in plan.new] == [
            (0, (0,), None),
            (1, (1,), None),
            (2, (2,), None),
        ]

    def test_each_ends_on_its_own(self) -> None:
        bench = Bench(16)
        a, b, c = samples(0, 3, 6, max_tokens=5)
        bench.add(a, b, c)
        bench.step()
        bench.stop_now.add(1)
        bench.step()
        assert (b.finish_reason, b.num_output_tokens) == ("stop", 1)
        bench.run()
        assert [s.num_output_tokens for s in (a, b, c)] == [5, 1, 5]
        assert bench.num_free == 16

    def test_no_room_for_a_fork_makes_it_wait_as_a_sequence_of_its_own(self) -> None:
        """Two blocks hold the prompt; nobody has heard of the sample that found no third."""
        bench = Bench(2)
        a, b = samples(0, 2, 7, max_tokens=1)
        bench.add(a, b)
        bench.step()
        plan = bench.step()
        # One leaves, so the other writes the partial block in place.
        assert (ids(plan.advanced), ids(plan.new), plan.copies) == ([0], [], ())
        assert plan.preempted == ()
        assert (b.status, ids(bench.scheduler.waiting)) == (SequenceStatus.PREEMPTED, [1])
        plan = bench.step()
        assert [(i.seq_id, i.start, i.num_tokens) for i in plan.new] == [(1, 0, 7)]
        assert bench.num_free == 2

    def test_a_parent_that_is_preempted_before_the_fork_begins_again(self) -> None:
        bench = Bench(2, queue=PriorityQueue())
        bench.add(*samples(1, 2, 7, max_tokens=1, priority=1))
        bench.step()
        bench.add(make_sequence(5, 5, max_tokens=1))
        plan = bench.step()
        assert (plan.preempted, ids(plan.new)) == ((10,), [5])
        plan = bench.step()
        assert [(i.seq_id, i.num_tokens, i.num_sampled) for i in plan.new] == [(10, 6, 0)]
        bench.run()
        assert bench.num_free == 2
