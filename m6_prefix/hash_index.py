"""The flat index: one dictionary from hash to content, as in vLLM.

::

    hash      entry (parent, tokens)      blocks
    9f3a… ──→ (none, "You are a …")    →  {7}
    02c1… ──→ (9f3a, "Translate …")    →  {2, 11}     computed twice, kept twice
    e07b… ──→ (9f3a, "Summarise …")    →  {4}

The chain is in the hashes, so a lookup is one dictionary access per block and nothing has to be
kept in shape. vLLM trusts SHA-256 here. We compare what the hash stands for as well: the tokens,
and that the entry's parent is the very entry found for the block before. By induction the whole
prefix is equal, whatever the hash is.

Source: vLLM 0.33.0, ``v1/core/block_pool.py``, ``BlockHashToBlockMap``.
"""

from __future__ import annotations

from m6_prefix.block_hash import BlockHashes


class _Entry:
    """One content, and the blocks that hold it, in order of insertion (a dict as ordered set)."""

    __slots__ = ("block_hash", "blocks", "extra_keys", "packed_ids", "parent")

    def __init__(self, parent: _Entry | None, prefix: BlockHashes, index: int) -> None:
        self.block_hash = prefix.hash(index)
        self.parent = parent
        self.packed_ids = prefix.packed[index]
        self.extra_keys = prefix.extra_keys
        self.blocks: dict[int, None] = {}


class HashIndex:
    """A :class:`m6_prefix.prefix_index.PrefixIndex` over a hash map."""

    def __init__(self) -> None:
        """Start empty."""
        self._entries: dict[bytes, list[_Entry]] = {}  # more than one only where hashes collide
        self._entry_of: dict[int, _Entry] = {}

    def lookup(self, prefix: BlockHashes, limit: int) -> list[int]:
        """Walk the hashes until the first that is unknown."""
        found: list[int] = []
        entry: _Entry | None = None
        for index in range(min(limit, len(prefix))):
            entry = self._find(entry, prefix, index)
            if entry is None:
                break
            found.append(next(iter(entry.blocks)))
        return found

    def insert(self, block_id: int, parent_id: int | None, prefix: BlockHashes, index: int) -> None:
        """Add a block to its content's entry."""
        assert block_id not in self._entry_of, f"block {block_id} is in the index"
        parent = None if parent_id is None else self._entry_of[parent_id]
        entry = self._find(parent, prefix, index)
        if entry is None:
            entry = _Entry(parent, prefix, index)
            self._entries.setdefault(entry.block_hash, []).append(entry)
        entry.blocks[block_id] = None
        self._entry_of[block_id] = entry

    def remove(self, block_id: int) -> None:
        """Take a block from its entry; the last one takes the entry along."""
        entry = self._entry_of.pop(block_id)
        del entry.blocks[block_id]
        if not entry.blocks:
            same_hash = self._entries[entry.block_hash]
            same_hash.remove(entry)
            if not same_hash:
                del self._entries[entry.block_hash]

    def __contains__(self, block_id: int) -> bool:
        return block_id in self._entry_of

    def __len__(self) -> int:
        return len(self._entry_of)

    def _find(self, parent: _Entry | None, prefix: BlockHashes, index: int) -> _Entry | None:
        for entry in self._entries.get(prefix.hash(index), ()):
            if (
                entry.parent is parent
                and entry.packed_ids == prefix.packed[index]
                and entry.extra_keys == prefix.extra_keys
            ):
                return entry
        return None
