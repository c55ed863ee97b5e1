"""Buckets without gaps, and the pool that records and repeats."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from m4_flash.cuda_graph import Bucket, Buckets, GraphPool, NullCapture, decode_sizes


@pytest.mark.parametrize(
    ("most", "sizes"),
    [
        (1, [1]),
        (3, [1, 2, 3]),
        (8, [1, 2, 4, 8]),
        (20, [1, 2, 4, 8, 16, 20]),
        (33, [1, 2, 4, 8, 16, 24, 32, 33]),
        (300, [1, 2, 4, *range(8, 257, 8), 272, 288, 300]),
    ],
)
def test_decode_sizes(most: int, sizes: list[int]) -> None:
    assert decode_sizes(most) == sizes


@given(most=st.integers(1, 700), seqs=st.integers(1, 700))
def test_every_decode_step_has_a_bucket(most: int, seqs: int) -> None:
    """Sizes that are no multiple of a step once had no graph in a peer's engine."""
    found = Buckets(most).find(seqs, seqs)
    if seqs > most:
        assert found is None
    else:
        assert found is not None
        assert found.decodes
        assert seqs <= found.num_seqs <= most
        assert found.num_seqs < 2 * seqs + 8 or found.num_seqs - seqs < 16


@given(most=st.integers(1, 300), tokens=st.integers(2, 700), seqs=st.integers(1, 300))
def test_mixed_steps(most: int, tokens: int, seqs: int) -> None:
    buckets = Buckets(most)
    if seqs >= tokens or seqs > most:
        return
    found = buckets.find(tokens, seqs)
    every = [b for b in buckets.all() if not b.decodes]
    fitting = [b for b in every if b.num_tokens >= tokens and b.num_seqs >= seqs]
    assert found == (min(fitting) if fitting else None)
    if found is not None:
        assert found.max_query_len == found.num_tokens


def test_more_tokens_where_the_smallest_size_has_no_count_that_fits() -> None:
    # With 16 tokens the counts are 1 and 4, so ten sequences take the next size.
    assert Buckets(300).find(16, 10) == Bucket(32, 16)


def test_all_buckets_are_distinct_and_the_largest_comes_first() -> None:
    every = Buckets(64).all()
    assert len(set(every)) == len(every)
    assert every == sorted(every, reverse=True)
    assert Bucket(64, 64) in every
    assert Bucket(64, 64).max_query_len == 1
    assert Bucket(2048, 1) in every
    assert every[0] == Bucket(2048, 64)


def test_no_mixed_bucket_where_none_is_wanted() -> None:
    buckets = Buckets(8, max_mixed_tokens=0)
    assert all(bucket.decodes for bucket in buckets.all())
    assert buckets.find(9, 2) is None


@dataclass(frozen=True)
class Output:
    total: torch.Tensor
    inner: Inner
    label: str = "a"


@dataclass(frozen=True)
class Inner:
    doubled: torch.Tensor


def test_a_replay_reads_the_static_input_and_refreshes_the_outputs_in_place() -> None:
    static = torch.zeros(64, dtype=torch.int64)
    recorded: list[Bucket] = []

    def run(bucket: Bucket) -> Output:
        recorded.append(bucket)
        part = static[: bucket.num_seqs]
        return Output(part.sum(), Inner(part * 2))

    buckets = Buckets(4, max_mixed_tokens=0)
    pool = GraphPool(buckets, run, NullCapture())
    assert recorded == [Bucket(4, 4), Bucket(2, 2), Bucket(1, 1)]
    assert pool.find(3, 3) == Bucket(4, 4)
    assert pool.find(5, 5) is None
    static[:] = 3
    first = pool.replay(Bucket(2, 2))
    assert (int(first.total), first.inner.doubled.tolist()) == (6, [6, 6])
    static[0] = 10
    again = pool.replay(Bucket(2, 2))
    assert again is first
    assert (int(first.total), first.inner.doubled.tolist()) == (13, [20, 6])
    assert pool.seconds >= 0
