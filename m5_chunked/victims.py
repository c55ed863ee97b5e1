"""Who has to go so that a more important sequence can begin: enough of them, or nobody."""

from __future__ import annotations

from collections.abc import Callable, Collection
from collections.abc import Sequence as Seq

from common.request import Sequence
from m5_chunked.cache_interface import CacheManager


def find_victims(
    sequence: Sequence,
    num_new_tokens: int,
    outranked: Seq[Sequence],
    manager: CacheManager,
    *,
    hits: Collection[int],
    seats: int,
    seats_of: Callable[[Sequence], int],
) -> list[Sequence] | None:
    """Choose from the back of ``outranked`` until there are seats and blocks enough.

    A block is found when the last of its owners goes; one that two victims share counts once, one
    that somebody else keeps does not count, nor does one that ``sequence`` will own itself.

    Args:
        sequence: It waits; ``num_computed_tokens`` is where it would begin.
        num_new_tokens: Tokens that blocks are wanted for.
        outranked: Running sequences that are less important than ``sequence`` and not served yet,
            the most important first.
        manager: Knows everybody's blocks.
        hits: Blocks that ``sequence`` begins with, free or owned.
        seats: Seats that are lacking; none if not positive.
        seats_of: Seats that one of ``outranked`` would give back.

    Returns:
        The victims in order, possibly none, or None where even all would not be enough.
    """
    pool = manager.pool
    free = pool.num_free - sum(pool.blocks[block].ref_cnt == 0 for block in hits)
    blocks = manager.blocks_for(sequence.num_computed_tokens + num_new_tokens) - len(hits) - free
    victims: list[Sequence] = []
    leaving: dict[int, int] = {}  # owners of a block that are among the victims
    for victim in reversed(outranked):
        if seats <= 0 and blocks <= 0:
            break
        victims.append(victim)
        seats -= seats_of(victim)
        for block in manager.block_ids(victim):
            leaving[block] = leaving.get(block, 0) + 1
            is_found = leaving[block] == pool.blocks[block].ref_cnt
            blocks -= is_found and block not in hits
    return victims if seats <= 0 and blocks <= 0 else None
