"""Who owns which KV block, rebuilt from block events.

This is a second, independent account of the block pool: it only believes events, so a figure
drawn from it, or a check made on it, would show an engine's double allocation or leak.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from common.step_record import BlockEvent


class BlockStateError(ValueError):
    """An event that contradicts the state before it."""


@dataclass
class BlockState:
    """Ownership and content of every block after some events.

    Attributes:
        num_blocks: Blocks in the pool, or None if the trace does not say.
        owners: Owning ``seq_id`` by block; a free block has no entry.
        tables: Block ids by ``seq_id``, in the order of the sequence's tokens.
        cached: Blocks whose content the prefix index holds, owned or free.
    """

    num_blocks: int | None = None
    owners: dict[int, list[int]] = field(default_factory=dict)
    tables: dict[int, list[int]] = field(default_factory=dict)
    cached: set[int] = field(default_factory=set)

    def ref_count(self, block: int) -> int:
        """Sequences that own ``block``."""
        return len(self.owners.get(block, ()))

    def apply(self, event: BlockEvent) -> None:
        """Change the state by one event.

        Raises:
            BlockStateError: The event contradicts the state.
        """
        self._in_pool(event.block)
        if event.source is not None:
            self._in_pool(event.source)
        if (event.source is not None) != (event.kind == "copy"):
            raise BlockStateError(f"{event.kind} of block {event.block}: source {event.source}")
        if event.kind == "evict":
            self._evict(event.block)
            return
        if event.seq_id is None:
            raise BlockStateError(f"{event.kind} of block {event.block} names no owner")
        match event.kind:
            case "alloc":
                self._take_free(event.block)
                self._join(event.block, event.seq_id)
            case "share":
                if not self.ref_count(event.block):
                    raise BlockStateError(f"block {event.block} is shared but has no owner")
                self._join(event.block, event.seq_id)
            case "hit":
                if event.block not in self.cached:
                    raise BlockStateError(f"block {event.block} is hit but not cached")
                self._join(event.block, event.seq_id)
            case "copy":
                assert event.source is not None
                self._copy(event.block, event.source, event.seq_id)
            case "free":
                self._leave(event.block, event.seq_id)
            case "cache":
                if event.seq_id not in self.owners.get(event.block, ()):
                    raise BlockStateError(
                        f"block {event.block} is cached by {event.seq_id}, which does not own it"
                    )
                self.cached.add(event.block)

    def _in_pool(self, block: int) -> None:
        if block < 0 or (self.num_blocks is not None and block >= self.num_blocks):
            raise BlockStateError(f"block {block} is outside the pool of {self.num_blocks}")

    def _take_free(self, block: int) -> None:
        if self.ref_count(block):
            raise BlockStateError(f"block {block} is taken but belongs to {self.owners[block]}")
        if block in self.cached:
            raise BlockStateError(f"block {block} is taken while cached, without an evict")

    def _join(self, block: int, seq_id: int) -> None:
        owners = self.owners.setdefault(block, [])
        if seq_id in owners:
            raise BlockStateError(f"sequence {seq_id} already owns block {block}")
        owners.append(seq_id)
        self.tables.setdefault(seq_id, []).append(block)

    def _leave(self, block: int, seq_id: int) -> None:
        if seq_id not in self.owners.get(block, ()):
            raise BlockStateError(f"sequence {seq_id} frees block {block}, which it does not own")
        self.owners[block].remove(seq_id)
        self.tables[seq_id].remove(block)
        if not self.owners[block]:
            del self.owners[block]
        if not self.tables[seq_id]:
            del self.tables[seq_id]

    def _copy(self, block: int, source: int, seq_id: int) -> None:
        if not self.ref_count(source) and source not in self.cached:
            raise BlockStateError(f"block {block} copies block {source}, which holds nothing")
        self._take_free(block)
        table = self.tables.get(seq_id, [])
        if source not in table:
            self._join(block, seq_id)
            return
        position = table.index(source)
        self._join(block, seq_id)
        table.pop()
        table[position] = block
        self.owners[source].remove(seq_id)
        if not self.owners[source]:
            del self.owners[source]

    def _evict(self, block: int) -> None:
        if self.ref_count(block) or block not in self.cached:
            state = "owned" if self.ref_count(block) else "not cached"
            raise BlockStateError(f"block {block} is evicted but {state}")
        self.cached.remove(block)
