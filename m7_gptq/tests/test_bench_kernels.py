"""The kernel benchmark: what it compares, what it counts, and that a CPU leaves kernels out."""

from __future__ import annotations

from argparse import Namespace

import pytest
import torch

from common.results import Result, read_result
from common.timing import Measurement
from m1_basic.benchmarks.command import bench
from m4_flash.benchmarks.attention import COLD_BYTES, MOST_COPIES
from m7_gptq.benchmarks import kernel_layers, kernels
from m7_gptq.benchmarks.kernel_layers import Shape
from m7_gptq.kernels.read import LARGE, SMALL, read_words


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """On a CPU; the model is not read."""
    out = tmp_path_factory.mktemp("out")
    command = ["--smoke", "--model", "none", "--device", "cpu", "--out", str(out)]
    assert bench("m7_gptq", ("kernels",), [*command, "--repeat", "2"]) == 0
    (path,) = out.glob("*/m7_gptq-kernels.json")
    return read_result(path)


def smoke(dtype: str = "auto") -> Namespace:
    return Namespace(device="cpu", dtype=dtype, smoke=True, repeat=1)


class TestOnACpu:
    def test_the_reference_against_the_dense_product(self, result: Result) -> None:
        assert kernels.CPU_NOTE in result.notes
        assert {row["kernel"] for row in result.rows} == {"torch", "reference"}
        for batch in (1, 17):
            own = {"shape": "64x256", "batch": batch}
            times = {r["kernel"]: r["median"] for r in result.select(metric="time", **own)}
            assert set(times) == {"torch", "reference"}
            assert all(time > 0 for time in times.values())
            (difference,) = result.select(metric="max_difference", **own)
            assert difference["median"] < 1e-4
            (over,) = result.select(metric="time_over_dense", **own)
            assert over["n"] == 2

    def test_the_summary(self, result: Result) -> None:
        over = result.select(metric="time_over_dense", batch=1)[0]["median"]
        assert kernels.summary(result) == (
            f"m7_gptq kernels: need a GPU; the reference takes {over:.3g} times as long as the "
            f"dense product at 64x256, batch 1"
        )


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-4), ("float16", 4e-3)])
def test_kernel_rows_on_the_interpreter(dtype: str, bound: float) -> None:
    """All kernels agree; their times mean nothing here. The tensor cores are not for float32."""
    rows = kernels.shape_rows(Shape("tiny", 8, 128), smoke(dtype), 1, 1e9)
    assert {(r["batch"], r["kernel"]) for r in rows if r["metric"] == "time"} == {
        (1, "cublas"), (1, "gemv"), (1, "gemm"), (1, "dense"), (1, "read"),
        (17, "cublas"), (17, "gemm"), (17, "dense"), (17, "read"),
        *([(1, "few_rows"), (17, "few_rows")] if dtype == "float16" else []),
    }  # fmt: skip
    assert all(r["median"] < bound for r in rows if r["metric"] == "max_difference")
    limits = [r["limit"] for r in rows if r["metric"] == "crossover"]
    assert limits == ["gemv_rows", "few_rows", "gemm_rows"]


def test_rates_and_ratios_are_counts_over_times() -> None:
    seconds = {"cublas": 4.0, "gemv": 2.0, "read": 1.0}
    taken = {name: Measurement((value, 2 * value)) for name, value in seconds.items()}
    sizes = {"cublas": 16_000_000_000, "gemv": 4_000_000_000, "read": 4_000_000_000}
    rows = kernels.kernel_rows(taken, sizes, {"gemv": 0.125}, 8e9, {"shape": "a", "batch": 1})
    found = {(row["kernel"], row["metric"]): row["max"] for row in rows}
    assert found["cublas", "weight_rate"] == 4
    assert found["gemv", "weight_rate"] == 2
    assert found["gemv", "share_of_copy"] == 0.25
    assert found["gemv", "time_over_read"] == 2
    assert found["gemv", "speedup_over_cublas"] == 2
    assert found["gemv", "max_difference"] == 0.125
    assert ("read", "time_over_read") not in found


@pytest.mark.parametrize(
    ("fastest", "limits"),
    [
        (["gemv", "few_rows", "gemm", "dense"], [1, 2, 4]),
        (["gemv", "gemv", "gemm", "dense"], [2, 2, 4]),
        (["gemm", "gemv", "dense", "gemm"], [0, 0, 2]),
        (["few_rows", "gemv", "gemv", "few_rows"], [0, 8, 8]),
        (["dense", "gemv", "gemm", "dense"], [0, 0, 0]),
    ],
)
def test_crossover(fastest: list[str], limits: list[int]) -> None:
    by_rows = dict(zip((1, 2, 4, 8), fastest, strict=True))
    rows = kernels.crossover_rows(Shape("a", 8, 128), by_rows)
    assert [row["median"] for row in rows] == limits


def test_random_weights_keep_the_size_of_x() -> None:
    for bits in (4, 8):
        weight = kernel_layers.random_weight(Shape("a", 256, 512, bits), "cpu").dequantised()
        deviation = float((torch.randn(64, 512) @ weight.T).std())
        assert 0.8 < deviation < 1.3


def test_sizes() -> None:
    gpu, cpu = (Namespace(smoke=False, device=name) for name in ("cuda", "cpu"))
    assert [(s.outputs, s.inputs, s.bits) for s in kernel_layers.shapes_of(gpu)] == [
        (4096, 1024, 4), (1024, 2048, 4), (6144, 1024, 4), (1024, 3072, 4), (8192, 8192, 4),
        (151936, 1024, 8),
    ]  # fmt: skip
    assert kernel_layers.shapes_of(cpu) == list(kernel_layers.QWEN3)
    assert kernel_layers.batches_of(gpu)[-1] == 256
    assert kernel_layers.batches_of(cpu) == (1, 16)
    assert kernel_layers.copies_of(COLD_BYTES // 3, "cuda") == 4
    assert kernel_layers.copies_of(1, "cuda") == MOST_COPIES
    assert kernel_layers.copies_of(1, "cpu") == 1


def test_the_summary_of_a_gpu() -> None:
    own = {"kernel": "few_rows early", "batch": 1, "bits": 4, "shape": "8192x8192"}
    rows = [
        {**own, "metric": "time_over_read", "median": 1.25, "shape": "small"},
        {**own, "metric": "time_over_read", "median": 1.125},
        {**own, "metric": "share_of_copy", "median": 0.75},
        {**own, "metric": "speedup_over_cublas", "median": 3.0},
    ]
    found = Namespace(select=lambda **want: [r for r in rows if want.items() <= r.items()])
    line = kernels.summary(found)  # type: ignore[arg-type]
    assert line == (
        "m7_gptq kernels, one row at 8192x8192: 75.0% of copy bandwidth, 1.12 times as long as a "
        "read, 3 times as fast as cuBLAS"
    )


@pytest.mark.parametrize("size", [1, SMALL, SMALL + 1, 5000])
def test_a_read_sees_every_word(size: int) -> None:
    words = torch.arange(-size, 0, dtype=torch.int32)
    shares = torch.split(words, SMALL)
    assert read_words(words).tolist() == [int(share.max()) for share in shares]


def test_large_reads_have_more_words_per_program() -> None:
    words = torch.arange(256 * LARGE, dtype=torch.int32)
    assert read_words(words).tolist() == [LARGE * share - 1 for share in range(1, 257)]
