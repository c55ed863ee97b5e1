"""Reading and writing through block tables, against the same without blocks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.model_config import KVSpec
from m1_basic.attention import naive_attention
from m2_batching.plan import BlockCopy
from m3_paged.kv_cache import PagedKVCache
from m3_paged.paged_attention import PagedAttend, PagedMetadata, gather_blocks, gathered_decode

NAN = float("nan")


def spec(kv_heads: int = 2, layers: int = 2) -> KVSpec:
    return KVSpec(num_layers=layers, num_kv_heads=kv_heads, head_dim=8, dtype="float32")


def poisoned(num_blocks: int, block_size: int, kv_heads: int = 2) -> PagedKVCache:
    """A cache in which every place that nobody wrote is NaN."""
    cache = PagedKVCache(spec(kv_heads), num_blocks, block_size, "cpu")
    cache.kv.fill_(NAN)
    return cache


class TestCache:
    def test_shape_and_bytes(self) -> None:
        cache = PagedKVCache(spec(), num_blocks=5, block_size=3, device="cpu")
        assert cache.kv.shape == (2, 2, 5, 3, 2, 8)
        assert cache.nbytes == 5 * 3 * spec().bytes_per_token
        sink = cache.sink(1, torch.tensor([4]))
        assert sink.k_cache.data_ptr() == cache.kv[0, 1].data_ptr()
        assert sink.v_cache.data_ptr() == cache.kv[1, 1].data_ptr()

    def test_copies_reach_every_layer_of_k_and_v(self) -> None:
        cache = PagedKVCache(spec(), 5, 3, "cpu")
        cache.kv.normal_()
        before = cache.kv.clone()
        cache.copy_blocks([BlockCopy(1, 3), BlockCopy(1, 0)])
        for target in (0, 3):
            assert torch.equal(cache.kv[:, :, target], before[:, :, 1])
        for untouched in (1, 2, 4):
            assert torch.equal(cache.kv[:, :, untouched], before[:, :, untouched])

    def test_all_sources_are_read_before_any_target_is_written(self) -> None:
        cache = PagedKVCache(spec(), 3, 2, "cpu")
        cache.kv.normal_()
        before = cache.kv.clone()
        cache.copy_blocks([BlockCopy(0, 1), BlockCopy(1, 2), BlockCopy(2, 0)])
        for source, target in ((0, 1), (1, 2), (2, 0)):
            assert torch.equal(cache.kv[:, :, target], before[:, :, source])

    def test_no_copies_touch_nothing(self) -> None:
        cache = poisoned(2, 2)
        cache.copy_blocks(())
        assert cache.kv.isnan().all()


class Batch:
    """Sequences with random K and V, partly in the cache, and the step that computes the rest."""

    def __init__(
        self, contexts: list[tuple[int, int]], size: int, kv_heads: int, group: int, seed: int
    ) -> None:
        """Each context is (tokens in the cache, new tokens). Blocks are dealt in random order."""
        generator = torch.Generator().manual_seed(seed)
        self.size, self.contexts = size, contexts
        lengths = [past + new for past, new in contexts]
        counts = [-(-length // size) for length in lengths]
        order = torch.randperm(sum(counts) + 2, generator=generator).tolist()
        self.tables = [[order.pop() for _ in range(count)] for count in counts]
        self.cache = poisoned(sum(counts) + 2, size, kv_heads)
        self.q = [torch.randn(n, kv_heads * group, 8, generator=generator) for _, n in contexts]
        self.k, self.v = (
            [torch.randn(length, kv_heads, 8, generator=generator) for length in lengths]
            for _ in "kv"
        )
        for row, (past, _) in enumerate(contexts):
            for position in range(past):
                block, place = self.slot(row, position)
                self.cache.kv[0, 1, block, place] = self.k[row][position]
                self.cache.kv[1, 1, block, place] = self.v[row][position]

    def slot(self, row: int, position: int) -> tuple[int, int]:
        return self.tables[row][position // self.size], position % self.size

    def metadata(self) -> PagedMetadata:
        slots = []
        for row, (past, new) in enumerate(self.contexts):
            for position in range(past, past + new):
                block, place = self.slot(row, position)
                slots.append(block * self.size + place)
        width = max(map(len, self.tables))
        lens = tuple(past + new for past, new in self.contexts)
        queries = tuple(new for _, new in self.contexts)
        return PagedMetadata(
            slot_mapping=torch.tensor(slots),
            block_tables=torch.tensor(
                [table + [0] * (width - len(table)) for table in self.tables], dtype=torch.int32
            ),
            seq_lens=torch.tensor(lens, dtype=torch.int32),
            query_lens=queries,
            context_lens=lens,
            num_decodes=next((i for i, n in enumerate(queries) if n > 1), len(queries)),
        )

    def new(self, values: list[Tensor]) -> Tensor:
        return torch.cat([x[past:] for x, (past, _) in zip(values, self.contexts, strict=True)])

    def expected(self) -> Tensor:
        rows = zip(self.q, self.k, self.v, strict=True)
        return torch.cat([naive_attention(q, k, v, 8**-0.5) for q, k, v in rows])


class TestAttend:
    @settings(max_examples=60, deadline=None)
    @given(
        decodes=st.lists(st.integers(0, 13), max_size=4),
        others=st.lists(st.tuples(st.integers(0, 9), st.integers(2, 9)), max_size=3),
        size=st.integers(1, 6),
        kv_heads=st.integers(1, 2),
        group=st.integers(1, 3),
        seed=st.integers(0, 999),
    )
    def test_any_mix_of_decodes_chunks_and_prefills_equals_attention_without_blocks(
        self,
        decodes: list[int],
        others: list[tuple[int, int]],
        size: int,
        kv_heads: int,
        group: int,
        seed: int,
    ) -> None:
        contexts = [(past, 1) for past in decodes] + others
        if not contexts:
            contexts = [(0, 1)]
        batch = Batch(contexts, size, kv_heads, group, seed)
        attend = PagedAttend(batch.cache, batch.metadata(), use_kernel=False)
        out = attend(1, torch.cat(batch.q), batch.new(batch.k), batch.new(batch.v))
        torch.testing.assert_close(out, batch.expected())
        # Each place of each sequence was written once; all else, layer 0 included, is untouched.
        written = sum(past + new for past, new in contexts)
        assert int((~batch.cache.kv.isnan()).sum()) == 2 * written * kv_heads * 8
        assert attend.kv_sink(0) is None

    def test_a_sequence_reads_what_another_wrote_in_the_same_step(self) -> None:
        """The whole batch is stored before any sequence attends: a shared first block."""
        batch = Batch([(0, 4), (4, 2)], size=4, kv_heads=2, group=1, seed=0)
        batch.tables[1][0] = batch.tables[0][0]
        batch.k[1][:4], batch.v[1][:4] = batch.k[0], batch.v[0]
        attend = PagedAttend(batch.cache, batch.metadata(), use_kernel=False)
        out = attend(1, torch.cat(batch.q), batch.new(batch.k), batch.new(batch.v))
        torch.testing.assert_close(out, batch.expected())

    def test_a_token_without_a_slot_is_not_stored(self) -> None:
        batch = Batch([(0, 3)], size=4, kv_heads=2, group=1, seed=0)
        metadata = batch.metadata()
        metadata.slot_mapping[2] = -1
        attend = PagedAttend(batch.cache, metadata, use_kernel=False)
        attend(1, torch.cat(batch.q), batch.new(batch.k), batch.new(batch.v))
        block = batch.tables[0][0]
        assert not batch.cache.kv[:, 1, block, :2].isnan().any()
        assert batch.cache.kv[:, 1, block, 2:].isnan().all()


class TestGather:
    @settings(max_examples=40, deadline=None)
    @given(length=st.integers(1, 20), size=st.integers(1, 7), seed=st.integers(0, 99))
    def test_blocks_in_any_order_become_one_sequence(
        self, length: int, size: int, seed: int
    ) -> None:
        batch = Batch([(length - 1, 1)], size, 2, 1, seed)
        block, place = batch.slot(0, length - 1)
        batch.cache.kv[0, 1, block, place] = batch.k[0][-1]
        table = torch.tensor([*batch.tables[0], 0, 0], dtype=torch.int32)
        keys = gather_blocks(batch.cache.kv[0, 1], table, length)
        assert torch.equal(keys, batch.k[0])

    def test_decode_ignores_table_entries_beyond_the_longest(self) -> None:
        """The table may be wider than any context, and its padding may name any block."""
        batch = Batch([(5, 1), (1, 1)], size=2, kv_heads=2, group=2, seed=3)
        attend = PagedAttend(batch.cache, batch.metadata(), use_kernel=False)
        attend(1, torch.cat(batch.q), batch.new(batch.k), batch.new(batch.v))
        metadata = batch.metadata()
        wide = torch.full((2, 9), 1, dtype=torch.int32)
        wide[:, :3] = metadata.block_tables
        k_cache, v_cache = batch.cache.kv[:, 1]
        out = gathered_decode(
            torch.cat(batch.q), k_cache, v_cache, wide, metadata.seq_lens, 6, 8**-0.5
        )
        torch.testing.assert_close(out, batch.expected())


def test_metadata_that_contradicts_itself_is_noticed() -> None:
    good = {
        "slot_mapping": torch.tensor([0, 1, 2]),
        "block_tables": torch.zeros(2, 1, dtype=torch.int32),
        "seq_lens": torch.tensor([5, 2], dtype=torch.int32),
        "query_lens": (1, 2),
        "context_lens": (5, 2),
        "num_decodes": 1,
    }
    PagedMetadata(**good)  # type: ignore[arg-type]
    for change in (
        {"slot_mapping": torch.tensor([0, 1])},
        {"query_lens": (1, 2, 1)},
        {"query_lens": (0, 3)},
        {"context_lens": (5, 1)},
        {"num_decodes": 2},
    ):
        with pytest.raises(AssertionError):
            PagedMetadata(**{**good, **change})  # type: ignore[arg-type]
