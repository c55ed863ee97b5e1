"""The pool with a memory: a block that nobody owns may still hold a prefix worth finding.

Free blocks stand in two queues::

    blank:   [3] ⇄ [7]           hold nothing; the last one freed is taken first
    cached:  [5] ⇄ [2] ⇄ [1]     findable; the least recently used is taken first

    allocate takes from      blank's head, then cached's head: only that evicts
    a hit takes              from the middle of cached
    free puts                at blank's head, or at cached's tail

Read one behind the other they are vLLM's single free list (0.33.0, ``v1/core/block_pool.py``:
freed blocks without hash are prepended, those with one appended); two queues give the oldest
cached block in O(1) as well, which the cap on cached blocks needs. Eviction is lazy: content is
forgotten when its block is needed for something else, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from m3_paged.block_pool import DoubleFreeError, FreeBlockQueue, KVCacheBlock
from m6_prefix.block_hash import BlockHashes
from m6_prefix.prefix_index import PrefixIndex


class BlockPool:
    """All blocks of the KV tensor, and which of them are findable.

    Invariants, checked by :meth:`check`: free and used blocks add up to ``num_blocks``; a block is
    in one of the queues exactly when its ``ref_cnt`` is 0, and in ``cached`` exactly when the
    index has it too.

    Attributes:
        blocks: Every block, by id.
        num_blocks: How many there are.
        index: Finds blocks by content.
        max_cached_blocks: Findable blocks at most, as far as they are free; None for no limit.
        num_evicted: How often a block lost its content.
    """

    def __init__(
        self,
        num_blocks: int,
        index: PrefixIndex,
        *,
        max_cached_blocks: int | None = None,
        on_evict: Callable[[int], None] | None = None,
    ) -> None:
        """All blocks are free and blank, in the order of their ids.

        Args:
            num_blocks: At least 1.
            index: Empty.
            max_cached_blocks: See :meth:`trim`.
            on_evict: Called with the id of each block that loses its content.
        """
        assert num_blocks >= 1
        assert max_cached_blocks is None or max_cached_blocks >= 0
        assert len(index) == 0, "the index belongs to another pool"
        self.num_blocks, self.index = num_blocks, index
        self.max_cached_blocks, self.num_evicted = max_cached_blocks, 0
        self.blocks = [KVCacheBlock(i) for i in range(num_blocks)]
        self._blank, self._cached = FreeBlockQueue(self.blocks), FreeBlockQueue([])
        self._on_evict = on_evict

    @property
    def num_free(self) -> int:
        """How many blocks have no owner, findable ones included."""
        return self._blank.num_free + self._cached.num_free

    @property
    def free_ids(self) -> list[int]:
        """Ids of the free blocks in the order in which they will be taken (for tests and plots)."""
        return [block.block_id for queue in (self._blank, self._cached) for block in queue]

    def allocate(self, count: int) -> list[KVCacheBlock] | None:
        """Take ``count`` blocks, each with one owner: all of them, or none.

        Blocks whose content is findable go last, the least recently used first, and lose it.

        Returns:
            The blocks, or None where fewer are free.
        """
        if count > self.num_free:
            return None
        taken = [
            self._blank.popleft() if self._blank.num_free else self._evict() for _ in range(count)
        ]
        for block in taken:
            block.ref_cnt = 1
        return taken

    def share(self, block: KVCacheBlock) -> None:
        """Add an owner; a free block leaves its queue (vLLM's ``touch``)."""
        if block.ref_cnt == 0:
            queue = self._cached if block.block_id in self.index else self._blank
            queue.remove(block)
        block.ref_cnt += 1

    def free(self, blocks: Iterable[KVCacheBlock]) -> None:
        """Take one owner from each block, in the order given.

        A block without owners is taken next if it is blank, and last if it is findable. Give a
        sequence's blocks in reverse: its tail is evicted before its head, without which the tail
        could not be found. Nothing is evicted here.

        Raises:
            DoubleFreeError: A block has no owner.
        """
        for block in blocks:
            if block.ref_cnt == 0:
                raise DoubleFreeError(f"block {block.block_id} is free already")
            block.ref_cnt -= 1
            if block.ref_cnt == 0:
                if block.block_id in self.index:
                    self._cached.append(block)
                else:
                    self._blank.appendleft(block)

    def cache(
        self, block: KVCacheBlock, parent: KVCacheBlock | None, prefix: BlockHashes, index: int
    ) -> None:
        """Make an owned block findable.

        Args:
            block: Holds the full block ``index`` of ``prefix``.
            parent: The block before it in its sequence, findable; None for a first block.
            prefix: The sequence's full blocks.
            index: Which of them.
        """
        assert block.ref_cnt > 0, f"{block} has no owner to fill it"
        self.index.insert(block.block_id, parent.block_id if parent else None, prefix, index)

    def trim(self) -> None:
        """Make the least recently used free blocks blank while more than the cap are findable.

        Blocks in use stay findable even beyond the cap. O(1) per block.
        """
        if self.max_cached_blocks is None:
            return
        while len(self.index) > self.max_cached_blocks and self._cached.num_free:
            self._blank.append(self._evict())  # behind the blank ones: its place does not change

    def reset(self) -> bool:
        """Forget all content, if no findable block is in use.

        Returns:
            Whether it was done.
        """
        if len(self.index) > self._cached.num_free:
            return False
        while self._cached.num_free:
            self._blank.append(self._evict())
        return True

    def check(self) -> None:
        """Assert the invariants; O(num_blocks), for tests and idle moments."""
        blank = {block.block_id for block in self._blank}
        cached = {block.block_id for block in self._cached}
        assert (len(blank), len(cached)) == (self._blank.num_free, self._cached.num_free)
        free = {block.block_id for block in self.blocks if block.ref_cnt == 0}
        findable = {block.block_id for block in self.blocks if block.block_id in self.index}
        assert len(findable) == len(self.index)
        assert blank == free - findable
        assert cached == free & findable
        assert all(block.ref_cnt >= 0 for block in self.blocks)

    def _evict(self) -> KVCacheBlock:
        """The least recently used findable block, no longer findable."""
        block = self._cached.popleft()
        self.index.remove(block.block_id)
        self.num_evicted += 1
        if self._on_evict is not None:
            self._on_evict(block.block_id)
        return block
