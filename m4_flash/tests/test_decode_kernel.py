"""The Triton decode kernels in Triton's interpreter: float32, small shapes, NaN wherever it can be.

``test_gpu_attention.py`` runs the same cases compiled, longer and in bfloat16 too.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m4_flash.kernels.tuning import DecodeConfig, PrefillConfig
from m4_flash.tests.attention_cases import AttentionCase, LaunchSpy, attention_case, oracle

SMALL = DecodeConfig(block_n=16, num_warps=4, num_stages=1)

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="kernels are compiled here: test_gpu_attention.py"
)


def decode_case(lengths: list[int], **options: Any) -> AttentionCase:
    return attention_case([(length, 1) for length in lengths], **options)


def decode(
    case: AttentionCase,
    splits: int,
    *,
    starts: bool = False,
    out: torch.Tensor | None = None,
    config: DecodeConfig = SMALL,
) -> torch.Tensor:
    from m4_flash.kernels.decode import flash_decode

    out = case.new_out() if out is None else out
    flash_decode(
        case.q, case.k_cache, case.v_cache, case.block_tables, case.seq_lens,
        case.cu_seqlens_q if starts else None, case.scale, out, splits=splits, config=config,
    )  # fmt: skip
    return out


def assert_equal(out: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("splits", range(1, 9))
def test_every_number_of_splits_gives_the_same(splits: int) -> None:
    """From one part each to more places than there are tiles of 16 keys."""
    case = decode_case([1, 15, 16, 17, 64])
    assert_equal(decode(case, splits), case.expected)


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("block_size", [1, 4, 16, 32])
def test_block_edges(block_size: int, splits: int) -> None:
    edge = max(block_size, 8)
    lengths = [1, 2 * edge - 1, 2 * edge, 2 * edge + 1]
    case = decode_case(lengths, block_size=block_size)
    assert_equal(decode(case, splits), case.expected)


@pytest.mark.parametrize("group", [1, 2, 3, 4, 8, 20])
def test_heads_of_a_group_share_a_tile(group: int) -> None:
    """Padded to 16 rows, or to 32; the padding must not write into the next KV head's rows."""
    case = decode_case([5, 33], kv_heads=2, group=group)
    assert_equal(decode(case, 3), case.expected)


@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_head_dims(head_dim: int) -> None:
    case = decode_case([17, 40], head_dim=head_dim)
    assert_equal(decode(case, 2), case.expected)


def test_one_long_sequence_among_short_ones() -> None:
    """Two places per sequence, and yet the long one is cut into many parts."""
    case = decode_case([3] * 9 + [64] + [2] * 6)
    assert_equal(decode(case, 2), case.expected)


@pytest.mark.parametrize(
    ("tiles", "places", "parts"),
    [
        ([40, 3, 2, 3], 16, [10, 1, 1, 1]),  # the example of the module: a share is 4 tiles
        ([1, 1, 1, 1], 36, [1, 1, 1, 1]),  # a tile is not cut
        ([1000, 0, 0, 0], 8, [4, 0, 0, 0]),  # sequences that do not decode take none
        ([7, 7, 7, 7], 8, [1, 1, 1, 1]),  # equal ones are not cut at two places each
        ([8, 8, 8, 4], 8, [2, 2, 2, 1]),  # rounding up takes all but one
        ([9, 9, 9, 1], 12, [3, 3, 3, 1]),
    ],
)
def test_places_are_dealt_by_length(tiles: list[int], places: int, parts: list[int]) -> None:
    from m4_flash.tests.deal_kernel import dealt

    assert dealt(tiles, places) == parts
    assert sum(parts) <= places


