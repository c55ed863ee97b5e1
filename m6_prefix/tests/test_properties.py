"""Anything a scheduler may do, against plain models: content, owners, free list, equal traces."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from common.block_state import BlockState
from common.request import Sequence
from common.step_record import BlockEvent
from m2_batching.plan import BlockCopy
from m6_prefix.block_hash import BlockHasher
from m6_prefix.hash_index import HashIndex
from m6_prefix.kv_cache_manager import KVCacheManager
from m6_prefix.tests.helpers import (
    constant_hash,
    parity_hash,
    sequence_of,
)
from m6_prefix.tree_index import TreeIndex

Content = tuple[str | None, tuple[int, ...]]
"""What K and V at a place depend on: the salt's owner, and all tokens up to the place."""


def flip(data: st.DataObject) -> bool:
    """A coin."""
    return data.draw(st.booleans())


class Oracle:
    """The pool as one plain free list, and what is findable, from events alone."""

    def __init__(self, num_blocks: int) -> None:
        self.state = BlockState(num_blocks)
        self.free = list(range(num_blocks))
        self.content: dict[int, Content] = {}  # of findable blocks, in order of publication

    def apply(self, event: BlockEvent, tokens: dict[int, Sequence], size: int) -> None:
        block, was_free = event.block, event.block in self.free
        if event.kind in ("alloc", "copy"):
            assert self.free[0] == block, "not the head of the free list"
            assert block not in self.content
            self.free.pop(0)
        elif event.kind == "evict":
            first = next(b for b in self.free if b in self.content)
            assert block == first, "not the least recently used"
            del self.content[block]
        elif event.kind == "hit" and was_free:
            self.free.remove(block)
        self.state.apply(event)
        if event.kind == "free" and not self.state.ref_count(block):
            self.free.insert(len(self.free) if block in self.content else 0, block)
        elif event.kind == "cache":
            assert event.seq_id is not None
            owner = tokens[event.seq_id]
            end = (self.state.tables[event.seq_id].index(block) + 1) * size
            self.content[block] = (owner.request.cache_salt, tuple(owner.token_ids[:end]))

    def longest(self, sequence: Sequence, size: int) -> list[int]:
        """The longest findable prefix, each block the first that was published."""
        found: list[int] = []
        for end in range(size, sequence.num_tokens + 1, size):
            wanted = (sequence.request.cache_salt, tuple(sequence.token_ids[:end]))
            block = next((b for b, held in self.content.items() if held == wanted), None)
            if block is None:
                break
            found.append(block)
        return found


