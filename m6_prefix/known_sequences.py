"""What is remembered of a sequence for as long as it lives, with blocks or without.

A preempted sequence has no blocks, but its hashes still hold; a request that waits has been cut
into blocks once, however often it is matched. Entries go with their sequences (weak keys), so an
abort in the queue leaves nothing behind.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from common.request import Sequence
from m6_prefix.block_hash import BlockHasher, BlockHashes, ExtraKeys
from m6_prefix.prefix_stats import PrefixCounts


@dataclass
class _Known:
    prefix: BlockHashes
    counts: PrefixCounts = field(default_factory=PrefixCounts)
    had_blocks: bool = False


class KnownSequences:
    """Block hashes and counts by sequence.

    Attributes:
        totals: Queries and hits over all sequences, those that are gone included.
    """

    def __init__(self, block_size: int, hasher: BlockHasher, extra_keys: ExtraKeys) -> None:
        """Know nobody.

        Args:
            block_size: Tokens per block.
            hasher: Names blocks.
            extra_keys: What besides its tokens a sequence's prefix must share.
        """
        self.totals = PrefixCounts()
        self._block_size, self._hasher, self._extra_keys = block_size, hasher, extra_keys
        self._known: WeakKeyDictionary[Sequence, _Known] = WeakKeyDictionary()

    def prefix(self, sequence: Sequence) -> BlockHashes:
        """All full blocks of a sequence's known ids."""
        prefix = self._of(sequence).prefix
        prefix.extend(sequence.token_ids)
        return prefix

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """A child has its parent's tokens, so it has its hashes; it never queried."""
        assert child.token_ids == parent.token_ids, "a child begins with its parent's tokens"
        prefix = self._of(parent).prefix
        self._known[child] = _Known(prefix.fork(len(prefix)), had_blocks=True)

    def count_query(self, sequence: Sequence, hit: int) -> None:
        """A sequence without blocks has got some, ``hit`` tokens of it without computing."""
        known = self._of(sequence)
        for counts in (known.counts, self.totals):
            counts.add_query(sequence.num_tokens, hit, resumed=known.had_blocks)
        known.had_blocks = True

    def count_evictions(self, sequence: Sequence, num_blocks: int) -> None:
        """Blocks lost their content to a sequence."""
        if num_blocks:
            self._of(sequence).counts.evicted_blocks += num_blocks

    def counts(self, sequence: Sequence) -> PrefixCounts:
        """A copy of a sequence's counts; zeros for a stranger."""
        known = self._known.get(sequence)
        return PrefixCounts() if known is None else dataclasses.replace(known.counts)

    def _of(self, sequence: Sequence) -> _Known:
        known = self._known.get(sequence)
        if known is None:
            keys = self._extra_keys(sequence)
            known = _Known(BlockHashes(self._block_size, keys, self._hasher))
            self._known[sequence] = known
        return known
