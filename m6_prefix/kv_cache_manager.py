"""Block tables whose full blocks can be found again: M3's manager with prefix caching.

::

    match_prefix     which full blocks of this sequence exist already?     changes nothing
    allocate_slots   attach exactly those, take the rest from the pool     all or nothing
    publish          the full blocks of this step become findable          its place is final
    free             owners leave; content stays until somebody needs the block

**A hit is never written.** A table is written from ``num_computed_tokens`` on. Hits are full
blocks, and after them ``num_computed_tokens`` is their length: the first block that is written is
the one behind the last hit. Only a fork can share a block that is not full, and there the copy on
write of M3 applies.

**A match cannot go stale.** Between ``match_prefix`` and ``allocate_slots`` a scheduler may
preempt others to make room. That frees blocks, and a free never evicts. Whatever could evict in
between (another allocation, a trim) moves ``BlockPool.num_evicted``; then ``allocate_slots`` looks
again, and answers None if the tokens that the caller relies on are not all there any more.

Source: vLLM 0.33.0, ``v1/core/kv_cache_manager.py``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from common.block_log import BlockLog
from common.request import Sequence
from common.step_record import BlockEvent
from m2_batching.plan import BlockCopy
from m3_paged.block_pool import KVCacheBlock
from m6_prefix.block_hash import BlockHasher, ExtraKeys, blake2b_hash, salt_keys
from m6_prefix.block_pool import BlockPool
from m6_prefix.hash_index import HashIndex
from m6_prefix.known_sequences import KnownSequences
from m6_prefix.prefix_index import PrefixIndex
from m6_prefix.prefix_stats import PrefixCounts


@dataclass(frozen=True)
class _Match:
    """What the last ``match_prefix`` found, and until when that is certain."""

    seq_id: int
    num_evicted: int
    blocks: list[KVCacheBlock]


class KVCacheManager:
    """Gives blocks to sequences, all or nothing, takes them back, and finds them again.

    Attributes:
        block_size: Tokens per block.
        pool: The blocks.
        enable_prefix_caching: Without it, every block and event is that of M3's manager.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        enable_prefix_caching: bool = True,
        index: PrefixIndex | None = None,
        hasher: BlockHasher = blake2b_hash,
        extra_keys: ExtraKeys = salt_keys,
        max_cached_blocks: int | None = None,
        keep_events: bool = True,
    ) -> None:
        """Start with all blocks free and nothing cached.

        Args:
            num_blocks: Blocks of the KV tensor.
            block_size: Tokens per block.
            enable_prefix_caching: Whether to find and publish blocks.
            index: How blocks are found; a :class:`HashIndex` where None.
            hasher: Names blocks.
            extra_keys: What besides its tokens a sequence's prefix must share; its cache salt.
            max_cached_blocks: Findable blocks at most, as far as nobody uses them.
            keep_events: Whether :meth:`drain_events` is asked for them.
        """
        self.block_size, self.enable_prefix_caching = block_size, enable_prefix_caching
        self._log = BlockLog(is_kept=keep_events)
        self.pool = BlockPool(
            num_blocks,
            HashIndex() if index is None else index,
            max_cached_blocks=max_cached_blocks,
            on_evict=lambda block_id: self._log.add("evict", [block_id], None),
        )
        self._known = KnownSequences(block_size, hasher, extra_keys)
        self._tables: dict[int, list[KVCacheBlock]] = {}
        self._published: dict[int, int] = {}  # leading blocks of each table that are findable
        self._match: _Match | None = None

    def match_prefix(self, sequence: Sequence) -> int:
        """Leading tokens whose K and V are known already; costs O(blocks of the prompt).

        Full blocks only, and never all tokens: the last one must be computed to be sampled from,
        so of a fully cached prompt of whole blocks the last block is computed again.

        Args:
            sequence: It has no blocks.
        """
        assert sequence.seq_id not in self._tables, f"sequence {sequence.seq_id} has a table"
        if not self.enable_prefix_caching:
            return 0
        self.pool.trim()
        limit = max(sequence.num_tokens - _must_compute(sequence), 0) // self.block_size
        match = self._match = self._look_up(sequence, limit)
        return len(match.blocks) * self.block_size

    def hit_ids(self, sequence: Sequence) -> tuple[int, ...]:
        """Blocks that ``match_prefix`` found, if this sequence was the last it was asked for.

        They are no room for the sequence, even where they are free: it will own them.
        """
        match = self._match
        if match is None or match.seq_id != sequence.seq_id:
            return ()
        return tuple(_ids(match.blocks))

    def allocate_slots(self, sequence: Sequence, num_new_tokens: int) -> list[BlockCopy] | None:
        """Make room for the next ``num_new_tokens`` of a sequence, or change nothing.

        ::

            | num_computed_tokens  | num_new_tokens |
            | block | block | block … | block | block |
            |  hits, or in the table   |  to allocate |

        Args:
            sequence: ``num_computed_tokens`` is its count before the step. Without a table, it is
                what ``match_prefix`` said (or fewer whole blocks of it).
            num_new_tokens: Tokens to compute, at least 1.

        Returns:
            Copies that must be made before the step. None if too few blocks are free, counting
            hits that nobody uses as taken, or if a hit has been evicted since it was matched.
        """
        table = self._tables.get(sequence.seq_id)
        if table is None:
            return self._begin(sequence, num_new_tokens)
        start = sequence.num_computed_tokens
        first_written = start // self.block_size
        shared = [i for i in range(first_written, len(table)) if table[i].ref_cnt > 1]
        missing = self.blocks_for(start + num_new_tokens) - len(table)
        if missing <= 0 and not shared:
            return []
        taken = self._take(sequence, len(shared) + max(missing, 0))
        if taken is None:
            return None
        copies = [self._own_copy(sequence, table, i, taken.pop(0)) for i in shared]
        self._append(sequence, table, taken)
        return copies

    def publish(self, sequence: Sequence, num_tokens: int) -> None:
        """Make the blocks findable that are full once ``num_tokens`` are computed.

        Call it when the sequence's place in the step is final, and before the next sequence is
        matched, so that equal prompts of one step share: every layer stores the K and V of the
        whole batch before anybody attends. A token whose id is not known yet (it is still in
        flight) names no block; a later call publishes that one.

        Args:
            sequence: It has blocks for ``num_tokens``.
            num_tokens: Its computed tokens after the step.
        """
        if not self.enable_prefix_caching:
            return
        if self._publish(sequence, num_tokens):
            before = self.pool.num_evicted
            self.pool.trim()
            self._known.count_evictions(sequence, self.pool.num_evicted - before)

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Give ``child`` the parent's table: same blocks, one more owner each."""
        assert child.seq_id not in self._tables, f"sequence {child.seq_id} has a table"
        table = self._tables[parent.seq_id]
        for block in table:
            self.pool.share(block)
        self._log.add("share", _ids(table), child.seq_id)
        self._tables[child.seq_id] = list(table)
        self._published[child.seq_id] = self._published[parent.seq_id]
        if self.enable_prefix_caching:
            self._known.fork(parent, child)

    def free(self, sequence: Sequence) -> None:
        """Take all blocks of a sequence back, last one first; without any, do nothing.

        What it published stays findable, so a preempted sequence can find its own blocks. A block
        whose last id was in flight when it was filled is published here, at the latest.
        """
        if self.enable_prefix_caching and sequence.seq_id in self._tables:
            self._publish(sequence, sequence.num_computed_tokens)
        table = self._tables.pop(sequence.seq_id, [])
        published = self._published.pop(sequence.seq_id, 0) * self.block_size
        assert published <= sequence.num_computed_tokens, (
            f"sequence {sequence.seq_id} leaves with {published} tokens published "
            f"and {sequence.num_computed_tokens} computed"
        )
        self.pool.free(reversed(table))
        self._log.add("free", reversed(_ids(table)), sequence.seq_id)

    def reset_prefix_cache(self) -> bool:
        """Forget all cached content, for a cold start; refused while any of it is in use.

        Returns:
            Whether it was done.
        """
        return self.pool.reset()

    def stats(self) -> PrefixCounts:
        """Counts over all sequences so far; evictions that nobody caused (a reset) are in it."""
        return dataclasses.replace(self._known.totals, evicted_blocks=self.pool.num_evicted)

    def stats_of(self, sequence: Sequence) -> PrefixCounts:
        """Counts of one sequence so far, whether it still has blocks or not."""
        return self._known.counts(sequence)

    def block_ids(self, sequence: Sequence, since: int = 0) -> tuple[int, ...]:
        """The sequence's block table from entry ``since`` on."""
        return tuple(_ids(self._tables.get(sequence.seq_id, [])[since:]))

    def num_blocks(self, sequence: Sequence) -> int:
        """Length of the sequence's block table."""
        return len(self._tables.get(sequence.seq_id, ()))

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that ``num_tokens`` need."""
        return -(-num_tokens // self.block_size)

    def drain_events(self) -> tuple[BlockEvent, ...]:
        """What happened since the last call, for the trace; nothing without ``keep_events``."""
        return self._log.drain()

    def check(self) -> None:
        """Assert that counts are the tables' entries and published blocks are findable; O(all)."""
        self.pool.check()
        counts = [0] * self.pool.num_blocks
        for table in self._tables.values():
            for block in table:
                counts[block.block_id] += 1
        assert counts == [block.ref_cnt for block in self.pool.blocks]
        assert self._published.keys() == self._tables.keys()
        for seq_id, table in self._tables.items():
            published = self._published[seq_id]
            assert all(block.block_id in self.pool.index for block in table[:published])

    def _publish(self, sequence: Sequence, num_tokens: int) -> bool:
        """Publish without regard to the cap; returns whether there was anything to publish."""
        full = min(num_tokens, sequence.num_tokens) // self.block_size
        done = self._published[sequence.seq_id]
        if full <= done:
            return False  # 15 of 16 decode steps
        table, prefix = self._tables[sequence.seq_id], self._known.prefix(sequence)
        for i in range(done, full):
            if table[i].block_id not in self.pool.index:  # else a sample that shares it was first
                self.pool.cache(table[i], table[i - 1] if i else None, prefix, i)
                self._log.add("cache", [table[i].block_id], sequence.seq_id)
        self._published[sequence.seq_id] = full
        return True

    def _begin(self, sequence: Sequence, num_new_tokens: int) -> list[BlockCopy] | None:
        """A table for a sequence that has none: first its hits, then new blocks."""
        start = sequence.num_computed_tokens
        hits = self._hits(sequence, start) if self.enable_prefix_caching and start else []
        if hits is None:
            return None
        missing = self.blocks_for(start + num_new_tokens) - len(hits)
        unused = sum(block.ref_cnt == 0 for block in hits)  # free now, but not for anybody else
        if missing + unused > self.pool.num_free:
            return None
        for block in hits:  # first, or a new block could be one of them
            self.pool.share(block)
        self._log.add("hit", _ids(hits), sequence.seq_id)
        taken = self._take(sequence, missing)
        assert taken is not None
        self._tables[sequence.seq_id] = table = hits
        self._published[sequence.seq_id], self._match = len(hits), None
        self._append(sequence, table, taken)
        if self.enable_prefix_caching:
            self._known.count_query(sequence, start)
        return []

    def _hits(self, sequence: Sequence, num_tokens: int) -> list[KVCacheBlock] | None:
        """The blocks of the first ``num_tokens``, findable now; None if some no longer are."""
        count, rest = divmod(num_tokens, self.block_size)
        assert rest == 0, f"sequence {sequence.seq_id} begins inside a block, at {num_tokens}"
        match = self._match
        certain = match is not None and match.num_evicted == self.pool.num_evicted
        if match is None or match.seq_id != sequence.seq_id or not certain:
            match = self._look_up(sequence, count)
        return match.blocks[:count] if len(match.blocks) >= count else None

    def _look_up(self, sequence: Sequence, limit: int) -> _Match:
        found = self.pool.index.lookup(self._known.prefix(sequence), limit)
        blocks = [self.pool.blocks[block_id] for block_id in found]
        return _Match(sequence.seq_id, self.pool.num_evicted, blocks)

    def _take(self, sequence: Sequence, count: int) -> list[KVCacheBlock] | None:
        """New blocks, and whose content went for them."""
        before = self.pool.num_evicted
        taken = self.pool.allocate(count)
        self._known.count_evictions(sequence, self.pool.num_evicted - before)
        return taken

    def _append(
        self, sequence: Sequence, table: list[KVCacheBlock], blocks: list[KVCacheBlock]
    ) -> None:
        table += blocks
        self._log.add("alloc", _ids(blocks), sequence.seq_id)

    def _own_copy(
        self, sequence: Sequence, table: list[KVCacheBlock], index: int, fresh: KVCacheBlock
    ) -> BlockCopy:
        """Copy on write: replace a shared block in one table by a fresh one."""
        old = table[index]
        table[index] = fresh
        self.pool.free([old])
        self._log.add_copy(fresh.block_id, sequence.seq_id, source=old.block_id)
        return BlockCopy(old.block_id, fresh.block_id)


def _ids(blocks: list[KVCacheBlock]) -> list[int]:
    return [block.block_id for block in blocks]


def _must_compute(sequence: Sequence) -> int:
    """Tokens at the end that a hit must leave: the last, so that there is something to sample from.

    The first of several samples computes its prompt without the last token, which is left to each
    sample; of what remains it must compute one token too, or it would have nothing to do.
    """
    is_parent = sequence.sampling_params.n > 1 and sequence.index == 0
    return 2 if is_parent and sequence.num_output_tokens == 0 else 1