class Machine(RuleBasedStateMachine):
    """Steps of a free scheduler on three managers at once; places hold what they depend on."""

    @initialize(
        blocks=st.integers(1, 12),
        size=st.integers(1, 3),
        cap=st.none() | st.integers(0, 6),
        weak=st.sampled_from([constant_hash, parity_hash]),
    )
    def start(self, blocks: int, size: int, cap: int | None, weak: BlockHasher) -> None:
        self.size = size
        self.managers = [
            KVCacheManager(blocks, size, index=HashIndex(), max_cached_blocks=cap),
            KVCacheManager(blocks, size, index=HashIndex(), hasher=weak, max_cached_blocks=cap),
            KVCacheManager(blocks, size, index=TreeIndex(), max_cached_blocks=cap),
        ]
        self.oracle = Oracle(blocks)
        self.places: list[list[Content | None]] = [[None] * size for _ in range(blocks)]
        self.sequences: dict[int, Sequence] = {}
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []

    @rule(
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=9),
        salt=st.sampled_from([None, None, None, "a"]),
        n=st.integers(1, 2),
    )
    def add(self, tokens: list[int], salt: str | None, n: int) -> None:
        self._wait(sequence_of(len(self.sequences), tokens, salt=salt, n=n))

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        """Running ones advance by some tokens each, then waiting ones begin, then all compute."""
        batch: list[tuple[Sequence, int]] = []
        copies: list[BlockCopy] = []
        for sequence in self.running:
            count = data.draw(st.integers(0, sequence.num_tokens - sequence.num_computed_tokens))
            made = self._allocate(sequence, count) if count else None
            if made is not None:
                copies += made
                batch.append((sequence, count))
        for sequence, count in batch:
            self._publish(sequence, count)
        while self.waiting and flip(data):
            sequence = self.waiting[0]
            sequence.num_computed_tokens = self._match(sequence)
            self._preempt_some(data, [item for item, _ in batch])
            count = data.draw(st.integers(1, sequence.num_tokens - sequence.num_computed_tokens))
            if self._allocate(sequence, count) is None:
                sequence.num_computed_tokens = 0
                break
            self.waiting.remove(sequence)
            self.running.append(sequence)
            self._publish(sequence, count)
            batch.append((sequence, count))
        self._compute(batch, copies)
        for sequence, count in batch:
            sequence.num_computed_tokens += count
            if sequence.num_computed_tokens == sequence.num_tokens:
                sequence.append(data.draw(st.integers(0, 1)), 0.0)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        parent = data.draw(st.sampled_from(self.running))
        child = Sequence(len(self.sequences), parent.request, 1, list(parent.token_ids))
        self.sequences[child.seq_id] = child
        for manager in self.managers:
            manager.fork(parent, child)
        child.num_computed_tokens = parent.num_computed_tokens
        self.running.append(child)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """An end, an abort or a preemption between two steps."""
        sequence = data.draw(st.sampled_from(self.running))
        self._free(sequence)
        if flip(data):
            self.waiting.insert(0, sequence)

    @rule()
    def reset(self) -> None:
        idle = set(self.oracle.content) <= set(self.oracle.free)
        assert [manager.reset_prefix_cache() for manager in self.managers] == [idle] * 3

    @invariant()
    def books_agree(self) -> None:
        if not hasattr(self, "managers"):
            return
        first, *others = self.managers
        events = first.drain_events()
        for event in events:
            self.oracle.apply(event, self.sequences, self.size)
        for manager in others:
            assert manager.drain_events() == events
        for manager in self.managers:
            manager.check()
            assert manager.pool.free_ids == self.oracle.free
            assert manager.stats() == first.stats()
            indexed = {b for b in range(manager.pool.num_blocks) if b in manager.pool.index}
            assert indexed == set(self.oracle.content) == self.oracle.state.cached
            for sequence in self.sequences.values():
                table = self.oracle.state.tables.get(sequence.seq_id, [])
                assert manager.block_ids(sequence) == tuple(table)
        for block, (salt, tokens) in self.oracle.content.items():
            ends = range(len(tokens) - self.size + 1, len(tokens) + 1)
            assert self.places[block] == [(salt, tokens[:end]) for end in ends], "stale content"

    def _wait(self, sequence: Sequence) -> None:
        self.sequences[sequence.seq_id] = sequence
        self.waiting.append(sequence)

    def _match(self, sequence: Sequence) -> int:
        for event in self._drain():
            self.oracle.apply(event, self.sequences, self.size)
        found = [manager.match_prefix(sequence) for manager in self.managers]
        for event in self._drain():  # a trim
            self.oracle.apply(event, self.sequences, self.size)
        is_parent = (
            sequence.sampling_params.n > 1
            and sequence.index == 0
            and sequence.num_output_tokens == 0
        )
        limit = max(0, sequence.num_tokens - 1 - is_parent) // self.size
        expected = self.oracle.longest(sequence, self.size)[:limit]
        assert [manager.hit_ids(sequence) for manager in self.managers] == [tuple(expected)] * 3
        assert found == [len(expected) * self.size] * 3
        return found[0]

    def _drain(self) -> tuple[BlockEvent, ...]:
        events = [manager.drain_events() for manager in self.managers]
        assert events[0] == events[1] == events[2]
        return events[0]

    def _allocate(self, sequence: Sequence, count: int) -> list[BlockCopy] | None:
        made = [manager.allocate_slots(sequence, count) for manager in self.managers]
        assert made[0] == made[1] == made[2]
        return made[0]

    def _publish(self, sequence: Sequence, count: int) -> None:
        for manager in self.managers:
            manager.publish(sequence, sequence.num_computed_tokens + count)

    def _preempt_some(self, data: st.DataObject, kept: list[Sequence]) -> None:
        """Between a match and its allocation, as a priority policy does."""
        victims = [s for s in self.running if s not in kept]
        if victims and flip(data):
            victim = data.draw(st.sampled_from(victims))
            self._free(victim)
            self.waiting.append(victim)

    def _free(self, sequence: Sequence) -> None:
        for manager in self.managers:
            manager.free(sequence)
        sequence.num_computed_tokens = 0
        self.running.remove(sequence)

    def _compute(self, batch: list[tuple[Sequence, int]], copies: list[BlockCopy]) -> None:
        """Copy, then store for everybody, then read for everybody: the order of every layer."""
        held = [list(self.places[copy.source]) for copy in copies]
        for copy, content in zip(copies, held, strict=True):
            self.places[copy.target] = content
        for sequence, count in batch:
            start = sequence.num_computed_tokens
            for position in range(start, start + count):
                table = self.managers[0].block_ids(sequence)
                place = (table[position // self.size], position % self.size)
                self.places[place[0]][place[1]] = self._content(sequence, position)
        for sequence, count in batch:
            table = self.managers[0].block_ids(sequence)
            for position in range(sequence.num_computed_tokens + count):
                found = self.places[table[position // self.size]][position % self.size]
                assert found == self._content(sequence, position), "wrong K and V"

    def _content(self, sequence: Sequence, position: int) -> Content:
        return sequence.request.cache_salt, tuple(sequence.token_ids[: position + 1])


TestManagers = Machine.TestCase
TestManagers.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
