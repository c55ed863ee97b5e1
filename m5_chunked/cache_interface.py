"""What the scheduler asks of whoever holds the KV blocks.

M3's manager satisfies :class:`CacheManager` as it is. A manager that shares prefixes (M6) also
satisfies :class:`PrefixCache` and is handed in a second time under that name, so that the scheduler
stays the same. The calls for one admission always come in this order::

    match_prefix(s)             finds hits and remembers them; attaches nothing
    hit_ids(s)                  which blocks those are: they will not be free any more
    free(victim) …              only under the priority policy; evicts nothing
    allocate_slots(s, n)        attaches the hits, then takes new blocks (and may evict)
    publish(s, start + n)       its blocks may be found from now on

Between the first and the fourth nothing is allocated, so the hits cannot be evicted, and
``num_computed_tokens`` is set once from the answer of the first.
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Seq
from typing import Protocol

from common.request import Sequence
from common.step_record import BlockEvent
from m2_batching.plan import BlockCopy
from m3_paged.block_pool import KVCacheBlock


class Pool(Protocol):
    """The blocks, as far as a scheduler looks at them."""

    @property
    def blocks(self) -> Seq[KVCacheBlock]:
        """Every block, by id."""
        ...

    @property
    def num_free(self) -> int:
        """Blocks without an owner."""
        ...


class CacheManager(Protocol):
    """Block tables of sequences, over one pool."""

    block_size: int

    @property
    def pool(self) -> Pool:
        """The blocks."""
        ...

    def match_prefix(self, sequence: Sequence) -> int:
        """Leading tokens that need no computing, fewer than ``num_tokens``."""
        ...

    def allocate_slots(self, sequence: Sequence, num_new_tokens: int) -> list[BlockCopy] | None:
        """Room for the next tokens: the copies to make first, or None and nothing has changed."""
        ...

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Give ``child`` the parent's table."""
        ...

    def free(self, sequence: Sequence) -> None:
        """Take all blocks of a sequence back."""
        ...

    def block_ids(self, sequence: Sequence, since: int = 0) -> tuple[int, ...]:
        """The block table from entry ``since`` on."""
        ...

    def num_blocks(self, sequence: Sequence) -> int:
        """Length of the block table."""
        ...

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that ``num_tokens`` need."""
        ...

    def drain_events(self) -> tuple[BlockEvent, ...]:
        """What happened since the last call, for the trace."""
        ...


class PrefixCache(Protocol):
    """What a manager that shares prefixes adds."""

    def hit_ids(self, sequence: Sequence) -> Collection[int]:
        """Full blocks that the last ``match_prefix`` of a waiting sequence found, free or owned."""
        ...

    def publish(self, sequence: Sequence, num_tokens: int) -> None:
        """The first ``num_tokens`` will have K and V when this step has run: no victim any more.

        Called once for each scheduled sequence, when its place in the step is final.
        """
        ...
