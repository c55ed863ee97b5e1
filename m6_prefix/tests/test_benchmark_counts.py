"""Hit rates, evictions and indexes of the benchmarks, by hand: nothing here needs a model."""

from __future__ import annotations

import pytest

from common.workload import fixed, random_lengths
from m6_prefix.assembly import INDEXES
from m6_prefix.benchmarks import hit_rate, index_cost, simulate
from m6_prefix.kv_cache_manager import KVCacheManager


def test_few_shot_by_hand() -> None:
    """Six requests of 45 tokens on two prefixes of 40: four of them find two blocks."""
    case = hit_rate.few_shot(6, 40, 5, num_prefixes=2)
    assert case.expected == [0, 0, 32, 32, 32, 32]
    value = {row["metric"]: row["median"] for row in hit_rate.case_rows(case, "tree")}
    assert (value["queried_tokens"], value["hit_tokens"]) == (6 * 45, 4 * 32)
    assert value["hit_rate"] == pytest.approx(128 / 270)
    # Each of the six also computes 15 of its 16 output tokens.
    assert value["computed_tokens"] == 6 * (45 + 15) - 128


def test_multi_turn_by_hand() -> None:
    """A system prompt of 20, questions of 10, replies of 30; two chats of three turns."""
    case = hit_rate.multi_turn(2, 3, 20, 10, 30)
    assert [len(prompt) for prompt in case.workload.prompts] == [30, 30, 70, 70, 110, 110]
    # Turn 0: the second chat finds the system prompt's block. Turn 1 knows 59 tokens, 99 then.
    assert case.expected == [0, 16, 48, 48, 96, 96]
    served = simulate.serve(case.workload, KVCacheManager(64, 16), case.answer)
    assert served.hits == case.expected
    assert served.computed == 420 + 6 * 29 - sum(case.expected)


def test_a_reply_that_is_quoted_wrongly_does_not_hit() -> None:
    case = hit_rate.multi_turn(1, 2, 20, 10, 40)
    served = simulate.serve(case.workload, KVCacheManager(64, 16), lambda _: 0)
    assert (served.hits, case.expected) == ([0, 16], [0, 64])


def test_equal_prompts_of_one_step_share() -> None:
    case = hit_rate.few_shot(5, 32, 8, num_prefixes=1)
    served = simulate.serve(case.workload, KVCacheManager(64, 16), case.answer)
    assert served.hits == [0, 32, 32, 32, 32]
    assert served.steps == 16, "one prompt step, fifteen decodes"


def test_evictions_by_hand() -> None:
    """Three strangers of 33, 40 and 20 tokens, of which the last is never computed."""
    workload = fixed(1, 30, 3)
    assert hit_rate.expected_evictions(workload, 2) == 0
    three = random_lengths(4, (20, 40), (2, 20), temperature=0.0)
    for num_blocks in (4, 5, 8, 100):
        manager = KVCacheManager(num_blocks, 16)
        simulate.serve(three, manager, lambda _: 0, max_num_seqs=1)
        expected = hit_rate.expected_evictions(three, num_blocks)
        assert manager.stats().evicted_blocks == expected
    assert expected == 0


def test_a_pool_that_holds_one_prefix_too_few_hits_nothing() -> None:
    """Turns on two prefixes in a pool for one request: the worst order for an LRU."""
    rows = hit_rate.pressure_rows(hit_rate.few_shot(6, 40, 5, num_prefixes=2))
    rates = [row["median"] for row in rows if row["metric"] == "hit_rate"]
    assert rates[0] == 0
    assert rates[-1] == pytest.approx(128 / 270)


@pytest.mark.parametrize("name", list(INDEXES))
def test_an_index_is_left_as_it_was(name: str) -> None:
    index = INDEXES[name]()
    other, stranger = (index_cost._prefix(seed, 64) for seed in (1, index_cost.STRANGER))
    index_cost.insert(index, other, first_block=0)
    index_cost.index_rows(index, name, 64, rounds=1)
    assert len(index) == 4
    assert index.lookup(other, 4) == [0, 1, 2, 3]
    assert index.lookup(stranger, 4) == []
    assert index_cost.look_up(index, index_cost._tokens(1, 40)) == [0, 1]
    index_cost.remove(index, 4, 0)
    assert len(index) == 0
