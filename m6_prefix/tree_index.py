"""The tree index: prefixes as paths, one node per full block, children keyed by their tokens.

::

    root ── (salt) ── "You are a …" {7} ──┬── "Translate …" {2, 11}
                                          └── "Summarise …" {4}

A lookup walks down while a child has the next block's tokens. The path is the prefix, so no hash
chain is needed; Python's dictionary hashes the packed ids for its own use and compares them itself.
The tree shows what is shared (the demo draws it), and where one evicts: only leaves.

SGLang's radix tree (Zheng et al. 2023, arXiv 2312.07104, section 3) compresses paths and splits
nodes at any token. Full blocks make both needless, and hits equal those of the flat index.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from m6_prefix.block_hash import BlockHashes, unpack_ids

_Key = bytes | tuple[str, ...]  # a block's packed ids; on the first level a prefix's extra keys


class CachedPrefix(NamedTuple):
    """One node, for drawing.

    Attributes:
        extra_keys: Of the whole path.
        depth: Blocks before this one.
        token_ids: Of this block.
        blocks: Ids of the blocks that hold it.
    """

    extra_keys: tuple[str, ...]
    depth: int
    token_ids: tuple[int, ...]
    blocks: tuple[int, ...]


class _Node:
    """One content, the blocks that hold it in order of insertion, and what continues it."""

    __slots__ = ("blocks", "children", "key", "parent")

    def __init__(self, parent: _Node | None, key: _Key) -> None:
        self.parent, self.key = parent, key
        self.children: dict[_Key, _Node] = {}
        self.blocks: dict[int, None] = {}

    def child(self, key: _Key) -> _Node:
        """The child of that key, made where there is none."""
        node = self.children.get(key)
        if node is None:
            node = self.children[key] = _Node(self, key)
        return node


class TreeIndex:
    """A :class:`m6_prefix.prefix_index.PrefixIndex` over a tree."""

    def __init__(self) -> None:
        """Start with the root alone."""
        self._root = _Node(None, ())
        self._node_of: dict[int, _Node] = {}

    def lookup(self, prefix: BlockHashes, limit: int) -> list[int]:
        """Walk down until the first block that is not there."""
        found: list[int] = []
        node = self._root.children.get(prefix.extra_keys)
        for index in range(min(limit, len(prefix))):
            node = node.children.get(prefix.packed[index]) if node is not None else None
            if node is None:
                break
            found.append(next(iter(node.blocks)))
        return found

    def insert(self, block_id: int, parent_id: int | None, prefix: BlockHashes, index: int) -> None:
        """Add a block to its node, below its parent's."""
        assert block_id not in self._node_of, f"block {block_id} is in the index"
        if parent_id is None:
            parent = self._root.child(prefix.extra_keys)
        else:
            parent = self._node_of[parent_id]
        node = parent.child(prefix.packed[index])
        node.blocks[block_id] = None
        self._node_of[block_id] = node

    def remove(self, block_id: int) -> None:
        """Take a block from its node, and cut off what holds nothing any more."""
        node = self._node_of.pop(block_id)
        del node.blocks[block_id]
        if node.blocks:
            return
        assert not node.children, f"block {block_id} goes before the prefixes that continue it"
        above = _cut(node)
        if above.parent is self._root and not above.children:
            _cut(above)  # the last prefix of its extra keys

    def __contains__(self, block_id: int) -> bool:
        return block_id in self._node_of

    def __len__(self) -> int:
        return len(self._node_of)

    def __iter__(self) -> Iterator[CachedPrefix]:
        """Every node, parents before children, in order of insertion."""
        for keys, top in self._root.children.items():
            assert isinstance(keys, tuple)
            waiting = [(0, node) for node in reversed(top.children.values())]
            while waiting:
                depth, node = waiting.pop()
                assert isinstance(node.key, bytes)
                yield CachedPrefix(keys, depth, unpack_ids(node.key), tuple(node.blocks))
                waiting += [(depth + 1, child) for child in reversed(node.children.values())]


def _cut(node: _Node) -> _Node:
    """Take a node off its parent, which is returned."""
    assert node.parent is not None
    del node.parent.children[node.key]
    return node.parent
