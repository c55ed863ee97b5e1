"""Who gets how many tokens of a step, as exact plans worked out by hand."""

from __future__ import annotations

import pytest

from m2_batching.plan import ScheduledSequence, SchedulerOutput
from m2_batching.request_queue import PriorityQueue
from m2_batching.tests.helpers import ids, make_sequence
from m3_paged.tests.fake_runner import samples
from m5_chunked.tests.helpers import Bench, Row, rows


class TestOneBudget:
    def test_decodes_and_chunks_share_every_step(self) -> None:
        """The picture in the scheduler's docstring."""
        bench = Bench(40, budget=8)
        bench.add(make_sequence(0, 2))
        bench.add(make_sequence(1, 2))
        assert bench.steps(1) == [[(0, 0, 2, 1), (1, 0, 2, 1)]]
        bench.add(make_sequence(2, 14))
        bench.add(make_sequence(3, 6))
        assert bench.steps(5) == [
            [(0, 2, 1, 1), (1, 2, 1, 1), (2, 0, 6, 0)],
            [(0, 3, 1, 1), (1, 3, 1, 1), (2, 6, 6, 0)],
            [(0, 4, 1, 1), (1, 4, 1, 1), (2, 12, 2, 1), (3, 0, 4, 0)],
            [(0, 5, 1, 1), (1, 5, 1, 1), (2, 14, 1, 1), (3, 4, 2, 1)],
            [(0, 6, 1, 1), (1, 6, 1, 1), (2, 15, 1, 1), (3, 6, 1, 1)],
        ]

    def test_the_same_as_whole_plans(self) -> None:
        """A prompt of 6 in blocks of 4 under a budget of 3: its chunks end inside blocks."""
        bench = Bench(3, budget=3)
        a = make_sequence(0, 6, max_tokens=3)
        bench.add(a)
        plans = [bench.step() for _ in range(5)]
        assert plans == [
            SchedulerOutput(new=(ScheduledSequence(a, 0, 3, 6, (0,), num_sampled=0),)),
            SchedulerOutput(advanced=(ScheduledSequence(a, 3, 3, 6, (1,), 1),)),
            SchedulerOutput(advanced=(ScheduledSequence(a, 6, 1, 7, (), 2),)),
            SchedulerOutput(advanced=(ScheduledSequence(a, 7, 1, 8, (), 2),)),
            SchedulerOutput(finished=(0,)),
        ]
        assert a.num_output_tokens == 3

    @pytest.mark.parametrize(
        ("prompt_len", "expected"),
        [
            (7, [[(0, 0, 7, 1)], [(0, 7, 1, 1)]]),
            (8, [[(0, 0, 8, 1)], [(0, 8, 1, 1)]]),
            (9, [[(0, 0, 8, 0)], [(0, 8, 1, 1)], [(0, 9, 1, 1)]]),
            (16, [[(0, 0, 8, 0)], [(0, 8, 8, 1)], [(0, 16, 1, 1)]]),
            (17, [[(0, 0, 8, 0)], [(0, 8, 8, 0)], [(0, 16, 1, 1)], [(0, 17, 1, 1)]]),
        ],
        ids=str,
    )
    def test_a_prompt_around_the_budget(self, prompt_len: int, expected: list[list[Row]]) -> None:
        bench = Bench(10, budget=8)
        bench.add(make_sequence(0, prompt_len))
        assert bench.steps(len(expected)) == expected

    @pytest.mark.parametrize(
        ("prompt_len", "chunks"), [(6, [6]), (7, [7]), (8, [7, 1]), (14, [7, 7]), (15, [7, 7, 1])]
    )
    def test_beside_a_decode_one_less(self, prompt_len: int, chunks: list[int]) -> None:
        bench = Bench(10, budget=8)
        bench.add(make_sequence(0, 1))
        bench.step()
        bench.add(make_sequence(1, prompt_len))
        seen = []
        for row in bench.steps(len(chunks)):
            assert row[0][2:] == (1, 1)
            seen.append(row[1][2])
        assert seen == chunks

    def test_one_token_prompts_are_alike_from_the_start(self) -> None:
        bench = Bench(8, budget=3)
        for i in range(4):
            bench.add(make_sequence(i, 1, max_tokens=2))
        assert bench.steps(4) == [
            [(0, 0, 1, 1), (1, 0, 1, 1), (2, 0, 1, 1)],
            [(0, 1, 1, 1), (1, 1, 1, 1), (2, 1, 1, 1)],
            [(3, 0, 1, 1)],
            [(3, 1, 1, 1)],
        ]

    def test_a_budget_of_one_serves_one_after_the_other(self) -> None:
        """The first always gets the token: first come, first served, and nobody starves."""
        bench = Bench(8, budget=1)
        for i in range(3):
            bench.add(make_sequence(i, 2, max_tokens=2))
        assert bench.steps(9) == [
            [(seq_id, start, 1, int(start > 0))] for seq_id in range(3) for start in range(3)
        ]
        assert not bench.scheduler.has_unfinished()

    def test_the_same_lengths_give_the_same_tokens_whatever_the_budget(self) -> None:
        outputs = set()
        for budget in (1, 2, 3, 7, 16, 64, 1000):
            bench = Bench(40, budget=budget)
            sequences = [make_sequence(i, 3 + 5 * i, max_tokens=4 + i) for i in range(4)]
            for sequence in sequences:
                bench.add(sequence)
            bench.run()
            outputs.add(tuple(tuple(s.token_ids) for s in sequences))
        assert len(outputs) == 1