@given(st.lists(st.integers(0, 70), min_size=4, max_size=4), st.integers(2, 12))
@settings(max_examples=40, deadline=None)
def test_places_suffice_and_no_part_is_longer_than_a_share(tiles: list[int], splits: int) -> None:
    from m4_flash.tests.deal_kernel import dealt

    parts = dealt(tiles, 4 * splits)
    assert sum(parts) <= 4 * splits
    assert [part > 0 for part in parts] == [count > 0 for count in tiles]
    share = max(-(-sum(tiles) // (4 * splits - 4)), 1)
    assert all(-(-count // max(part, 1)) <= share for count, part in zip(tiles, parts, strict=True))


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("starts", [False, True])
def test_padding_is_written_with_zero(splits: int, starts: bool) -> None:
    """A padded batch of a graph: as many rows as sequences, ``seq_len`` 0 behind the real ones."""
    case = decode_case([20, 5], padding_seqs=2, padding_tokens=2)
    case.cu_seqlens_q = torch.arange(5, dtype=torch.int32)
    assert_equal(decode(case, splits, starts=starts), case.expected)


@pytest.mark.parametrize("splits", [1, 4])
def test_other_slices_are_not_touched(splits: int) -> None:
    """Prefills and sequences without tokens, wherever they stand."""
    slices = [(7, 1), (30, 4), (40, 1), (1, 1), (6, 6)]
    case = attention_case(slices, padding_seqs=1, padding_tokens=3)
    out = decode(case, splits, starts=True)
    single = torch.tensor([0, 5, 6])
    assert_equal(out[single], case.expected[single])
    others = torch.ones(len(out), dtype=torch.bool)
    others[single] = False
    assert out[others].isnan().all()


@pytest.mark.parametrize("splits", [1, 3])
def test_both_kernels_together_give_the_whole_step(splits: int) -> None:
    from m4_flash.kernels.prefill import flash_prefill

    slices = [(33, 1), (2, 1), (30, 7), (11, 11), (1, 1), (18, 2)]
    case = attention_case(slices, kv_heads=2, padding_seqs=2, padding_tokens=5)
    out = decode(case, splits, starts=True)
    flash_prefill(
        case.q, case.k_cache, case.v_cache, case.block_tables, case.seq_lens, case.cu_seqlens_q,
        case.scale, out, skip_single=True, config=PrefillConfig(16, 16, 4, 1),
    )  # fmt: skip
    assert_equal(out, case.expected)


@pytest.mark.parametrize("splits", [1, 2])
def test_a_table_wider_than_needed(splits: int) -> None:
    """Its other entries name a block of NaN."""
    case = decode_case([20, 3], block_size=4, max_blocks=50)
    assert_equal(decode(case, splits), case.expected)


@pytest.mark.parametrize("splits", [1, 2, 5])
def test_large_scores_do_not_overflow(splits: int) -> None:
    case = decode_case([40])
    case.q *= 500.0
    blocks = case.block_tables[0, :3]
    keys, values = (x[blocks].flatten(0, 1)[:40] for x in (case.k_cache, case.v_cache))
    expected = oracle(case.q, keys, values)
    torch.testing.assert_close(decode(case, splits), expected, rtol=1e-3, atol=1e-3)


def test_views_of_a_merged_projection_and_of_a_pool() -> None:
    case = decode_case([18, 5], kv_heads=2)
    heads = case.q.shape[1]
    case.q = torch.cat((case.q, case.k, case.v), dim=1)[:, :heads]
    pool = torch.stack((case.k_cache, case.v_cache)).unsqueeze(1).repeat(1, 3, 1, 1, 1, 1)
    case.k_cache, case.v_cache = pool[0, 2], pool[1, 2]
    assert_equal(decode(case, 2), case.expected)


def test_bfloat16_is_computed_in_float32_by_the_interpreter() -> None:
    """Cut once, at the end: its cast to bfloat16 does not round."""
    case = decode_case([19, 40], dtype=torch.bfloat16)
    for splits in (1, 3):
        out = decode(case, splits)
        assert out.dtype is torch.bfloat16
        torch.testing.assert_close(out.float(), case.expected, rtol=2**-7, atol=1e-5)


def test_no_sequences() -> None:
    assert decode(attention_case([]), 2).shape == (0, 2, 16)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"head_dim": 24}, "head_dim must be a power of two, got 24"),
        ({"head_dim": 8}, "head_dim must be at least 16, got 8"),
        ({"block_size": 6}, "block_size must be a power of two, got 6"),
    ],
)
def test_other_shapes_are_refused(shape: dict[str, Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        decode(decode_case([3], **shape), 1)


@pytest.mark.parametrize("splits", [1, 4])
def test_a_launch_depends_on_shapes_alone(splits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches of 3 sequences and equal pools, nothing else in common."""
    from m4_flash.kernels import decode as kernels

    decoding, merging = LaunchSpy(), LaunchSpy()
    monkeypatch.setattr(kernels, "_decode_kernel", decoding)
    monkeypatch.setattr(kernels, "_merge_kernel", merging)
    fixed: dict[str, Any] = {"num_blocks": 9, "max_blocks": 7}
    decode(decode_case([60, 1, 17], **fixed), splits)
    decode(decode_case([2, 3], padding_seqs=1, padding_tokens=1, seed=1, **fixed), splits)
    assert decoding.launches[0] == decoding.launches[1]
    assert decoding.launches[0][0] == (1, 3 * splits)
    assert len(merging.launches) == (2 if splits > 1 else 0)
    assert merging.launches[:1] == merging.launches[1:]


class TestNumSplits:
    @pytest.mark.parametrize(
        ("num_seqs", "splits"),
        [(1, 34), (2, 17), (4, 9), (8, 5), (16, 3), (32, 2), (64, 2), (128, 2), (1024, 2)],
    )
    def test_qwen3_on_132_multiprocessors(self, num_seqs: int, splits: int) -> None:
        """8 KV heads: two programs for each SM, and one place more per sequence."""
        from m4_flash.kernels.decode import num_splits

        assert num_splits(num_seqs, 8, 132) == splits

    def test_limits(self) -> None:
        from m4_flash.kernels.decode import num_splits

        assert num_splits(1, 1, 10_000) == 256
        assert num_splits(128, 1, 10_000) == 2
        assert num_splits(1, 8, 1) == 2


@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_any_ragged_batch(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 64), min_size=1, max_size=6), label="lengths")
    case = decode_case(
        lengths,
        group=data.draw(st.sampled_from([1, 2, 3]), label="group"),
        block_size=data.draw(st.sampled_from([2, 16, 64]), label="block_size"),
    )
    splits = data.draw(st.integers(1, 8), label="splits")
    starts = data.draw(st.booleans(), label="starts")
    assert_equal(decode(case, splits, starts=starts), case.expected)
