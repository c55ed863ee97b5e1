"""The attention kernels compiled: long and ragged batches, bfloat16, graphs, and the peer library.

Every test skips itself without a GPU. Tolerances against the float32 oracle, from the same rounded
inputs: float32 sums in another order and takes powers of two approximately (22 bits); bfloat16
rounds the weights and the output to 8 bits each, of values that are normally distributed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

from common.results import read_results
from m4_flash.kernels.tuning import DecodeConfig, PrefillConfig, prefill_config, read_table
from m4_flash.tests.attention_cases import AttentionCase, attention_case

pytestmark = pytest.mark.gpu

TOLERANCE: dict[torch.dtype, dict[str, Any]] = {
    torch.float32: {"rtol": 1e-4, "atol": 2e-5},
    torch.bfloat16: {"rtol": 2**-7, "atol": 1e-2},
    torch.float16: {"rtol": 2**-10, "atol": 2e-3},
}
DTYPES = list(TOLERANCE)
LENGTHS = [1, 2, 15, 16, 17, 31, 255, 256, 257, 700, 1024, 3000, 8192]


def gpu_case(slices: list[tuple[int, int]], **options: Any) -> AttentionCase:
    return attention_case(slices, device="cuda", **options)


def num_sms() -> int:
    return torch.cuda.get_device_properties("cuda").multi_processor_count


def run_prefill(
    case: AttentionCase, out: torch.Tensor | None = None, **options: Any
) -> torch.Tensor:
    from m4_flash.kernels.prefill import flash_prefill

    out = case.new_out() if out is None else out
    flash_prefill(
        case.q, case.k_cache, case.v_cache, case.block_tables, case.seq_lens, case.cu_seqlens_q,
        case.scale, out, **options,
    )  # fmt: skip
    return out


def run_contiguous(case: AttentionCase, **options: Any) -> torch.Tensor:
    from m4_flash.kernels.prefill import flash_prefill_contiguous

    out = case.new_out()
    flash_prefill_contiguous(case.q, case.k, case.v, case.cu_seqlens_q, case.scale, out, **options)
    return out


def run_decode(
    case: AttentionCase,
    out: torch.Tensor | None = None,
    *,
    splits: int | None = None,
    starts: bool = False,
    **options: Any,
) -> torch.Tensor:
    from m4_flash.kernels.decode import flash_decode, num_splits

    out = case.new_out() if out is None else out
    if splits is None:
        splits = num_splits(len(case.seq_lens), case.k_cache.shape[2], num_sms())
    flash_decode(
        case.q, case.k_cache, case.v_cache, case.block_tables, case.seq_lens,
        case.cu_seqlens_q if starts else None, case.scale, out, splits=splits, **options,
    )  # fmt: skip
    return out


def assert_near(out: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(out.float(), expected, **TOLERANCE[out.dtype])


SHAPES = [
    (dtype, group, head_dim, 16)
    for dtype in (torch.float32, torch.bfloat16)
    for group in (1, 2, 4, 8)
    for head_dim in (64, 128)
]
SHAPES += [
    (dtype, 2, head_dim, block_size)
    for dtype in (torch.float32, torch.bfloat16)
    for head_dim in (64, 128)
    for block_size in (32, 256)
]
SHAPES += [(torch.float16, 2, 128, 16)]


@pytest.mark.parametrize(("dtype", "group", "head_dim", "block_size"), SHAPES)
class TestEveryShape:
    def test_decode(self, dtype: torch.dtype, group: int, head_dim: int, block_size: int) -> None:
        case = gpu_case(
            [(length, 1) for length in LENGTHS], kv_heads=2, group=group, head_dim=head_dim,
            block_size=block_size, dtype=dtype,
        )  # fmt: skip
        for splits in (None, 1, 2, 7):
            assert_near(run_decode(case, splits=splits), case.expected)

    def test_mixed_step(
        self, dtype: torch.dtype, group: int, head_dim: int, block_size: int
    ) -> None:
        """Chunks on cached prefixes, a whole prompt, single tokens and padding, by both kernels."""
        slices = [(1, 1), (2048, 100), (300, 300), (257, 1), (1000, 16), (17, 17), (4096, 33)]
        case = gpu_case(
            slices, kv_heads=2, group=group, head_dim=head_dim, block_size=block_size,
            dtype=dtype, padding_seqs=3, padding_tokens=77,
        )  # fmt: skip
        few = prefill_config("prefill_few", case.q.device, head_dim, dtype)
        launches: list[dict[str, Any]] = [
            {}, {"config": few}, {"config": few, "splits": 4}, {"splits": 32},
        ]  # fmt: skip
        for options in launches:
            out = run_decode(case, splits=4, starts=True)
            run_prefill(case, out, skip_single=True, **options)
            assert_near(out, case.expected)


@pytest.mark.parametrize("new", [1, 16, 32, 200])
def test_a_short_tail_of_a_long_past(new: int) -> None:
    """As the engine launches it: small tiles, and the past cut into parts."""
    from m4_flash.kernels.slices import paged_launch

    case = gpu_case(
        [(8192, new), (40, 40)], kv_heads=8, group=2, head_dim=128, dtype=torch.bfloat16
    )
    config, splits = paged_launch(len(case.q), 16, 8, num_sms(), case.q.device, 128, case.q.dtype)
    assert splits > 1
    assert_near(run_prefill(case, config=config, splits=splits), case.expected)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_whole_prompts_up_to_8192(dtype: torch.dtype, head_dim: int) -> None:
    """Over pages and contiguous, by pointers and by the copy engine."""
    lengths = [*LENGTHS[:-2], 2048, 8192] if dtype is not torch.float32 else LENGTHS[:-2]
    case = gpu_case(
        [(length, length) for length in lengths],
        kv_heads=2, group=2, head_dim=head_dim, dtype=dtype, padding_tokens=5,
    )  # fmt: skip
    assert_near(run_prefill(case), case.expected)
    out = run_contiguous(case)
    assert_near(out, case.expected)
    if torch.cuda.get_device_capability()[0] >= 9 and dtype is not torch.float32:
        by_engine = PrefillConfig(128, 64, 8, 3, use_tma=True)
        assert_near(run_contiguous(case, config=by_engine), case.expected)


@pytest.mark.parametrize("block_size", [1, 2, 8, 64])
def test_other_block_sizes(block_size: int) -> None:
    case = gpu_case(
        [(500, 1), (77, 1), (300, 200), (64, 64)],
        kv_heads=2, head_dim=128, block_size=block_size, dtype=torch.bfloat16,
    )  # fmt: skip
    out = run_decode(case, splits=3, starts=True)
    assert_near(run_prefill(case, out, skip_single=True), case.expected)


@pytest.mark.parametrize("head_dim", [16, 32, 256])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_other_head_dims(dtype: torch.dtype, head_dim: int) -> None:
    case = gpu_case([(500, 1), (300, 200), (64, 64)], head_dim=head_dim, dtype=dtype)
    out = run_decode(case, splits=3, starts=True)
    assert_near(run_prefill(case, out, skip_single=True), case.expected)


@pytest.mark.parametrize("group", [3, 7, 32])
def test_other_groups(group: int) -> None:
    case = gpu_case([(500, 1), (300, 200)], group=group, head_dim=64, dtype=torch.bfloat16)
    out = run_decode(case, splits=3, starts=True)
    assert_near(run_prefill(case, out, skip_single=True), case.expected)


@pytest.mark.parametrize("place", [0, 100, 255])
def test_one_16k_sequence_among_255_short_ones(place: int) -> None:
    lengths = [1 + 37 * i % 200 for i in range(256)]
    lengths[place] = 16_384
    case = gpu_case(
        [(length, 1) for length in lengths],
        kv_heads=8, group=2, head_dim=128, dtype=torch.bfloat16,
    )  # fmt: skip
    assert_near(run_decode(case), case.expected)
    assert_near(run_decode(case, starts=True), case.expected)


def test_a_pool_of_more_than_two_billion_elements() -> None:
    """The last blocks' offsets do not fit 32 bits; K and V take 4.3 GB each."""
    elements = 16 * 8 * 128
    case = gpu_case(
        [(300, 1), (500, 200)],
        kv_heads=8, head_dim=128, dtype=torch.bfloat16, num_blocks=2**31 // elements + 100,
    )  # fmt: skip
    assert int(case.block_tables.min()) * elements > 2**31
    out = run_decode(case, splits=2, starts=True)
    assert_near(run_prefill(case, out, skip_single=True), case.expected)


