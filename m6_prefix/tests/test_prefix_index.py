"""Both indexes: what is found, what is not, and what is left when everything is removed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from m2_batching.tests.helpers import count_operations
from m6_prefix.block_hash import BlockHasher, BlockHashes
from m6_prefix.hash_index import HashIndex
from m6_prefix.prefix_index import PrefixIndex
from m6_prefix.tests.helpers import (
    INDEXES,
    CountingHasher,
    constant_hash,
    parity_hash,
    prefix_of,
)
from m6_prefix.tree_index import CachedPrefix, TreeIndex


@pytest.fixture(params=INDEXES)
def index(request: pytest.FixtureRequest) -> PrefixIndex:
    made: PrefixIndex = request.param()
    return made


def insert_all(index: PrefixIndex, prefix: BlockHashes, *blocks: int) -> None:
    """A sequence's blocks, from the first on."""
    for i, block in enumerate(blocks):
        index.insert(block, blocks[i - 1] if i else None, prefix, i)


class TestLookup:
    def test_an_empty_index_finds_nothing(self, index: PrefixIndex) -> None:
        assert index.lookup(prefix_of(range(8)), 9) == []
        assert (len(index), 0 in index) == (0, False)

    def test_the_longest_prefix(self, index: PrefixIndex) -> None:
        insert_all(index, prefix_of(range(12)), 7, 2, 5)
        assert index.lookup(prefix_of(range(12)), 9) == [7, 2, 5]
        assert index.lookup(prefix_of(range(40)), 9) == [7, 2, 5]
        assert index.lookup(prefix_of(range(11)), 9) == [7, 2]
        assert index.lookup(prefix_of([*range(8), 0, 0, 0, 0]), 9) == [7, 2]
        assert index.lookup(prefix_of([9, *range(1, 12)]), 9) == []
        assert index.lookup(prefix_of(range(3)), 9) == []
        assert (len(index), 2 in index, 3 in index) == (3, True, False)

    @pytest.mark.parametrize("limit", [0, 1, 2, 3, 4])
    def test_no_more_than_the_limit(self, index: PrefixIndex, limit: int) -> None:
        insert_all(index, prefix_of(range(12)), 7, 2, 5)
        assert index.lookup(prefix_of(range(12)), limit) == [7, 2, 5][:limit]

    def test_prefixes_part_where_their_tokens_do(self, index: PrefixIndex) -> None:
        first, second = [1] * 4 + [2] * 4, [1] * 4 + [3] * 4
        insert_all(index, prefix_of(first), 0, 1)
        index.insert(2, 0, prefix_of(second), 1)
        assert index.lookup(prefix_of(first), 9) == [0, 1]
        assert index.lookup(prefix_of(second), 9) == [0, 2]

    def test_the_same_tokens_under_another_parent_are_something_else(
        self, index: PrefixIndex
    ) -> None:
        insert_all(index, prefix_of([1] * 4 + [2] * 4), 0, 1)
        insert_all(index, prefix_of([3] * 4 + [4] * 4), 2, 3)
        assert index.lookup(prefix_of([3] * 4 + [2] * 4), 9) == [2]
        assert index.lookup(prefix_of([2] * 4), 9) == []

    def test_salts_never_meet(self, index: PrefixIndex) -> None:
        insert_all(index, prefix_of(range(8)), 0, 1)
        insert_all(index, prefix_of(range(8), "a"), 2, 3)
        insert_all(index, prefix_of(range(8), "b"), 4)
        found = [index.lookup(prefix_of(range(8), *keys), 9) for keys in ((), ("a",), ("b",))]
        assert found == [[0, 1], [2, 3], [4]]
        assert index.lookup(prefix_of(range(8), "c"), 9) == []

    def test_inserting_twice_is_our_own_mistake(self, index: PrefixIndex) -> None:
        insert_all(index, prefix_of(range(8)), 0, 1)
        with pytest.raises(AssertionError, match="block 1 is in the index"):
            index.insert(1, 0, prefix_of(range(8)), 1)


class TestDuplicates:
    def test_the_first_copy_answers_until_it_goes(self, index: PrefixIndex) -> None:
        for blocks in ((0, 1), (2, 3), (4, 5)):
            insert_all(index, prefix_of(range(8)), *blocks)
        assert len(index) == 6
        assert index.lookup(prefix_of(range(8)), 9) == [0, 1]
        index.remove(1)
        assert index.lookup(prefix_of(range(8)), 9) == [0, 3]
        index.remove(0)
        assert index.lookup(prefix_of(range(8)), 9) == [2, 3]
        insert_all(index, prefix_of(range(8)), 0, 1)  # a copy again, the last one now
        assert index.lookup(prefix_of(range(8)), 9) == [2, 3]

    def test_a_child_belongs_to_all_copies_of_its_parent(self, index: PrefixIndex) -> None:
        insert_all(index, prefix_of(range(4)), 0)
        insert_all(index, prefix_of(range(8)), 2, 3)
        assert index.lookup(prefix_of(range(8)), 9) == [0, 3]
        index.remove(2)
        assert index.lookup(prefix_of(range(8)), 9) == [0, 3]


