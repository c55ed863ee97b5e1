"""The attention benchmark: everybody computes the same from cold inputs, and rates are counted."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.results import Result
from m1_basic.attention import naive_attention
from m2_batching.tests.bench_runs import medians
from m4_flash.benchmarks import attention
from m4_flash.benchmarks.attention import Passes, Shape, WrongResultError
from m4_flash.benchmarks.attention_cases import (
    SCALE,
    Batch,
    decode_variants,
    make_batch,
    make_pages,
    prefill_variants,
)
from m4_flash.tests.bench_runs import bench_args, run_bench, write_half_model


@pytest.fixture
def args() -> Namespace:
    return bench_args(Path("none"))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The model is not read."""
    return run_bench("attention", Path("none"), tmp_path_factory.mktemp("out"), "cpu")


def expected(batch: Batch) -> Tensor:
    """M1's attention for each sequence."""
    parts = zip(
        torch.split(batch.q, list(batch.query_lens)),
        torch.split(batch.k, list(batch.context_lens)),
        torch.split(batch.v, list(batch.context_lens)),
        strict=True,
    )
    return torch.cat([naive_attention(q, k, v, SCALE) for q, k, v in parts])


class TestAttentionCases:
    @pytest.mark.parametrize("block_size", [16, 256])
    def test_pages_hold_each_context_in_order(self, block_size: int) -> None:
        batch = make_batch((1, 1, 1), (5, 16, 33), "cpu", torch.float32)
        pages = make_pages(batch, block_size)
        counts = [-(-length // block_size) for length in batch.context_lens]
        assert len(pages.k_cache) == sum(counts)
        used = [int(b) for row, n in zip(pages.block_tables, counts, strict=True) for b in row[:n]]
        assert sorted(used) == list(range(sum(counts))), "every block belongs to one sequence"
        for cache, flat in ((pages.k_cache, batch.k), (pages.v_cache, batch.v)):
            begin = 0
            for row, length in enumerate(batch.context_lens):
                own = cache[pages.block_tables[row].long()].flatten(0, 1)[:length]
                assert torch.equal(own, flat[begin : begin + length])
                begin += length

    def test_blocks_are_scattered(self) -> None:
        pages = make_pages(make_batch((1,), (320,), "cpu", torch.float32), 16)
        assert pages.block_tables[0].tolist() != sorted(pages.block_tables[0].tolist())

    @pytest.mark.parametrize("lens", [(20, 20), (33,)], ids=str)
    def test_prompts_are_causal_attention(self, lens: tuple[int, ...]) -> None:
        batch = make_batch(lens, lens, "cpu", torch.float32)
        variants = prefill_variants(("naive", "sdpa", "triton"))
        assert [variant.name for variant in variants] == [
            "naive contiguous", "sdpa contiguous", "triton contiguous", "triton paged 16",
        ]  # fmt: skip
        for variant in variants:
            torch.testing.assert_close(
                variant.prepare(batch)(), expected(batch), rtol=1e-4, atol=1e-5
            )

    def test_a_query_sees_its_whole_context(self) -> None:
        batch = make_batch((1, 1), (5, 33), "cpu", torch.float32)
        variants = decode_variants(("triton",))
        assert [variant.name for variant in variants] == [
            "m3_paged paged 16", "triton paged 16", "triton paged 256",
        ]  # fmt: skip
        for variant in variants:
            torch.testing.assert_close(
                variant.prepare(batch)(), expected(batch), rtol=1e-4, atol=1e-5
            )

    def test_the_library_is_timed_where_it_is_usable(self) -> None:
        assert [v.name for v in prefill_variants(("flash_attn",))] == [
            "flash_attn contiguous", "flash_attn paged 256",
        ]  # fmt: skip
        assert decode_variants(("flash_attn",))[-1].name == "flash_attn paged 256"


class TestAttention:
    def test_naive_against_sdpa_on_a_cpu(self, result: Result) -> None:
        timed = {"time": ("s", 1), "compute_rate": ("TFLOP/s", 1)}
        compared = {"speedup_over_naive": ("ratio", 1), "max_difference": ("abs", 1)}
        for shape in ("1x16", "1x32"):
            for backend, more in (("naive", {}), ("sdpa", compared)):
                labels = {"part": "prefill", "layout": "contiguous", "graphs": False}
                rows = result.select(shape=shape, backend=backend, **labels)
                found = {row["metric"]: (row["unit"], row["n"]) for row in rows}
                assert found == timed | more
        assert len(result.rows) == 2 * 6
        assert result.config["dtype"] == "float32"

    def test_rates_are_counts_over_times(self, result: Result) -> None:
        value = medians(result, shape="1x32", backend="sdpa")
        flops = 2 * 16 * 128 * 32**2
        assert value["compute_rate"] * value["time"] == pytest.approx(flops / 1e12)
        assert value["max_difference"] < 1e-4
        shape = Shape("ragged", (3, 5))
        assert shape.causal_flops == 2 * 16 * 128 * (9 + 25)
        assert shape.kv_bytes(2) == 2 * 8 * 128 * 8 * 2

    def test_decode_rows(self, args: Namespace) -> None:
        """On the interpreter, whose times mean nothing."""
        (shape,) = attention.decode_shapes(args)
        variants = decode_variants(("triton",))[:2]
        rows = attention.shape_rows(shape, variants, args, 1, decode=True)
        assert {(r["part"], r["shape"], r["layout"]) for r in rows} == {("decode", "2x20", "paged")}
        found = [(r["backend"], r["block_size"]) for r in rows if r["metric"] == "kv_rate"]
        assert found == [("m3_paged", 16), ("triton", 16)]
        by_metric = {r["metric"]: r["median"] for r in rows if r["backend"] == "m3_paged"}
        moved = 40 * 2 * 8 * 128 * 4
        assert by_metric["kv_rate"] * by_metric["time"] == pytest.approx(moved / 1e9)
        ratios = [r["median"] for r in rows if r["metric"] == "speedup_over_m3_paged"]
        assert len(ratios) == 1

    @pytest.mark.parametrize("value", [1.0, float("nan")])
    def test_a_wrong_kernel_is_not_timed(self, value: float) -> None:
        outputs = {"naive": torch.zeros(2), "theirs": torch.tensor([0.0, value])}
        with pytest.raises(WrongResultError, match=f"theirs differs .* by {value:g};"):
            attention.differences(outputs)

    def test_a_pass_walks_through_all_inputs(self) -> None:
        seen: list[int] = []

        def call(number: int) -> Callable[[], Tensor]:
            def run() -> Tensor:
                seen.append(number)
                return torch.zeros(1)

            return run

        passes = Passes("cpu")
        assert not passes.graphs
        assert passes.timer([call(0), call(1)])() >= 0
        assert seen == [0, 1]

    def test_inputs_of_a_gpu_exceed_its_cache(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(attention, "make_batch", fake_batch)
        shape = Shape("1x512", (512,))
        batches = attention.cold_batches(shape, "cuda", torch.bfloat16, decode=True)
        sizes = [b.q.nbytes + b.k.nbytes + b.v.nbytes for b in batches]
        assert sum(sizes) >= attention.COLD_BYTES > sum(sizes[:-1])
        assert {b.query_lens for b in batches} == {(1,)}
        tiny = attention.cold_batches(Shape("1x1", (1,)), "cuda", torch.bfloat16, decode=True)
        assert len(tiny) == attention.MOST_COPIES
        one = attention.cold_batches(shape, "cpu", torch.bfloat16, decode=False)
        assert [b.query_lens for b in one] == [(512,)]

    def test_sizes(self) -> None:
        def names(shapes: list[Shape]) -> list[str]:
            return [shape.name for shape in shapes]

        gpu, cpu = (Namespace(smoke=False, device=name) for name in ("cuda", "cpu"))
        assert names(attention.prefill_shapes(gpu)) == [
            "32x512", "1x2048", "8x2048", "1x8192", "4x8192",
        ]  # fmt: skip
        assert names(attention.prefill_shapes(cpu)) == ["1x128", "1x256", "1x512", "1x1024"]
        shapes = {shape.name: shape.lens for shape in attention.decode_shapes(gpu)}
        ragged, mixed = shapes["256 of 100-2000"], shapes["16384 among 255x100"]
        assert (len(ragged), min(ragged) >= 100, max(ragged) <= 2000) == (256, True, True)
        assert sorted(mixed) == [100] * 255 + [16384]
        assert [len(lens) for lens in shapes.values()] == [256, 256, 32, 1, 1, 1, 256]

    def test_the_element_type_is_the_users(self) -> None:
        for device, dtype, wanted in (
            ("cpu", "auto", torch.float32),
            ("cuda", "auto", torch.bfloat16),
            ("cuda", "float16", torch.float16),
        ):
            assert attention.bench_dtype(Namespace(device=device, dtype=dtype)) is wanted

    def test_the_summary_of_a_cpu(self, result: Result) -> None:
        value = medians(result, shape="1x32", backend="sdpa")
        assert attention._summary(result) == (
            f"m4_flash attention, sdpa: {value['compute_rate']:.3g} TFLOP/s at 1x32, "
            f"{value['speedup_over_naive']:.3g} times naive"
        )

    def test_the_summary_of_a_gpu(self) -> None:
        """Our kernels without pages at the longest prompts, over pages at the first batch."""
        own = {"layout": "contiguous", "backend": "triton", "shape": "4x8"}
        rows = [
            {**own, "metric": "compute_rate", "median": 300.0},
            {**own, "metric": "speedup_over_naive", "median": 20.0},
            {"backend": "triton", "metric": "kv_rate", "median": 2800.0, "shape": "256x800"},
        ]
        found = Namespace(select=lambda **want: [r for r in rows if want.items() <= r.items()])
        line = attention._summary(found)  # type: ignore[arg-type]
        assert line == (
            "m4_flash attention, triton: 300 TFLOP/s at 4x8, 20 times naive; 2,800 GB/s at 256x800"
        )


def fake_batch(
    queries: tuple[int, ...],
    keys: tuple[int, ...],
    _device: str,
    dtype: torch.dtype,
    _seed: int = 0,
) -> Batch:
    """Shapes without memory."""
    q, k = (torch.empty(sum(lens), heads, 128, dtype=dtype, device="meta")
            for lens, heads in ((queries, 16), (keys, 8)))  # fmt: skip
    return Batch(queries, keys, q, k, k)


@pytest.mark.gpu
def test_attention_on_a_gpu(tmp_path: Path) -> None:
    result = run_bench("attention", write_half_model(tmp_path / "model"), tmp_path, "cuda")
    assert result.config["dtype"] == "bfloat16"
    for part, shape in (("prefill", "1x32"), ("decode", "2x20")):
        rows = result.select(part=part, shape=shape, metric="time", graphs=True)
        assert {"triton"} <= {row["backend"] for row in rows}
        assert all(0 < row["median"] < 0.01 for row in rows)
    left_out = any(note.startswith("flash_attn is left out") for note in result.notes)
    assert left_out != bool(result.select(backend="flash_attn"))
