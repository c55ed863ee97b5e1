"""Padded batches: masks and positions as one would write them, and NaN that stays where it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.model_config import KVSpec
from common.request import SamplingParams
from common.testing.conformance import build, ids_of
from common.testing.fixtures import TinyModel
from m1_basic.attention import naive_attention
from m2_batching.attention import (
    DecodeAttend,
    PrefillAttend,
    decode_mask,
    masked_attention,
    prefill_mask,
)
from m2_batching.kv_cache import SlotKVCache

NAN = float("nan")
SPEC = KVSpec(num_layers=2, num_kv_heads=2, head_dim=4, dtype="float32")


def cross(*rows: str) -> list[list[bool]]:
    return [[mark == "x" for mark in row] for row in rows]


class TestMasks:
    def test_prefill_is_causal_and_ends_with_the_row(self) -> None:
        assert prefill_mask(torch.tensor([3, 1, 2]), 3).tolist() == [
            cross("x..", "xx.", "xxx"),
            cross("x..", "x..", "x.."),
            cross("x..", "xx.", "xx."),
        ]

    def test_decode_sees_the_context_and_no_more(self) -> None:
        assert decode_mask(torch.tensor([1, 4, 2]), 4).tolist() == [
            cross("x..."),
            cross("xxxx"),
            cross("xx.."),
        ]

    @settings(max_examples=50, deadline=None)
    @given(
        lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
        kv_heads=st.integers(1, 3),
        group=st.integers(1, 3),
        seed=st.integers(0, 99),
    )
    def test_masked_rows_equal_each_row_alone(
        self, lengths: list[int], kv_heads: int, group: int, seed: int
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        width, rows = max(lengths), len(lengths)
        q = torch.randn(rows, width, kv_heads * group, 8, generator=generator)
        k, v = (torch.randn(rows, width, kv_heads, 8, generator=generator) for _ in "kv")
        lens = torch.tensor(lengths)
        keys, values = k.transpose(1, 2), v.transpose(1, 2)
        out = masked_attention(
            q, keys.contiguous(), values.contiguous(), prefill_mask(lens, width), 0.3
        )
        last = q[torch.arange(rows), lens - 1].unsqueeze(1)
        one = masked_attention(
            last, keys.contiguous(), values.contiguous(), decode_mask(lens, width), 0.3
        )
        for row, length in enumerate(lengths):
            alone = naive_attention(q[row, :length], k[row, :length], v[row, :length], 0.3)
            torch.testing.assert_close(out[row, :length], alone)
            torch.testing.assert_close(one[row], alone[-1:])
        assert out.isfinite().all(), "padding queries see key 0"


class TestCache:
    def test_a_place_is_cleaned_once_before_its_first_use(self) -> None:
        cache = SlotKVCache(SPEC, num_slots=3, max_len=8, device="cpu")
        cache.kv.fill_(NAN)
        cache.open_places(4)
        assert not cache.kv[..., :4, :].isnan().any()
        assert cache.kv[..., 4:, :].isnan().all()
        cache.kv[..., :4, :] = 5.0
        cache.open_places(3)
        cache.open_places(6)
        assert (cache.kv[..., :4, :] == 5.0).all()
        assert (cache.kv[..., 4:6, :] == 0.0).all()
        assert cache.kv[..., 6:, :].isnan().all()

    def test_tokens_go_to_their_slot_and_place(self) -> None:
        cache = SlotKVCache(SPEC, num_slots=3, max_len=8, device="cpu")
        cache.kv.zero_()
        k, v = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
        cache.write(1, torch.tensor([2, 0, 2]), torch.tensor([0, 5, 1]), k, v)
        keys, values = cache.read(1, num_slots=3, length=6)
        assert keys.shape == (3, 2, 6, 4)
        for row, (slot, place) in enumerate([(2, 0), (0, 5), (2, 1)]):
            assert torch.equal(keys[slot, :, place], k[row])
            assert torch.equal(values[slot, :, place], v[row])
        assert int((keys != 0).any(-1).sum()) == 3 * 2
        assert not cache.kv[:, 0].any()
        assert keys.data_ptr() == cache.kv[0, 1].data_ptr(), "a view, not a copy"

    def test_bytes_are_those_of_every_slot(self) -> None:
        cache = SlotKVCache(SPEC, num_slots=3, max_len=8, device="cpu")
        assert cache.nbytes == 3 * 8 * SPEC.bytes_per_token


class TestAttend:
    def test_nan_in_unused_places_and_slots_never_reaches_an_output(self) -> None:
        """Rows in slots 2 and 0 of three; slot 1 is idle, and all memory is NaN at first."""
        cache = SlotKVCache(SPEC, num_slots=3, max_len=8, device="cpu")
        cache.kv.fill_(NAN)
        lengths = torch.tensor([2, 3])
        q, k, v = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 2, 4), torch.randn(2, 3, 2, 4)
        prefill = PrefillAttend(cache, torch.tensor([2, 0]), lengths, 3)
        first = prefill(0, q, k, v)
        assert first.isfinite().all()
        # Row i of a decode batch is slot i; slot 1 is padding.
        lens = torch.tensor([4, 1, 3])
        decode = DecodeAttend(cache, torch.tensor([2, 0]), lens, 4)
        new_q, new_k, new_v = (
            torch.randn(3, 1, 4, 4),
            torch.randn(3, 1, 2, 4),
            torch.randn(3, 1, 2, 4),
        )
        out = decode(0, new_q, new_k, new_v)
        assert out.isfinite().all()
        for slot, row, length in ((2, 0, 2), (0, 1, 3)):
            keys = torch.cat([k[row, :length], new_k[slot]])
            values = torch.cat([v[row, :length], new_v[slot]])
            expected = naive_attention(new_q[slot], keys, values, 0.5)
            torch.testing.assert_close(out[slot], expected)
        assert prefill.kv_sink(0) is None
        assert decode.kv_sink(0) is None

    def test_an_idle_slot_is_not_written(self) -> None:
        cache = SlotKVCache(SPEC, num_slots=3, max_len=8, device="cpu")
        cache.kv.zero_()
        ones = torch.ones(3, 1, 2, 4)
        DecodeAttend(cache, torch.tensor([2]), torch.tensor([1, 1, 1]), 1)(
            0, torch.ones(3, 1, 4, 4), ones, ones
        )
        assert cache.kv[:, 0, 2, :, 0].all()
        assert int(cache.kv.count_nonzero()) == 2 * 2 * 4


class Spy:
    """The model, with a record of what it was given."""

    def __init__(self, model: Any) -> None:
        self.model, self.device = model, model.device
        self.calls: list[tuple[list[Any], list[Any]]] = []
        self.hidden: list[Tensor] = []

    def __call__(self, token_ids: Tensor, positions: Tensor, attend: Any) -> Tensor:
        self.calls.append((token_ids.tolist(), positions.tolist()))
        hidden: Tensor = self.model(token_ids, positions, attend)
        self.hidden.append(hidden)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        result: Tensor = self.model.logits(hidden)
        return result


class TestRunner:
    def test_ids_and_positions_of_each_step(self, tiny: TinyModel) -> None:
        engine = build("m2_batching", tiny, max_num_seqs=4, trace=True)
        spy = engine.runner.model = Spy(engine.model)
        tokens = [2, 1, 3]
        prompts = [[11, 12, 13], [21], [31, 32]]
        params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in tokens]
        outputs = engine.generate(prompts, params)
        a, _, c = (o.outputs[0].token_ids for o in outputs)
        assert spy.calls == [
            ([[11, 12, 13], [21, 0, 0], [31, 32, 0]], [[0, 1, 2]] * 3),
            ([[a[0]], [0], [c[0]]], [[3], [0], [2]]),  # slot 1 has ended: padding
            ([[0], [0], [c[1]]], [[0], [0], [3]]),
        ]
        assert [step.num_padding_tokens for step in engine.trace] == [3, 1, 2]
        assert all(hidden.isfinite().all() for hidden in spy.hidden)

    def test_the_batch_ends_at_the_highest_slot_in_use(self, tiny: TinyModel) -> None:
        engine = build("m2_batching", tiny, max_num_seqs=4)
        spy = engine.runner.model = Spy(engine.model)
        params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (3, 1, 1)]
        engine.generate([[1], [2], [3]], params)
        assert [len(ids) for ids, _ in spy.calls] == [3, 1, 1]

    @pytest.mark.parametrize("slots", [1, 3, 4])
    def test_poisoned_memory_changes_no_token(self, tiny: TinyModel, slots: int) -> None:
        params = [SamplingParams(seed=i, max_tokens=6 + 5 * i, ignore_eos=True) for i in range(4)]
        clean = build("m2_batching", tiny, max_num_seqs=slots).generate(tiny.prompts, params)
        engine = build("m2_batching", tiny, max_num_seqs=slots)
        engine.runner.cache.kv.fill_(NAN)
        spy = engine.runner.model = Spy(engine.model)
        assert ids_of(engine.generate(tiny.prompts, params)) == ids_of(clean)
        assert all(hidden.isfinite().all() for hidden in spy.hidden)
