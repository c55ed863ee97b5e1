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
from collections.abc import Sequence as Seq

from common.request import Sequence

ID_BYTES = 4

BlockHasher = Callable[[bytes, bytes, tuple[str, ...]], bytes]
"""From the parent's hash (empty for the first block), a block's packed ids and its extra keys to a
hash.

Only first blocks have extra keys: the blocks behind them inherit the difference."""

ExtraKeys = Callable[[Sequence], tuple[str, ...]]
"""What besides its tokens a sequence's K and V depend on, or must not be shared across."""


def pack_ids(token_ids: Seq[int]) -> bytes:
    """Ids in the form in which blocks are hashed and compared: 4 bytes each, little endian.

    A prompt is packed in one call and cut then; a call or a tuple per block costs more than the
    hash.

    Args:
        token_ids: Each in [0, 2**31).
    """
    return struct.pack(f"<{len(token_ids)}i", *token_ids)


def unpack_ids(packed: bytes) -> tuple[int, ...]:
    """The ids again, for people and drawings."""
    return struct.unpack(f"<{len(packed) // ID_BYTES}i", packed)


def encode_block(parent: bytes, packed_ids: bytes, extra_keys: tuple[str, ...]) -> bytes:
    """One byte string for each triple, the same in every process and on every machine.

    ::

        | ids: u32 | keys: u32 | id: i32 … | (length: u32, UTF-8) … | parent |

    Both counts come first and the parent takes the rest, so no two triples have the same string.

    Args:
        parent: Hash of the block before; empty for a first block.
        packed_ids: The block's ids, see :func:`pack_ids`.
        extra_keys: Empty but for first blocks.
    """
    head = struct.pack("<2I", len(packed_ids) // ID_BYTES, len(extra_keys)) + packed_ids
    if not extra_keys:
        return head + parent
    keys = [key.encode("utf-8", "surrogatepass") for key in extra_keys]
    return head + b"".join(struct.pack("<I", len(key)) + key for key in keys) + parent


def blake2b_hash(parent: bytes, packed_ids: bytes, extra_keys: tuple[str, ...]) -> bytes:
    """BLAKE2b with 256 bits: cryptographic, and a block of 16 tokens is one round of it."""
    data = encode_block(parent, packed_ids, extra_keys)
    return hashlib.blake2b(data, digest_size=32).digest()


def sha256_hash(parent: bytes, packed_ids: bytes, extra_keys: tuple[str, ...]) -> bytes:
    """SHA-256, vLLM's default."""
    return hashlib.sha256(encode_block(parent, packed_ids, extra_keys)).digest()


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
        packed: Each full block's ids, see :func:`pack_ids`; to read only.
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
        self.packed: list[bytes] = []
        self._hashes: list[bytes] = []

    def __len__(self) -> int:
        """Full blocks so far."""
        return len(self.packed)

    def extend(self, token_ids: list[int]) -> None:
        """Take the blocks that have filled up since the last call.

        Args:
            token_ids: All ids of the sequence; those of earlier calls unchanged.
        """
        done, full = len(self.packed), len(token_ids) // self.block_size
        new = pack_ids(token_ids[done * self.block_size : full * self.block_size])
        width = self.block_size * ID_BYTES
        self.packed += [new[i : i + width] for i in range(0, len(new), width)]

    def tokens(self, index: int) -> tuple[int, ...]:
        """Ids of the full block ``index``."""
        return unpack_ids(self.packed[index])

    def hash(self, index: int) -> bytes:
        """Hash of the full block ``index`` and of all before it."""
        hashes = self._hashes
        while len(hashes) <= index:
            parent, keys = (hashes[-1], ()) if hashes else (b"", self.extra_keys)
            hashes.append(self._hasher(parent, self.packed[len(hashes)], keys))
        return hashes[index]

    def fork(self, num_blocks: int) -> BlockHashes:
        """The same first ``num_blocks`` blocks for another sequence, without hashing again."""
        other = BlockHashes(self.block_size, self.extra_keys, self._hasher)
        other.packed = self.packed[:num_blocks]
        other._hashes = self._hashes[:num_blocks]
        return other
