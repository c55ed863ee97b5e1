"""What a full block is called: a hash of its tokens and of everything before them.

::

    tokens      0 … 15          16 … 31          32 … 40
    block       [  0  ] ──────→ [  1  ] ──────→  not full: no name yet
    hash        H(salt, ids) ─→ H(parent, ids)

K and V at a position depend on all tokens up to it, so a block's own tokens do not identify its
content. A chain does: two blocks with the same hash have the same tokens *and* the same prefix.
Only full blocks have a name, because the content of others still changes.

Source: vLLM 0.33.0, ``v1/core/kv_cache_utils.py``, ``hash_block_tokens``.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable

from common.request import Sequence

BlockHasher = Callable[[bytes, tuple[int, ...], tuple[str, ...]], bytes]
"""From the parent's hash (empty for the first block), a block's ids and its extra keys to a hash.

Only first blocks have extra keys: the blocks behind them inherit the difference."""

ExtraKeys = Callable[[Sequence], tuple[str, ...]]
"""What besides its tokens a sequence's K and V depend on, or must not be shared across."""


def encode_block(parent: bytes, token_ids: tuple[int, ...], extra_keys: tuple[str, ...]) -> bytes:
    """One byte string for each triple, the same in every process and on every machine.

    ::

        | ids: u32 | keys: u32 | id: i32 … | (length: u32, UTF-8) … | parent |

    Both counts come first and the parent takes the rest, so no two triples have the same string.

    Args:
        parent: Hash of the block before; empty for a first block.
        token_ids: The block's ids, each in [0, 2**31).
        extra_keys: Empty but for first blocks.
    """
    head = struct.pack(f"<2I{len(token_ids)}i", len(token_ids), len(extra_keys), *token_ids)
    if not extra_keys:
        return head + parent
    keys = [key.encode("utf-8", "surrogatepass") for key in extra_keys]
    return head + b"".join(struct.pack("<I", len(key)) + key for key in keys) + parent


def blake2b_hash(parent: bytes, token_ids: tuple[int, ...], extra_keys: tuple[str, ...]) -> bytes:
    """BLAKE2b with 256 bits: cryptographic, and a block of 16 tokens is one round of it."""
    data = encode_block(parent, token_ids, extra_keys)
    return hashlib.blake2b(data, digest_size=32).digest()


def sha256_hash(parent: bytes, token_ids: tuple[int, ...], extra_keys: tuple[str, ...]) -> bytes:
    """SHA-256, vLLM's default."""
    return hashlib.sha256(encode_block(parent, token_ids, extra_keys)).digest()


def salt_keys(sequence: Sequence) -> tuple[str, ...]:
    """The request's ``cache_salt``, where it has one."""
    salt = sequence.request.cache_salt
    return () if salt is None else (salt,)


class BlockHashes:
    """The full blocks of one sequence: their tokens, and their hashes when somebody asks.

    It lives as long as its sequence, preemptions included, and only grows: however often a prompt
    is looked up, each of its tokens is hashed at most once. The tree index never asks for a hash,
    and then none is made.

    Attributes:
        block_size: Tokens per block.
        extra_keys: What besides the tokens tells prefixes apart.
    """

    def __init__(
        self,
        block_size: int,
        extra_keys: tuple[str, ...] = (),
        hasher: BlockHasher = blake2b_hash,
    ) -> None:
        """Start without a block.

        Args:
            block_size: Tokens per block, at least 1.
            extra_keys: Hashed into the first block.
            hasher: Makes the hashes. A weak one costs time, never a wrong hit.
        """
        self.block_size, self.extra_keys = block_size, extra_keys
        self._hasher = hasher
        self._tokens: list[tuple[int, ...]] = []
        self._hashes: list[bytes] = []

    def __len__(self) -> int:
        """Full blocks so far."""
        return len(self._tokens)

    def extend(self, token_ids: list[int]) -> None:
        """Take the blocks that have filled up since the last call.

        Args:
            token_ids: All ids of the sequence; those of earlier calls unchanged.
        """
        size = self.block_size
        for begin in range(len(self._tokens) * size, len(token_ids) - size + 1, size):
            self._tokens.append(tuple(token_ids[begin : begin + size]))

    def tokens(self, index: int) -> tuple[int, ...]:
        """Ids of the full block ``index``."""
        return self._tokens[index]

    def hash(self, index: int) -> bytes:
        """Hash of the full block ``index`` and of all before it."""
        for i in range(len(self._hashes), index + 1):
            parent, keys = (self._hashes[i - 1], ()) if i else (b"", self.extra_keys)
            self._hashes.append(self._hasher(parent, self._tokens[i], keys))
        return self._hashes[index]

    def fork(self, num_blocks: int) -> BlockHashes:
        """The same first ``num_blocks`` blocks for another sequence, without hashing again."""
        other = BlockHashes(self.block_size, self.extra_keys, self._hasher)
        other._tokens = self._tokens[:num_blocks]
        other._hashes = self._hashes[:num_blocks]
        return other
