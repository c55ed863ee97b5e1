"""Two indexes that find the same blocks: what a lookup, an insertion and a removal cost.

The hash map names each block once (BLAKE2b over its tokens) and then looks a short name up. The
tree never names a block; Python hashes the packed ids of each for its dictionaries, once as well.
"""

from __future__ import annotations

import random
import timeit
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from itertools import pairwise

from common.results import Result, Row, make_result, row
from m6_prefix.assembly import INDEXES
from m6_prefix.block_hash import BlockHasher, BlockHashes, blake2b_hash, sha256_hash
from m6_prefix.prefix_index import PrefixIndex

BLOCK_SIZE = 16
CHAIN = 64
"""Blocks of each of the other prefixes in the index: 1,024 tokens."""
STRANGER = 10**9
"""Seed of a prompt that is not in the index."""
HASHERS: dict[str, BlockHasher] = {"blake2b": blake2b_hash, "sha256": sha256_hash}

ROWS_NOTE = (
    "lookup_first cuts the prompt into blocks, names them where the index wants names, and looks "
    "it up; lookup_again is what a request that waits pays; lookup_miss is lookup_first of a "
    "prompt that nobody has sent. insert and remove are per block"
)


def run(args: Namespace, notes: list[str]) -> tuple[Result, str]:
    """Time both indexes with few and with many cached blocks.

    Args:
        args: The benchmark's command line.
        notes: Sentences for the result file.

    Returns:
        The result and the summary line.
    """
    lengths = (64, 128) if args.smoke else (512, 2048, 8192, 32_768)
    cached = (64, 128) if args.smoke else (1024, 102_400)
    rounds = args.repeat if args.smoke else max(args.repeat, 7)
    rows = hash_rows(rounds)
    for count in cached:
        others = [_prefix(seed, CHAIN * BLOCK_SIZE) for seed in range(1, count // CHAIN + 1)]
        for name, make in INDEXES.items():
            index = make()
            for number, prefix in enumerate(others):
                insert(index, prefix, first_block=number * CHAIN)
            assert len(index) == len(others) * CHAIN
            for length in lengths:
                rows += index_rows(index, name, length, rounds)
    result = make_result(
        "m6_prefix", "index_cost", rows, device="cpu", config={"block_size": BLOCK_SIZE},
        notes=[*notes, ROWS_NOTE],
    )  # fmt: skip
    labels = {"metric": "lookup_first", "prompt_tokens": lengths[-1], "cached_blocks": cached[-1]}
    parts = [f"{item['index']} {item['median'] * 1e6:,.0f} µs" for item in result.select(**labels)]
    return result, f"m6_prefix, first lookup of {lengths[-1]:,} tokens: {', '.join(parts)}"


def hash_rows(rounds: int) -> list[Row]:
    """Seconds to name one block."""
    prefix = _prefix(0, BLOCK_SIZE)
    parent, ids = prefix.hash(0), prefix.packed[0]
    return [
        row("hash_block", "s", _timed(partial(hasher, parent, ids, ()), rounds, 200),
            hasher=name)
        for name, hasher in HASHERS.items()
    ]  # fmt: skip


def index_rows(index: PrefixIndex, name: str, length: int, rounds: int) -> list[Row]:
    """All operations on one index that holds other prefixes; it is left as it was.

    Args:
        index: Has the block ids from 0 on.
        name: Its name.
        length: Tokens of the prompt.
        rounds: Recorded rounds.
    """
    tokens, stranger = _tokens(0, length), _tokens(STRANGER, length)
    prefix = _cut(tokens)
    num_blocks, first = len(prefix), len(index)
    labels: dict[str, str | int] = {
        "index": name, "prompt_tokens": length, "cached_blocks": first
    }  # fmt: skip
    number = max(2048 // num_blocks, 1)
    _names(index, prefix)  # insertion follows a lookup, which has named the blocks

    taken, removed = list[float](), list[float]()
    for _ in range(rounds):
        taken.append(timeit.timeit(partial(insert, index, prefix, first), number=1))
        removed.append(timeit.timeit(partial(remove, index, num_blocks, first), number=1))
    insert(index, prefix, first)
    assert len(index.lookup(prefix, num_blocks)) == num_blocks
    rows = [
        row("lookup_first", "s", _timed(lambda: look_up(index, tokens), rounds, number), **labels),
        row("lookup_again", "s",
            _timed(lambda: index.lookup(prefix, num_blocks), rounds, number), **labels),
        row("lookup_miss", "s", _timed(lambda: look_up(index, stranger), rounds, number), **labels),
        row("insert", "s", [seconds / num_blocks for seconds in taken], **labels),
        row("remove", "s", [seconds / num_blocks for seconds in removed], **labels),
    ]  # fmt: skip
    remove(index, num_blocks, first)
    return rows


def look_up(index: PrefixIndex, tokens: list[int]) -> list[int]:
    """What a new request costs: cut, name if need be, look up."""
    prefix = _cut(tokens)
    return index.lookup(prefix, len(prefix))


def insert(index: PrefixIndex, prefix: BlockHashes, first_block: int) -> None:
    """Every block of a prefix, under consecutive ids."""
    index.insert(first_block, None, prefix, 0)
    last = first_block + len(prefix)
    for number, (parent, block) in enumerate(pairwise(range(first_block, last)), 1):
        index.insert(block, parent, prefix, number)


def remove(index: PrefixIndex, num_blocks: int, first_block: int) -> None:
    """The same blocks, the tail first, as the pool evicts them."""
    for block in reversed(range(first_block, first_block + num_blocks)):
        index.remove(block)


def _names(index: PrefixIndex, prefix: BlockHashes) -> None:
    """Let the index name the blocks if it wants names: a lookup in which each block is found."""
    first = len(index)
    insert(index, prefix, first)
    remove(index, len(prefix), first)


def _timed(work: Callable[[], object], rounds: int, number: int) -> list[float]:
    """Seconds of one call, in each round the mean of ``number`` calls."""
    return [seconds / number for seconds in timeit.repeat(work, repeat=rounds, number=number)]


def _tokens(seed: int, count: int) -> list[int]:
    return random.Random(seed).choices(range(10_000), k=count)


def _cut(tokens: list[int]) -> BlockHashes:
    prefix = BlockHashes(BLOCK_SIZE)
    prefix.extend(tokens)
    return prefix


def _prefix(seed: int, count: int) -> BlockHashes:
    return _cut(_tokens(seed, count))
