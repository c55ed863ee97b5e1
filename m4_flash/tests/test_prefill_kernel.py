"""The Triton prefill kernel in Triton's interpreter: float32, small shapes, NaN wherever it can be.

``test_gpu_attention.py`` runs the same cases compiled, longer and in bfloat16 too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m4_flash.kernels.tuning import PrefillConfig
from m4_flash.tests.attention_cases import AttentionCase, LaunchSpy, attention_case, oracle

SMALL = PrefillConfig(block_m=16, block_n=16, num_warps=4, num_stages=1)

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="kernels are compiled here: test_gpu_attention.py"
)


def paged(case: AttentionCase, config: PrefillConfig = SMALL, **options: Any) -> torch.Tensor:
    from m4_flash.kernels.prefill import flash_prefill

    out = case.new_out()
    flash_prefill(
        case.q, case.k_cache, case.v_cache, case.block_tables, case.seq_lens, case.cu_seqlens_q,
        case.scale, out, config=config, **options,
    )  # fmt: skip
    return out


def contiguous(case: AttentionCase, config: PrefillConfig = SMALL) -> torch.Tensor:
    from m4_flash.kernels.prefill import flash_prefill_contiguous

    out = case.new_out()
    flash_prefill_contiguous(
        case.q, case.k, case.v, case.cu_seqlens_q, case.scale, out, config=config
    )
    return out


def assert_equal(out: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block_size", [1, 4, 16, 32])
def test_block_edges_and_cached_prefixes(block_size: int) -> None:
    """Contexts k·bs − 1, k·bs and k·bs + 1, whole prompts, chunks and a single token."""
    edge = max(block_size, 8)
    slices = [(1, 1), (2 * edge - 1, 5), (edge, edge), (edge + 1, 1), (2 * edge + 1, 8)]
    case = attention_case(slices, block_size=block_size)
    assert_equal(paged(case), case.expected)


def moved(length: int, block_m: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Floats that one prompt's launch loads and stores, masked ones left out."""
    from triton.runtime.interpreter import InterpreterBuilder

    counts = {"create_masked_load": 0, "create_masked_store": 0}

    def counting(name: str, mask_at: int) -> Callable[..., Any]:
        inner = getattr(InterpreterBuilder, name)

        def counted(builder: Any, *args: Any) -> Any:
            if args[0].get_element_ty().is_floating():
                counts[name] += int(args[mask_at].data.sum())
            return inner(builder, *args)

        return counted

    case = attention_case([(length, length)])
    with monkeypatch.context() as patched:
        for name, mask_at in (("create_masked_load", 1), ("create_masked_store", 2)):
            patched.setattr(InterpreterBuilder, name, counting(name, mask_at))
        contiguous(case, replace(SMALL, block_m=block_m))
    return counts["create_masked_load"], counts["create_masked_store"]