class TestRemoval:
    def test_a_removed_block_is_not_found_and_can_hold_something_else(
        self, index: PrefixIndex
    ) -> None:
        insert_all(index, prefix_of(range(8)), 0, 1)
        index.remove(1)
        assert index.lookup(prefix_of(range(8)), 9) == [0]
        index.insert(1, 0, prefix_of([*range(4), 8, 8, 8, 8]), 1)
        assert index.lookup(prefix_of(range(8)), 9) == [0]
        assert index.lookup(prefix_of([*range(4), 8, 8, 8, 8]), 9) == [0, 1]

    def test_a_stranger_cannot_be_removed(self, index: PrefixIndex) -> None:
        with pytest.raises(KeyError):
            index.remove(3)

    def test_nothing_is_left_of_what_has_gone(self, index: PrefixIndex) -> None:
        """Not even of a salt: the state is that of a fresh index, whatever is asked next."""
        for number, keys in enumerate(((), ("a",), ("b",))):
            insert_all(index, prefix_of(range(8), *keys), 2 * number, 2 * number + 1)
        for number in (1, 0, 2):
            index.remove(2 * number + 1)
            index.remove(2 * number)
        assert len(index) == 0
        if isinstance(index, TreeIndex):
            assert not index._root.children
        else:
            assert isinstance(index, HashIndex)
            assert not index._entries


@pytest.mark.parametrize("hasher", [constant_hash, parity_hash])
class TestCollisions:
    """Only the flat index hashes; it compares what a hash stands for."""

    def blocks(self, hasher: BlockHasher, tokens: list[int], *keys: str) -> BlockHashes:
        prefix = BlockHashes(4, keys, hasher)
        prefix.extend(tokens)
        return prefix

    def test_other_tokens_with_the_same_hash_are_no_hit(self, hasher: BlockHasher) -> None:
        index = HashIndex()
        insert_all(index, self.blocks(hasher, [1, 1, 2, 2]), 0)
        assert index.lookup(self.blocks(hasher, [2, 2, 1, 1]), 9) == []
        insert_all(index, self.blocks(hasher, [2, 2, 1, 1]), 1)
        assert index.lookup(self.blocks(hasher, [2, 2, 1, 1]), 9) == [1]
        assert index.lookup(self.blocks(hasher, [1, 1, 2, 2]), 9) == [0]
        index.remove(0)
        assert index.lookup(self.blocks(hasher, [1, 1, 2, 2]), 9) == []
        assert index.lookup(self.blocks(hasher, [2, 2, 1, 1]), 9) == [1]

    def test_nor_are_equal_tokens_behind_another_prefix(self, hasher: BlockHasher) -> None:
        """Comparing the block's own tokens alone would find block 1 here."""
        index = HashIndex()
        insert_all(index, self.blocks(hasher, [1] * 4 + [2] * 4), 0, 1)
        insert_all(index, self.blocks(hasher, [3] * 4 + [4] * 4), 2, 3)
        assert index.lookup(self.blocks(hasher, [3] * 4 + [2] * 4), 9) == [2]

    def test_nor_is_another_salt(self, hasher: BlockHasher) -> None:
        index = HashIndex()
        insert_all(index, self.blocks(hasher, [1] * 8, "a"), 0, 1)
        assert index.lookup(self.blocks(hasher, [1] * 8, "b"), 9) == []
        assert index.lookup(self.blocks(hasher, [1] * 8), 9) == []


