"""What the block pool asks of an index: which block holds the K and V of this prefix?

An index maps *content* to block ids and nothing else. Reference counts, the free list and the
order of eviction stay in :class:`m6_prefix.block_pool.BlockPool`. So two indexes that find the
same blocks give the same trace, and they can be compared by their cost alone.

Promises of the pool, on which an index may rely:

* a block is inserted after the block before it in its sequence, which is still inserted;
* content leaves from the end: no block is the last of its content while a longer prefix is
  inserted (the pool evicts the least recently used first, and a sequence gives its blocks up from
  its tail, so every child goes before some copy of its parent).
"""

from __future__ import annotations

from typing import Protocol

from m6_prefix.block_hash import BlockHashes


class PrefixIndex(Protocol):
    """Cached full blocks by the prefix they complete.

    The same content may stand in several blocks: two sequences that computed it at the same time
    both keep theirs, because block tables only grow at their ends.
    """

    def lookup(self, prefix: BlockHashes, limit: int) -> list[int]:
        """Blocks that hold the longest cached prefix, one per block, from the first on.

        Hashes alone never decide: every block found was compared by its tokens and its parent.
        Where content stands in several blocks, the one inserted first.

        Args:
            prefix: The full blocks of a sequence.
            limit: Blocks at most.
        """
        ...

    def insert(self, block_id: int, parent_id: int | None, prefix: BlockHashes, index: int) -> None:
        """Make a block findable.

        Args:
            block_id: Not inserted yet.
            parent_id: The block before it in its sequence, inserted; None for a first block.
            prefix: The sequence's full blocks.
            index: Which of them ``block_id`` holds.
        """
        ...

    def remove(self, block_id: int) -> None:
        """Forget an inserted block: its content is about to be overwritten."""
        ...

    def __contains__(self, block_id: int) -> bool:
        """Whether the block is inserted."""
        ...

    def __len__(self) -> int:
        """Blocks inserted."""
        ...
