"""What a prompt finds, what it must not find, and what looking costs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from m6_prefix.hash_index import HashIndex
from m6_prefix.kv_cache_manager import KVCacheManager
from m6_prefix.prefix_index import PrefixIndex
from m6_prefix.tests.helpers import (
    INDEXES,
    SIZE,
    CountingHasher,
    admit,
    advance,
    constant_hash,
    leave,
    sequence_of,
)
from m6_prefix.tree_index import TreeIndex


def counts(manager: KVCacheManager) -> list[int]:
    return [block.ref_cnt for block in manager.pool.blocks]


@pytest.fixture(params=INDEXES)
def make(request: pytest.FixtureRequest) -> Callable[[], PrefixIndex]:
    made: Callable[[], PrefixIndex] = request.param
    return made


@pytest.fixture
def manager(make: Callable[[], PrefixIndex]) -> KVCacheManager:
    return KVCacheManager(10, SIZE, index=make())


class TestMatch:
    @pytest.mark.parametrize(
        ("length", "hit"),
        [(1, 0), (3, 0), (4, 0), (5, 4), (7, 4), (8, 4), (9, 8), (12, 8), (13, 12), (14, 12)],
    )
    def test_a_prompt_that_is_fully_cached_leaves_a_token(
        self, manager: KVCacheManager, length: int, hit: int
    ) -> None:
        """Whole blocks only: of a prompt of exactly k blocks, the last is computed again."""
        admit(manager, sequence_of(0, range(12)))
        again = sequence_of(1, range(length))
        assert manager.match_prefix(again) == hit
        assert manager.hit_ids(again) == tuple(range(hit // SIZE))
        assert counts(manager) == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0], "a match attaches nothing"
        assert admit(manager, again) == hit
        assert manager.num_blocks(again) == manager.blocks_for(length)

    @pytest.mark.parametrize(("length", "hit"), [(1, 0), (5, 0), (6, 4), (8, 4), (9, 4), (10, 8)])
    def test_the_first_of_several_samples_leaves_two(
        self, manager: KVCacheManager, length: int, hit: int
    ) -> None:
        """It computes all but the last token, and must not be left without any."""
        admit(manager, sequence_of(0, range(12)))
        parent = sequence_of(1, range(length), n=2)
        assert manager.match_prefix(parent) == hit
        assert length == 1 or length - 1 - hit >= 1

    def test_a_sample_on_its_own_leaves_one(self, manager: KVCacheManager) -> None:
        admit(manager, sequence_of(0, range(12)))
        assert manager.match_prefix(sequence_of(2, range(9), n=2, index=1)) == 8
        generating = sequence_of(5, range(8), n=2)
        generating.append(8, 0.0)
        assert manager.match_prefix(generating) == 8

    def test_a_prompt_shorter_than_a_block_is_never_cached(self, manager: KVCacheManager) -> None:
        assert admit(manager, sequence_of(0, range(3))) == 0
        assert admit(manager, sequence_of(1, range(3))) == 0
        assert len(manager.pool.index) == 0
        assert counts(manager)[:3] == [1, 1, 0]

    def test_ten_shared_tokens_are_two_blocks_of_four(self, manager: KVCacheManager) -> None:
        admit(manager, sequence_of(0, [*range(10), 50, 51]))
        assert admit(manager, sequence_of(1, [*range(10), 60, 61])) == 8

    def test_the_same_tokens_behind_other_ones_are_no_hit(self, manager: KVCacheManager) -> None:
        admit(manager, sequence_of(0, [1, 1, 1, 1, 5, 6, 7, 8]))
        assert admit(manager, sequence_of(1, [2, 2, 2, 2, 5, 6, 7, 8, 9])) == 0
        assert admit(manager, sequence_of(2, [5, 6, 7, 8, 9])) == 0

    def test_a_salt_is_never_crossed(self, manager: KVCacheManager) -> None:
        prompt = list(range(9))
        for number, salt in enumerate((None, "a", "b")):
            assert admit(manager, sequence_of(number, prompt, salt=salt)) == 0
        for number, salt in enumerate((None, "a", "b"), 3):
            one = sequence_of(number, prompt, salt=salt)
            assert manager.match_prefix(one) == 8
            assert manager.hit_ids(one) == tuple(3 * (number - 3) + i for i in (0, 1))
        assert manager.match_prefix(sequence_of(9, prompt, salt="c")) == 0

    def test_any_other_key_separates_as_well(self) -> None:
        manager = KVCacheManager(
            8, SIZE, extra_keys=lambda sequence: (f"adapter {sequence.seq_id % 2}",)
        )
        prompt = list(range(5))
        assert [admit(manager, sequence_of(i, prompt)) for i in (0, 1, 2, 3)] == [0, 0, 4, 4]

    def test_only_a_sequence_without_blocks_is_matched(self, manager: KVCacheManager) -> None:
        a = sequence_of(0, range(5))
        admit(manager, a)
        with pytest.raises(AssertionError, match="sequence 0 has a table"):
            manager.match_prefix(a)


class TestCollisions:
    def test_the_weakest_hash_costs_time_and_nothing_else(self) -> None:
        weak = KVCacheManager(12, SIZE, hasher=constant_hash)
        strong = KVCacheManager(12, SIZE)
        prompts = [[1] * 9, [2] * 9, [1] * 4 + [2] * 5, [2] * 4 + [1] * 5, [1] * 9, [2] * 4]
        for manager in (weak, strong):
            found = [admit(manager, sequence_of(i, p)) for i, p in enumerate(prompts)]
            assert found == [0, 0, 4, 4, 8, 0]
        assert weak.drain_events() == strong.drain_events()


class TestHashing:
    def test_every_token_is_hashed_once_however_often_a_prompt_is_matched(self) -> None:
        hasher = CountingHasher()
        manager = KVCacheManager(12, SIZE, index=HashIndex(), hasher=hasher)
        a = sequence_of(0, range(18))
        for _ in range(50):  # it waits for room
            manager.match_prefix(a)
        admit(manager, a)
        assert hasher.num_tokens == 16
        advance(manager, a, *range(18, 30))
        assert hasher.num_tokens == 28
        leave(manager, a)
        admit(manager, a)
        assert hasher.num_tokens == 28

    def test_samples_hash_their_prompt_once(self) -> None:
        hasher = CountingHasher()
        manager = KVCacheManager(12, SIZE, hasher=hasher)
        parent, *children = (sequence_of(i, range(9), n=3, index=i) for i in range(3))
        admit(manager, parent, 8)
        for child in children:
            manager.fork(parent, child)
            child.num_computed_tokens = 8
            assert manager.allocate_slots(child, 1) == []
            manager.publish(child, 9)
            child.num_computed_tokens = 9
        assert hasher.num_tokens == 8
        for child in children:
            advance(manager, child, 9, 10, 11)
        assert hasher.num_tokens == 8 + 2 * SIZE

    def test_a_miss_in_the_first_block_hashes_that_block(self) -> None:
        hasher = CountingHasher()
        manager = KVCacheManager(12, SIZE, hasher=hasher)
        manager.match_prefix(sequence_of(0, range(400)))
        assert hasher.num_tokens == SIZE

    def test_the_tree_hashes_nothing(self) -> None:
        hasher = CountingHasher()
        manager = KVCacheManager(12, SIZE, index=TreeIndex(), hasher=hasher)
        for number in range(3):
            admit(manager, sequence_of(number, range(9)))
        assert (hasher.num_tokens, manager.stats().hit_tokens) == (0, 16)
