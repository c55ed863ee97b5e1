"""Names of blocks: what they depend on, where they are the same, and what they cost."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m6_prefix.block_hash import (
    BlockHasher,
    BlockHashes,
    blake2b_hash,
    encode_block,
    pack_ids,
    salt_keys,
    sha256_hash,
    unpack_ids,
)
from m6_prefix.tests.helpers import CountingHasher, prefix_of, sequence_of

HASHERS: list[BlockHasher] = [blake2b_hash, sha256_hash]

triples = st.tuples(
    st.sampled_from([b"", b"\0", b"\1" * 4, b"p" * 32]),
    st.lists(st.integers(0, 2**31 - 1) | st.integers(0, 2), max_size=4).map(pack_ids),
    st.lists(st.text(max_size=3), max_size=2).map(tuple),
)


class TestEncoding:
    def test_the_bytes_of_a_first_and_of_a_later_block(self) -> None:
        first = encode_block(b"", pack_ids((1, 258)), ("é",))
        expected = "02000000 01000000  01000000 02010000  02000000 c3a9"
        assert first == bytes.fromhex(expected)
        assert encode_block(b"PP", pack_ids((7,)), ()) == b"\1\0\0\0\0\0\0\0\7\0\0\0PP"

    @given(triples, triples)
    def test_different_triples_have_different_bytes(
        self,
        a: tuple[bytes, bytes, tuple[str, ...]],
        b: tuple[bytes, bytes, tuple[str, ...]],
    ) -> None:
        assert (encode_block(*a) == encode_block(*b)) == (a == b)

    @given(st.lists(st.integers(0, 2**31 - 1), max_size=9))
    def test_packed_ids_are_four_bytes_each_and_come_back(self, token_ids: list[int]) -> None:
        packed = pack_ids(token_ids)
        assert packed == b"".join(token.to_bytes(4, "little") for token in token_ids)
        assert unpack_ids(packed) == tuple(token_ids)

    def test_any_text_can_be_a_key(self) -> None:
        assert encode_block(b"", b"", ("\ud800",)) != encode_block(b"", b"", ("\ud801",))

    @pytest.mark.parametrize("hasher", HASHERS)
    def test_a_hash_has_256_bits_and_is_that_of_the_bytes(self, hasher: BlockHasher) -> None:
        ids = pack_ids((1, 2))
        assert len(hasher(b"", ids, ("s",))) == 32
        data = encode_block(b"p", ids, ("s",))
        assert sha256_hash(b"p", ids, ("s",)) == hashlib.sha256(data).digest()
        assert blake2b_hash(b"p", ids, ("s",)) == hashlib.blake2b(data, digest_size=32).digest()

    def test_it_is_the_same_in_every_process(self) -> None:
        """Whatever PYTHONHASHSEED says."""
        code = (
            "from m6_prefix.block_hash import blake2b_hash, pack_ids;"
            "print(blake2b_hash(b'', pack_ids((1, 2, 3)), ('salt',)).hex())"
        )
        expected = blake2b_hash(b"", pack_ids((1, 2, 3)), ("salt",)).hex()
        for seed in ("0", "1"):
            done = subprocess.run(
                [sys.executable, "-c", code],
                capture_output=True,
                text=True,
                check=True,
                env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            )
            assert done.stdout.strip() == expected


class TestChain:
    def test_only_full_blocks_have_a_name(self) -> None:
        assert [len(prefix_of(range(n))) for n in (0, 3, 4, 5, 7, 8)] == [0, 0, 1, 1, 1, 2]
        assert prefix_of(range(11)).tokens(1) == (4, 5, 6, 7)

    def test_a_name_depends_on_the_block_and_on_all_before_it(self) -> None:
        a, b = prefix_of([1, 2, 3, 4, 5, 6, 7, 8]), prefix_of([9, 2, 3, 4, 5, 6, 7, 8])
        assert a.tokens(1) == b.tokens(1)
        assert a.hash(1) != b.hash(1)
        same = prefix_of([1, 2, 3, 4, 5, 6, 7, 8, 9])
        assert (same.hash(0), same.hash(1)) == (a.hash(0), a.hash(1))

    def test_it_is_the_hash_of_the_parents_hash_and_the_tokens(self) -> None:
        prefix = prefix_of(range(8), "salt")
        first = blake2b_hash(b"", pack_ids((0, 1, 2, 3)), ("salt",))
        assert prefix.hash(1) == blake2b_hash(first, pack_ids((4, 5, 6, 7)), ())
        assert prefix.hash(0) == first

    def test_extra_keys_change_every_name(self) -> None:
        names = {
            prefix_of(range(8), *keys).hash(i)
            for keys in ((), ("a",), ("b",), ("a", "b"), ("ab",), ("",))
            for i in (0, 1)
        }
        assert len(names) == 12

    def test_the_salt_of_a_request_is_its_key(self) -> None:
        assert salt_keys(sequence_of(0, [1])) == ()
        assert salt_keys(sequence_of(0, [1], salt="tenant")) == ("tenant",)


class TestCost:
    @given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 5))
    def test_every_token_is_hashed_once_at_most(self, steps: list[int], size: int) -> None:
        hasher = CountingHasher()
        prefix = BlockHashes(size, (), hasher)
        tokens: list[int] = []
        for count in steps:
            tokens += range(count)
            for _ in range(2):  # asking again costs nothing
                prefix.extend(tokens)
                assert len(prefix) == len(tokens) // size
                if len(prefix):
                    assert prefix.hash(len(prefix) - 1) == prefix.hash(len(prefix) - 1)
            assert hasher.num_tokens == len(tokens) // size * size

    def test_what_nobody_asks_for_is_not_hashed(self) -> None:
        hasher = CountingHasher()
        prefix = BlockHashes(4, (), hasher)
        prefix.extend(list(range(40)))
        assert (len(prefix), hasher.num_tokens) == (10, 0)
        prefix.hash(2)
        assert hasher.num_tokens == 12

    def test_a_fork_hashes_nothing_again_and_goes_its_own_way(self) -> None:
        hasher = CountingHasher()
        prefix = BlockHashes(4, ("salt",), hasher)
        prefix.extend(list(range(8)))
        prefix.hash(1)
        other = prefix.fork(2)
        prefix.extend([*range(8), 1, 1, 1, 1])
        other.extend([*range(8), 2, 2, 2, 2])
        assert hasher.num_tokens == 8
        assert (other.extra_keys, other.hash(1)) == (("salt",), prefix.hash(1))
        assert other.hash(2) != prefix.hash(2)
        assert hasher.num_tokens == 16
        assert len(prefix.fork(1)) == 1