class TestGraphs:
    def capture(self, run: Any) -> tuple[Any, Any]:
        run()  # compiles
        torch.cuda.synchronize()
        graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = run()
        return graph, out

    def replay_on(self, case: AttentionCase, other: AttentionCase, run: Any) -> Any:
        """Capture on one batch, then replay with the contents of another."""
        graph, out = self.capture(run)
        for old, new in zip(case.inputs, other.inputs, strict=True):
            old.copy_(new)
        out.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        return out

    @pytest.mark.parametrize("count", [1, 8, 200])
    def test_decode_with_changed_contents(self, count: int) -> None:
        """Captured on single tokens, replayed on long contexts, with padding among them."""
        lengths = [(1 + 331 * i) % 1500 + 1 for i in range(count - count // 8)]
        sizes: dict[str, Any] = {
            "kv_heads": 8, "head_dim": 128, "dtype": torch.bfloat16,
            "num_blocks": sum(-(-x // 16) for x in lengths) + count + 1, "max_blocks": 96,
        }  # fmt: skip
        case = gpu_case([(1, 1)] * count, **sizes)
        padding = count // 8
        other = gpu_case(
            [(x, 1) for x in lengths], padding_seqs=padding, padding_tokens=padding, **sizes
        )
        out = self.replay_on(case, other, lambda: run_decode(case))
        assert_near(out, other.expected)

    def test_mixed_step_with_changed_contents(self) -> None:
        sizes: dict[str, Any] = {
            "kv_heads": 8, "head_dim": 128, "dtype": torch.bfloat16,
            "num_blocks": 800, "max_blocks": 200,
        }  # fmt: skip
        case = gpu_case([(1, 1)] * 5 + [(123, 123)], **sizes)
        other = gpu_case(
            [(900, 1), (3000, 60), (40, 40), (17, 1)], padding_seqs=2, padding_tokens=26, **sizes
        )

        def run() -> torch.Tensor:
            out = run_decode(case, starts=True)
            return run_prefill(case, out, skip_single=True)

        out = self.replay_on(case, other, run)
        assert_near(out, other.expected)

    def test_whole_prompts_with_changed_contents(self) -> None:
        """The copy engine's descriptors hold addresses and sizes, which stay."""
        sizes: dict[str, Any] = {
            "kv_heads": 8, "head_dim": 128, "dtype": torch.bfloat16,
            "num_blocks": 100, "max_blocks": 80,
        }  # fmt: skip
        copies = (False, torch.cuda.get_device_capability()[0] >= 9)
        for use_tma in sorted(set(copies)):
            config = PrefillConfig(128, 64, 8, 3, use_tma=use_tma)
            case = gpu_case([(500, 500), (524, 524)], **sizes)
            other = gpu_case([(1000, 1000)], padding_seqs=1, padding_tokens=24, **sizes)
            out = self.replay_on(case, other, lambda: run_contiguous(case, config=config))  # noqa: B023
            assert_near(out, other.expected)


def test_batch_sizes_share_compiled_variants() -> None:
    """From 2 to 32 sequences one variant serves all: nothing is compiled inside a timed run."""
    from m4_flash.kernels import decode

    def variants() -> int:
        kernels = (decode._decode_kernel, decode._merge_kernel)
        caches = [cache for kernel in kernels for cache in kernel.device_caches.values()]
        return sum(len(cache[0]) for cache in caches)

    config, seen = DecodeConfig(block_n=32, num_warps=2, num_stages=3), []
    for size in (2, 3, 16, 31, 32):
        case = gpu_case([(50, 1)] * size, head_dim=64, dtype=torch.bfloat16)
        assert_near(run_decode(case, splits=3, config=config), case.expected)
        seen.append(variants())
    assert len(set(seen)) == 1


class TestPeer:
    def test_prefill_equals_flash_attention(self) -> None:
        flash_attn = pytest.importorskip("flash_attn")
        case = gpu_case(
            [(1000, 1000), (17, 17), (2048, 2048)], kv_heads=8, head_dim=128, dtype=torch.bfloat16
        )
        theirs = flash_attn.flash_attn_varlen_func(
            case.q, case.k, case.v, case.cu_seqlens_q, case.cu_seqlens_q, 2048, 2048,
            softmax_scale=case.scale, causal=True,
        )  # fmt: skip
        assert_near(theirs, case.expected)
        assert_near(run_contiguous(case), theirs.float())
        assert_near(run_prefill(case), theirs.float())

    def test_decode_equals_flash_attention(self) -> None:
        flash_attn = pytest.importorskip("flash_attn")
        case = gpu_case(
            [(1000, 1), (17, 1), (8192, 1)],
            kv_heads=8, head_dim=128, block_size=256, dtype=torch.bfloat16,
        )  # fmt: skip
        theirs = flash_attn.flash_attn_with_kvcache(
            case.q.unsqueeze(1), case.k_cache, case.v_cache, cache_seqlens=case.seq_lens,
            block_table=case.block_tables, softmax_scale=case.scale, causal=True,
        ).squeeze(1)  # fmt: skip
        assert_near(theirs, case.expected)
        assert_near(run_decode(case), theirs.float())


def test_tune_one_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole script on small shapes, with candidates that cannot fit any GPU."""
    from m4_flash.benchmarks import tune

    fits, too_large = PrefillConfig(64, 32, 4, 2), PrefillConfig(128, 128, 8, 8)
    monkeypatch.setattr(tune, "prefill_candidates", lambda **_: [too_large, fits])
    deep = DecodeConfig(128, 4, 12)
    monkeypatch.setattr(tune, "decode_candidates", lambda: [deep, DecodeConfig(32, 4, 2)])
    args = argparse.Namespace(out=tmp_path, head_dim=[64, 128], repeat=2, kind=None)
    assert tune._measure(args, ((2, 300),), ((32, 300),), ((2, 300), (40, 100))) == 0
    (path,) = tmp_path.glob("*.json")
    table = read_table(path)
    assert {entry.config for entry in table.prefill} == {fits}
    assert {(entry.kind, entry.head_dim) for entry in table.decode} == {
        (kind, width) for kind in ("decode_few", "decode_many") for width in (64, 128)
    }
    (result,) = (x for x in read_results(tmp_path) if x.benchmark == "tune")
    assert any("skipped" in note for note in result.notes)
