"""The pool of KV blocks: who owns each, and which are free, in an exactly defined order.

The free list is a doubly linked list whose links live *inside* the blocks. A deque would serve
``allocate`` and ``free`` as well; but M6 takes a block out of the middle when a prefix hit finds
it free, and only links in the block itself make that O(1) without another object. Sentinels at
both ends remove the special cases::

    head ⇄ [3] ⇄ [7] ⇄ [1] ⇄ tail         allocate takes at the head

As in vLLM 0.33.0, ``v1/core/block_pool.py`` and ``FreeKVCacheBlockQueue``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator


class DoubleFreeError(RuntimeError):
    """A block was freed more often than it was taken: two owners would write into it."""


class KVCacheBlock:
    """One block: its id, its owners, and its place in the free list.

    Attributes:
        block_id: Index into the KV tensor.
        ref_cnt: How many block tables name it; 0 means free.
        prev_free: Neighbour towards the head, while free.
        next_free: Neighbour towards the tail, while free.
    """

    __slots__ = ("block_id", "next_free", "prev_free", "ref_cnt")

    def __init__(self, block_id: int) -> None:
        self.block_id = block_id
        self.ref_cnt = 0
        self.prev_free: KVCacheBlock | None = None
        self.next_free: KVCacheBlock | None = None

    def __repr__(self) -> str:
        return f"KVCacheBlock({self.block_id}, ref_cnt={self.ref_cnt})"


class FreeBlockQueue:
    """The free blocks in order. Every operation costs O(1).

    Attributes:
        num_free: How many there are.
    """

    def __init__(self, blocks: Iterable[KVCacheBlock]) -> None:
        """Link ``blocks`` in the order given."""
        self._head, self._tail = KVCacheBlock(-1), KVCacheBlock(-1)
        self._head.next_free, self._tail.prev_free = self._tail, self._head
        self.num_free = 0
        for block in blocks:
            self.append(block)

    def popleft(self) -> KVCacheBlock:
        """Take the first block; there must be one."""
        block = self._head.next_free
        assert block is not None
        assert block is not self._tail, "no free block"
        self.remove(block)
        return block

    def remove(self, block: KVCacheBlock) -> None:
        """Take ``block`` out, wherever it is."""
        before, after = block.prev_free, block.next_free
        assert before is not None, f"{block} is not in the free list"
        assert after is not None
        before.next_free, after.prev_free = after, before
        block.prev_free = block.next_free = None
        self.num_free -= 1

    def append(self, block: KVCacheBlock) -> None:
        """Put ``block`` last: it will be reused last."""
        last = self._tail.prev_free
        assert last is not None
        self._insert(last, block, self._tail)

    def appendleft(self, block: KVCacheBlock) -> None:
        """Put ``block`` first: it will be reused next, while its memory is warm."""
        first = self._head.next_free
        assert first is not None
        self._insert(self._head, block, first)

    def __iter__(self) -> Iterator[KVCacheBlock]:
        """The free blocks from the head."""
        block = self._head.next_free
        while block is not None and block is not self._tail:
            yield block
            block = block.next_free

    def _insert(self, before: KVCacheBlock, block: KVCacheBlock, after: KVCacheBlock) -> None:
        assert block.next_free is None, f"{block} is in the free list already"
        before.next_free = after.prev_free = block
        block.prev_free, block.next_free = before, after
        self.num_free += 1


class BlockPool:
    """All blocks of the KV tensor.

    Invariants, checked by :meth:`check`: free and used blocks add up to ``num_blocks``; a block is
    in the free list exactly when its ``ref_cnt`` is 0.

    Attributes:
        blocks: Every block, by id.
        num_blocks: How many there are.
    """

    def __init__(self, num_blocks: int) -> None:
        """All blocks are free, in the order of their ids.

        Args:
            num_blocks: At least 1.
        """
        assert num_blocks >= 1
        self.num_blocks = num_blocks
        self.blocks = [KVCacheBlock(i) for i in range(num_blocks)]
        self._free = FreeBlockQueue(self.blocks)

    @property
    def num_free(self) -> int:
        """How many blocks are free."""
        return self._free.num_free

    @property
    def free_ids(self) -> list[int]:
        """Ids of the free blocks in the order in which they will be taken (for tests and plots)."""
        return [block.block_id for block in self._free]

    def allocate(self, count: int) -> list[KVCacheBlock] | None:
        """Take ``count`` blocks from the head, each with one owner: all of them, or none.

        Returns:
            The blocks, or None where fewer are free.
        """
        if count > self.num_free:
            return None
        taken = [self._free.popleft() for _ in range(count)]
        for block in taken:
            block.ref_cnt = 1
        return taken

    def share(self, block: KVCacheBlock) -> None:
        """Add an owner; a free block leaves the free list."""
        if block.ref_cnt == 0:
            self._free.remove(block)
        block.ref_cnt += 1

    def free(self, blocks: Iterable[KVCacheBlock]) -> None:
        """Take one owner from each block, in the order given.

        A block without owners joins the head of the free list, so the last one given is the next
        one taken. Give a sequence's blocks in reverse, and its first block is on top.

        Raises:
            DoubleFreeError: A block has no owner.
        """
        for block in blocks:
            if block.ref_cnt == 0:
                raise DoubleFreeError(f"block {block.block_id} is free already")
            block.ref_cnt -= 1
            if block.ref_cnt == 0:
                self._free.appendleft(block)

    def check(self) -> None:
        """Assert the invariants; O(num_blocks), for tests and idle moments."""
        free = list(self._free)
        assert len(free) == self.num_free
        assert {b.block_id for b in free} == {b.block_id for b in self.blocks if b.ref_cnt == 0}
        assert all(block.ref_cnt >= 0 for block in self.blocks)