class TestPartialPrefill:
    def test_it_emits_no_token_until_its_last_slice(self) -> None:
        bench = Bench(10, budget=4)
        a = make_sequence(0, 13)
        bench.add(a)
        emitted = []
        for _ in range(5):
            bench.step()
            emitted.append((a.num_computed_tokens, a.num_output_tokens))
        assert emitted == [(4, 0), (8, 0), (12, 0), (13, 1), (14, 2)]

    @pytest.mark.parametrize(
        ("budget", "blocks"),
        [
            (3, [(0,), (1,), (2,), (), (3,)]),  # ends one before an edge: 3, 6, 9, 12, 13
            (4, [(0,), (1,), (2,), (3,)]),  # on the edge: 4, 8, 12, 13
            (5, [(0, 1), (2,), (3,)]),  # one after it: 5, 10, 13
        ],
    )
    def test_a_chunk_takes_the_blocks_it_reaches(
        self, budget: int, blocks: list[tuple[int, ...]]
    ) -> None:
        bench = Bench(4, budget=budget)
        bench.add(make_sequence(0, 13))
        assert [bench.step().scheduled[0].new_block_ids for _ in blocks] == blocks

    def test_the_next_prompt_begins_in_the_step_that_ends_this_one(self) -> None:
        bench = Bench(20, budget=8)
        bench.add(make_sequence(0, 10))
        bench.add(make_sequence(1, 10))
        assert bench.steps(3) == [
            [(0, 0, 8, 0)],
            [(0, 8, 2, 1), (1, 0, 6, 0)],
            [(0, 10, 1, 1), (1, 6, 4, 1)],
        ]

    def test_a_preempted_sequence_computes_its_output_again_in_chunks(self) -> None:
        bench = Bench(4, budget=4)
        a, b = make_sequence(0, 4, max_tokens=9), make_sequence(1, 4, max_tokens=5)
        bench.add(a)
        bench.add(b)
        while b.num_output_tokens < 3:
            bench.step()
        assert bench.step().preempted == (1,)
        assert (b.num_tokens, b.num_computed_tokens) == (7, 0)
        while not a.is_finished:
            assert ids(bench.step().scheduled) == [0]
        assert bench.steps(3) == [[(1, 0, 4, 0)], [(1, 4, 3, 1)], [(1, 7, 1, 1)]]
        assert b.is_finished