def test_traffic_is_quadratic_and_shrinks_with_the_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tile of queries loads all keys it may see; what is written is linear."""
    (short, written), (long, more) = (moved(n, 16, monkeypatch) for n in (64, 128))
    assert more == 2 * written
    assert long > 3 * short
    assert moved(128, 64, monkeypatch)[0] < long / 2


@pytest.mark.parametrize("group", [1, 2, 3, 4, 8])
def test_heads_of_a_group_share_a_tile(group: int) -> None:
    """Three heads leave a row of the tile of 16 unused, and it must not write."""
    case = attention_case([(19, 19), (21, 6)], kv_heads=1 if group > 3 else 2, group=group)
    assert_equal(paged(case), case.expected)


def test_a_group_larger_than_the_tile() -> None:
    case = attention_case([(3, 3)], group=20)
    assert_equal(paged(case), case.expected)


@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_head_dims(head_dim: int) -> None:
    case = attention_case([(17, 17), (20, 3)], head_dim=head_dim)
    assert_equal(paged(case), case.expected)


@pytest.mark.parametrize(("block_m", "block_n"), [(16, 32), (32, 16), (64, 64)])
def test_tile_sizes(block_m: int, block_n: int) -> None:
    """Tiles of keys larger than those of queries, and the other way round."""
    config = PrefillConfig(block_m, block_n, num_warps=4, num_stages=1)
    case = attention_case([(40, 40), (33, 9), (16, 16)])
    assert_equal(paged(case, config), case.expected)
    whole = attention_case([(40, 40), (16, 16)])
    assert_equal(contiguous(whole, config), whole.expected)


def test_padding_is_written_with_zero_and_harms_nobody() -> None:
    """Its q, k and v are NaN."""
    case = attention_case([(9, 9), (18, 2)], padding_seqs=3, padding_tokens=21)
    assert_equal(paged(case), case.expected)
    whole = attention_case([(9, 9), (18, 18)], padding_seqs=1, padding_tokens=13)
    assert_equal(contiguous(whole), whole.expected)


def test_a_padding_sequence_with_tokens_of_its_own() -> None:
    """``seq_len`` 0 says padding, whatever the slice."""
    case = attention_case([(9, 9), (5, 3)])
    case.seq_lens[1] = 0
    case.q[9:] = torch.nan
    case.expected[9:] = 0
    assert_equal(paged(case), case.expected)


def test_single_tokens_are_left_to_the_decode_kernel() -> None:
    case = attention_case([(7, 1), (12, 5), (20, 1), (1, 1)], padding_tokens=1)
    out = paged(case, skip_single=True)
    single = torch.tensor([0, 6, 7])
    assert out[single].isnan().all()
    out[single] = case.expected[single]
    assert_equal(out, case.expected)


@pytest.mark.parametrize("splits", [2, 3, 5])
def test_parts_of_the_keys_are_merged(splits: int) -> None:
    """Tiles with 16, 8 and 0 whole tiles of keys in their past: up to 4 parts, 2 and 1."""
    case = attention_case(
        [(261, 5), (150, 20), (9, 9), (130, 1)], kv_heads=2, padding_seqs=1, padding_tokens=3
    )
    assert_equal(paged(case, splits=splits), case.expected)


def test_the_merge_leaves_single_tokens_to_the_decode_kernel_too() -> None:
    case = attention_case([(200, 1), (260, 3), (300, 1)], padding_tokens=2)
    out = paged(case, skip_single=True, splits=4)
    single = torch.tensor([0, 4])
    assert out[single].isnan().all()
    out[single] = case.expected[single]
    assert_equal(out, case.expected)


def test_splits_do_run_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the merge the rows of a long past are not written: their parts lie elsewhere."""
    from m4_flash.kernels import prefill

    monkeypatch.setattr(prefill, "merge_slices", lambda *_, **__: None)
    case = attention_case([(260, 3), (40, 3)])
    out = paged(case, splits=4)
    assert out[:3].isnan().all()
    assert_equal(out[3:], case.expected[3:])


def test_few_tokens_get_small_tiles_and_parts() -> None:
    """On 132 multiprocessors: 16 heads over 8 KV heads, as Qwen3-0.6B."""
    from m4_flash.kernels.slices import paged_launch
    from m4_flash.kernels.tuning import prefill_config

    cpu = torch.device("cpu")

    def launch(num_tokens: int) -> tuple[PrefillConfig, int]:
        return paged_launch(num_tokens, 16, 8, 132, cpu, 128, torch.bfloat16)

    few = prefill_config("prefill_few", cpu, 128, torch.bfloat16)
    assert few.block_m == 64  # 32 tokens: 8 programs each
    assert [launch(n)[1] for n in (16, 32, 33, 256, 512)] == [32, 32, 16, 4, 2]
    assert launch(8192) == (prefill_config("prefill_paged", cpu, 128, torch.bfloat16), 1)


def test_a_table_wider_than_needed() -> None:
    """Its other entries name a block of NaN."""
    case = attention_case([(20, 20), (3, 2)], block_size=4, max_blocks=40)
    assert_equal(paged(case), case.expected)


def test_large_scores_do_not_overflow() -> None:
    case = attention_case([(24, 24)])
    case.q *= 500.0
    expected = oracle(case.q, case.k, case.v)
    torch.testing.assert_close(paged(case), expected, rtol=1e-3, atol=1e-3)


def test_contiguous_equals_paged() -> None:
    case = attention_case([(1, 1), (31, 31), (16, 16), (8, 8)], kv_heads=2)
    out = contiguous(case)
    assert_equal(out, case.expected)
    assert_equal(out, paged(case))


