"""Block tables: which blocks hold the K and V of each sequence. Counts only, no tensor.

    sequence 0   tokens  0…15 | 16…31 | 32…40          table  [7, 2, 9]
                                        └ 9 of 16 places of block 9 are used

    token at position p:   block = table[p // block_size], place = p % block_size

What a sequence wastes is the rest of its last block, at most ``block_size − 1`` places, where M2
wasted the rest of ``max_model_len``.
"""

from __future__ import annotations

from common.block_log import BlockLog
from common.request import Sequence
from common.step_record import BlockEvent
from m2_batching.plan import BlockCopy
from m3_paged.block_pool import BlockPool, KVCacheBlock


class KVCacheManager:
    """Gives blocks to sequences, all or nothing, and takes them back.

    Attributes:
        block_size: Tokens per block.
        pool: The blocks.
    """

    def __init__(self, num_blocks: int, block_size: int, *, keep_events: bool = True) -> None:
        """Start with all blocks free.

        Args:
            num_blocks: Blocks of the KV tensor.
            block_size: Tokens per block.
            keep_events: Whether :meth:`drain_events` is asked for them.
        """
        self.block_size, self.pool = block_size, BlockPool(num_blocks)
        self._tables: dict[int, list[KVCacheBlock]] = {}
        self._log = BlockLog(is_kept=keep_events)

    def match_prefix(self, sequence: Sequence) -> int:
        """Leading tokens whose K and V are known already: none before M6."""
        return 0

    def allocate_slots(self, sequence: Sequence, num_new_tokens: int) -> list[BlockCopy] | None:
        """Make room for the next ``num_new_tokens`` of a sequence, or change nothing.

        ::

            | num_computed_tokens  | num_new_tokens |
            | block | block | block … | block | block |
            |    in the table     ~~~ |  to allocate  |
                                   └ written now: copied first, where another table shares it

        Args:
            sequence: ``num_computed_tokens`` is its count before the step.
            num_new_tokens: Tokens to compute, at least 1.

        Returns:
            Copies that must be made before the step, or None if too few blocks are free.
        """
        table = self._tables.get(sequence.seq_id, [])
        start = sequence.num_computed_tokens
        first_written = start // self.block_size
        shared = [i for i in range(first_written, len(table)) if table[i].ref_cnt > 1]
        missing = self.blocks_for(start + num_new_tokens) - len(table)
        if missing <= 0 and not shared:
            return []  # 15 of 16 decode steps: the last block has room
        taken = self.pool.allocate(len(shared) + max(missing, 0))
        if taken is None:
            return None
        self._tables[sequence.seq_id] = table
        copies = [self._own_copy(sequence, table, i, taken.pop(0)) for i in shared]
        table += taken
        self._log.add("alloc", [block.block_id for block in taken], sequence.seq_id)
        return copies

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Give ``child`` the parent's table: same blocks, one more owner each."""
        assert child.seq_id not in self._tables, f"sequence {child.seq_id} has a table"
        table = self._tables[parent.seq_id]
        for block in table:
            self.pool.share(block)
        self._log.add("share", self.block_ids(parent), child.seq_id)
        self._tables[child.seq_id] = list(table)

    def free(self, sequence: Sequence) -> None:
        """Take all blocks of a sequence back, last one first; without any, do nothing."""
        self._log.add("free", reversed(self.block_ids(sequence)), sequence.seq_id)
        self.pool.free(reversed(self._tables.pop(sequence.seq_id, [])))

    def block_ids(self, sequence: Sequence, since: int = 0) -> tuple[int, ...]:
        """The sequence's block table from entry ``since`` on."""
        return tuple(block.block_id for block in self._tables.get(sequence.seq_id, ())[since:])

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
        """Assert that reference counts are exactly the tables' entries; O(all tables)."""
        self.pool.check()
        counts = [0] * self.pool.num_blocks
        for table in self._tables.values():
            for block in table:
                counts[block.block_id] += 1
        assert counts == [block.ref_cnt for block in self.pool.blocks]

    def _own_copy(
        self, sequence: Sequence, table: list[KVCacheBlock], index: int, fresh: KVCacheBlock
    ) -> BlockCopy:
        """Copy on write: replace a shared block in one table by a fresh one."""
        old = table[index]
        table[index] = fresh
        self.pool.free([old])
        self._log.add_copy(fresh.block_id, sequence.seq_id, source=old.block_id)
        return BlockCopy(old.block_id, fresh.block_id)