class TestDecodesNeverWait:
    def test_while_a_long_prompt_lands(self) -> None:
        bench = Bench(100, budget=6)
        for i in range(4):
            bench.add(make_sequence(i, 1))
        bench.step()
        bench.add(make_sequence(4, 41, max_tokens=1))
        for _ in range(21):  # two tokens of it a step
            plan = bench.step()
            assert ids(plan.scheduled) == [0, 1, 2, 3, 4]
            assert plan.num_tokens in (5, 6)
        assert ids(bench.step().scheduled) == [0, 1, 2, 3]

    def test_for_a_prompt_that_outranks_them(self) -> None:
        """It comes first and leaves a token to each."""
        bench = Bench(100, budget=6, queue=PriorityQueue())
        for i in range(4):
            bench.add(make_sequence(i, 1, priority=1))
        bench.step()
        bench.add(make_sequence(4, 5, priority=0))
        assert bench.steps(3) == [
            [*((i, 1, 1, 1) for i in range(4)), (4, 0, 2, 0)],
            [*((i, 2, 1, 1) for i in range(4)), (4, 2, 2, 0)],
            [*((i, 3, 1, 1) for i in range(4)), (4, 4, 1, 1)],
        ]
        assert ids(bench.scheduler.running) == [4, 0, 1, 2, 3]

    def test_not_even_when_the_budget_is_full_of_them(self) -> None:
        """No more seats than tokens; one that outranks them takes a seat and its token."""
        bench = Bench(100, seqs=8, budget=3, queue=PriorityQueue())
        for i in range(4):
            bench.add(make_sequence(i, 1, priority=1, max_tokens=3))
        assert bench.steps(1) == [[(0, 0, 1, 1), (1, 0, 1, 1), (2, 0, 1, 1)]]
        bench.add(make_sequence(4, 2, priority=0, max_tokens=1))
        plan = bench.step()
        assert (plan.preempted, rows(plan)) == ((2,), [(0, 1, 1, 1), (1, 1, 1, 1), (4, 0, 1, 0)])
        assert bench.steps(1) == [[(0, 2, 1, 1), (1, 2, 1, 1), (4, 1, 1, 1)]]
        assert bench.steps(1) == [[(2, 0, 2, 1), (3, 0, 1, 1)]]

    def test_a_chunk_behind_a_chunk_waits(self) -> None:
        """A prompt that outranks another one takes the budget; that one goes on afterwards."""
        bench = Bench(100, budget=6, queue=PriorityQueue())
        bench.add(make_sequence(0, 1, priority=2))
        bench.step()
        bench.add(make_sequence(1, 12, priority=1))
        assert bench.steps(1) == [[(0, 1, 1, 1), (1, 0, 5, 0)]]
        bench.add(make_sequence(2, 7, priority=0))
        assert bench.steps(3) == [
            [(0, 2, 1, 1), (2, 0, 5, 0)],
            [(0, 3, 1, 1), (1, 5, 3, 0), (2, 5, 2, 1)],
            [(0, 4, 1, 1), (1, 8, 4, 1), (2, 7, 1, 1)],
        ]

    def test_an_equal_prompt_waits_for_the_running_chunks(self) -> None:
        bench = Bench(100, budget=6, queue=PriorityQueue())
        bench.add(make_sequence(0, 12))
        bench.add(make_sequence(1, 2))
        assert bench.steps(3) == [
            [(0, 0, 6, 0)],
            [(0, 6, 6, 1)],
            [(0, 12, 1, 1), (1, 0, 2, 1)],
        ]