def test_copy_engine_equals_pointers() -> None:
    """Tensor descriptors are interpreted too."""
    case = attention_case([(37, 37), (20, 20)], kv_heads=2)
    with_tma = PrefillConfig(block_m=16, block_n=16, num_warps=4, num_stages=1, use_tma=True)
    assert_equal(contiguous(case, with_tma), case.expected)


def test_copy_engine_is_not_asked_for_unaligned_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    from m4_flash.kernels import prefill

    def never(*args: Any) -> None:
        raise AssertionError("unaligned tensors cannot be described")

    monkeypatch.setattr(prefill, "_descriptor", never)
    case = attention_case([(20, 20)])
    shifted = torch.empty(case.k.numel() + 1)[1:].view(case.k.shape).copy_(case.k)
    case.k = shifted
    with_tma = PrefillConfig(block_m=16, block_n=16, num_warps=4, num_stages=1, use_tma=True)
    assert_equal(contiguous(case, with_tma), case.expected)


def test_views_of_a_merged_projection_and_of_a_pool() -> None:
    """As an engine calls it: q, k and v are columns of one tensor, the cache a slice of a pool."""
    case = attention_case([(18, 18), (5, 5)], kv_heads=2)
    merged = torch.cat((case.q, case.k, case.v), dim=1)
    heads = case.q.shape[1]
    case.q, case.v = merged[:, :heads], merged[:, heads + 2 :]
    assert_equal(contiguous(case), case.expected)  # k has strides of its own
    pool = torch.stack((case.k_cache, case.v_cache)).unsqueeze(1).repeat(1, 3, 1, 1, 1, 1)
    case.k_cache, case.v_cache = pool[0, 1], pool[1, 1]
    assert_equal(paged(case), case.expected)


def test_bfloat16_is_computed_in_float32_by_the_interpreter() -> None:
    """Cut once, at the end: its cast to bfloat16 does not round."""
    case = attention_case([(19, 19)], dtype=torch.bfloat16)
    for out in (paged(case), contiguous(case)):
        assert out.dtype is torch.bfloat16
        torch.testing.assert_close(out.float(), case.expected, rtol=2**-7, atol=1e-5)


def test_no_tokens() -> None:
    case = attention_case([], padding_seqs=2)
    assert paged(case).shape == (0, 2, 16)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"head_dim": 24}, "head_dim must be a power of two, got 24"),
        ({"head_dim": 8}, "head_dim must be at least 16, got 8"),
        ({"block_size": 6}, "block_size must be a power of two: 6"),
    ],
)
def test_other_shapes_are_refused(shape: dict[str, Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        paged(attention_case([(3, 3)], **shape))


def test_a_launch_depends_on_shapes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches of 16 tokens, 3 sequences and equal pools, nothing else in common."""
    from m4_flash.kernels import prefill

    spy = LaunchSpy()
    monkeypatch.setattr(prefill, "_prefill_kernel", spy)
    fixed: dict[str, Any] = {"num_blocks": 9, "max_blocks": 5}
    first = attention_case([(16, 14), (40, 1)], padding_seqs=1, padding_tokens=1, **fixed)
    second = attention_case([(5, 5), (6, 6), (60, 5)], seed=1, **fixed)
    for case in (first, second):
        paged(case, skip_single=True)
    assert spy.launches[0] == spy.launches[1]
    assert spy.launches[0][0] == (1, 2 + 3, 1)  # KV heads; ceil(16 / 8) tiles and one per sequence


@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_any_ragged_batch(data: st.DataObject) -> None:
    lengths = st.integers(1, 24)
    slices = []
    for _ in range(data.draw(st.integers(1, 4), label="sequences")):
        new = data.draw(lengths, label="new")
        cached = data.draw(st.integers(0, 20) | st.integers(100, 160), label="cached")
        slices.append((cached + new, new))
    case = attention_case(
        slices,
        group=data.draw(st.sampled_from([1, 2, 3]), label="group"),
        block_size=data.draw(st.sampled_from([2, 16, 64]), label="block_size"),
        padding_seqs=data.draw(st.integers(0, 2), label="padding_seqs"),
        padding_tokens=data.draw(st.integers(0, 9), label="padding_tokens"),
    )
    splits = data.draw(st.integers(1, 4), label="splits")
    assert_equal(paged(case, splits=splits), case.expected)