class TestTree:
    def test_it_can_be_drawn(self) -> None:
        index = TreeIndex()
        insert_all(index, prefix_of([1] * 4 + [2] * 4), 7, 2)
        insert_all(index, prefix_of([1] * 4 + [2] * 4), 8, 11)
        index.insert(4, 7, prefix_of([1] * 4 + [3] * 4), 1)
        index.insert(5, 2, prefix_of([1] * 4 + [2] * 4 + [9] * 4), 2)
        insert_all(index, prefix_of([1] * 4, "salt"), 6)
        assert list(index) == [
            CachedPrefix((), 0, (1,) * 4, (7, 8)),
            CachedPrefix((), 1, (2,) * 4, (2, 11)),
            CachedPrefix((), 2, (9,) * 4, (5,)),
            CachedPrefix((), 1, (3,) * 4, (4,)),
            CachedPrefix(("salt",), 0, (1,) * 4, (6,)),
        ]

    def test_only_leaves_go(self) -> None:
        index = TreeIndex()
        insert_all(index, prefix_of(range(8)), 0, 1)
        with pytest.raises(AssertionError, match="block 0 goes before the prefixes that continue"):
            index.remove(0)

    def test_a_prefix_deeper_than_pythons_stack(self) -> None:
        index, prefix = TreeIndex(), prefix_of(range(5000), size=1)
        insert_all(index, prefix, *range(5000))
        assert index.lookup(prefix, 5000) == list(range(5000))
        assert [row.depth for row in index] == list(range(5000))
        for block in reversed(range(5000)):
            index.remove(block)
        assert list(index) == []

    def test_it_never_asks_for_a_hash(self) -> None:
        index, hasher = TreeIndex(), CountingHasher()
        prefix = BlockHashes(4, (), hasher)
        prefix.extend(list(range(40)))
        insert_all(index, prefix, *range(10))
        assert index.lookup(prefix, 10) == list(range(10))
        assert hasher.num_tokens == 0


@pytest.mark.parametrize("make", INDEXES)
def test_a_lookup_costs_the_same_whatever_is_cached(make: Callable[[], PrefixIndex]) -> None:
    """And a miss in the first block costs one step, however long the prompt."""

    def cost(others: int, prompt: int) -> int:
        index = make()
        for number in range(others):
            insert_all(index, prefix_of([number + 5] * 4), number)
        prefix = prefix_of(range(prompt))
        return count_operations(lambda: index.lookup(prefix, 1000))

    assert cost(2000, 400) == cost(1, 400) == cost(1, 4)


PROMPTS = st.lists(st.sampled_from([(0, 0), (0, 1), (1, 1)]), min_size=1, max_size=4)


class Machine(RuleBasedStateMachine):
    """Three indexes against a plain dictionary from block to (keys, tokens of the whole prefix)."""

    def __init__(self) -> None:
        super().__init__()
        self.indexes: list[tuple[PrefixIndex, BlockHasher]] = [
            (HashIndex(), CountingHasher()),
            (HashIndex(), parity_hash),
            (TreeIndex(), constant_hash),
        ]
        self.model: dict[int, tuple[tuple[str, ...], tuple[int, ...]]] = {}

    @rule(parts=PROMPTS, keys=st.sampled_from([(), ("a",)]), block=st.integers(0, 5))
    def insert(self, parts: list[tuple[int, int]], keys: tuple[str, ...], block: int) -> None:
        """The shortest part of a prompt that is not there yet, below any copy of its parent."""
        tokens = tuple(token for part in parts for token in part)
        found = self.expected(keys, tokens)
        depth = min(len(found), len(parts) - 1)
        if block in self.model:
            return
        parents = [b for b, held in self.model.items() if held == (keys, tokens[: 2 * depth])]
        for index, hasher in self.indexes:
            prefix = BlockHashes(2, keys, hasher)
            prefix.extend(list(tokens))
            index.insert(block, parents[-1] if depth else None, prefix, depth)
        self.model[block] = (keys, tokens[: 2 * depth + 2])

    def leaves(self) -> list[int]:
        """Blocks that may go: another copy stays, or nothing continues them."""
        return [
            block
            for block, (keys, tokens) in self.model.items()
            if list(self.model.values()).count((keys, tokens)) > 1
            or not any(
                other_keys == keys and len(other) > len(tokens) and other[: len(tokens)] == tokens
                for other_keys, other in self.model.values()
            )
        ]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(self.leaves()))
        for index, _ in self.indexes:
            index.remove(block)
        del self.model[block]

    @rule(parts=PROMPTS, keys=st.sampled_from([(), ("a",)]), limit=st.integers(0, 5))
    def lookup(self, parts: list[tuple[int, int]], keys: tuple[str, ...], limit: int) -> None:
        tokens = tuple(token for part in parts for token in part)
        for index, hasher in self.indexes:
            prefix = BlockHashes(2, keys, hasher)
            prefix.extend(list(tokens))
            assert index.lookup(prefix, limit) == self.expected(keys, tokens)[:limit]

    def expected(self, keys: tuple[str, ...], tokens: tuple[int, ...]) -> list[int]:
        found: list[int] = []
        for end in range(2, len(tokens) + 1, 2):
            copies = [b for b, held in self.model.items() if held == (keys, tokens[:end])]
            if not copies:
                break
            found.append(copies[0])
        return found

    @invariant()
    def sizes_agree(self) -> None:
        for index, _ in self.indexes:
            assert len(index) == len(self.model)
            assert all((block in index) == (block in self.model) for block in range(6))


TestAgainstAModel = Machine.TestCase
TestAgainstAModel.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