class TestLongPrefillThreshold:
    def test_with_company_it_bounds_each_slice(self) -> None:
        """A long prompt leaves room, so that a short one does not wait for its end."""
        bench = Bench(100, budget=10, threshold=4)
        bench.add(make_sequence(0, 10))
        bench.add(make_sequence(1, 10))
        bench.add(make_sequence(2, 3))
        assert bench.steps(3) == [
            [(0, 0, 4, 0), (1, 0, 4, 0), (2, 0, 2, 0)],
            [(0, 4, 4, 0), (1, 4, 4, 0), (2, 2, 1, 1)],
            [(0, 8, 2, 1), (1, 8, 2, 1), (2, 3, 1, 1)],
        ]

    def test_alone_the_budget_decides(self) -> None:
        bench = Bench(100, budget=10, threshold=4)
        bench.add(make_sequence(0, 23))
        assert bench.steps(1) == [[(0, 0, 10, 0)]]
        bench.add(make_sequence(1, 1))
        assert bench.steps(2) == [
            [(0, 10, 4, 0), (1, 0, 1, 1)],
            [(0, 14, 4, 0), (1, 1, 1, 1)],
        ]
        bench.stop_now.add(1)
        bench.step()
        assert bench.steps(1) == [[(0, 22, 1, 1)]]

    def test_somebody_who_waits_is_company(self) -> None:
        bench = Bench(100, seqs=1, budget=10, threshold=4)
        bench.add(make_sequence(0, 10))
        bench.add(make_sequence(1, 10))
        assert bench.steps(2) == [[(0, 0, 4, 0)], [(0, 4, 4, 0)]]

    def test_samples_of_one_request_are_no_company_before_the_fork(self) -> None:
        bench = Bench(100, budget=10, threshold=4)
        bench.add(*samples(0, 3, 9))
        assert bench.steps(2) == [
            [(0, 0, 8, 0)],
            [(0, 8, 1, 1), (1, 8, 1, 1), (2, 8, 1, 1)],
        ]

    @pytest.mark.parametrize("threshold", [0, 10, 11, 1000])
    def test_one_that_the_budget_undercuts_changes_nothing(self, threshold: int) -> None:
        bench = Bench(100, budget=10, threshold=threshold)
        bench.add(make_sequence(0, 12))
        bench.add(make_sequence(1, 12))
        assert bench.steps(2) == [[(0, 0, 10, 0)], [(0, 10, 2, 1), (1, 0, 8, 0)]]

    def test_a_threshold_of_one(self) -> None:
        bench = Bench(100, budget=10, threshold=1)
        bench.add(make_sequence(0, 2))
        bench.add(make_sequence(1, 3))
        assert bench.steps(3) == [
            [(0, 0, 1, 0), (1, 0, 1, 0)],
            [(0, 1, 1, 1), (1, 1, 1, 0)],
            [(0, 2, 1, 1), (1, 2, 1, 1)],
        ]


class TestSeats:
    def test_running_never_exceeds_the_seats(self) -> None:
        bench = Bench(40, seqs=3)
        for i in range(9):
            bench.add(make_sequence(i, 2, max_tokens=3 + i))
        while bench.scheduler.has_unfinished():
            before = ids(bench.scheduler.running)
            plan = bench.step()
            assert len(plan.scheduled) <= 3
            assert ids(plan.advanced) == before

    def test_never_more_seats_than_tokens(self) -> None:
        bench = Bench(40, seqs=8, budget=3)
        for i in range(5):
            bench.add(make_sequence(i, 1, max_tokens=4))
        assert bench.steps(1) == [[(0, 0, 1, 1), (1, 0, 1, 1), (2, 0, 1, 1)]]
        assert bench.run() == 7

    def test_the_first_that_finds_no_seat_ends_admission(self) -> None:
        """Three samples want three seats; the one behind them would fit and waits all the same."""
        bench = Bench(40, seqs=3)
        bench.add(make_sequence(0, 1, max_tokens=2))
        bench.add(*samples(1, 3, 4, max_tokens=1))
        bench.add(make_sequence(50, 1, max_tokens=1))
        assert [ids(bench.step().new) for _ in range(4)] == [[0], [], [10], [11, 12]]
        assert ids(bench.step().new) == [50]
