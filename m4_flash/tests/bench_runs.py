"""What the tests of this stage's benchmarks share."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from common.results import Result, read_result
from common.testing.checkpoints import tiny_config, write_checkpoint
from m1_basic.benchmarks.command import bench

NAMES = ("attention", "latency", "throughput", "startup", "few_rows")


def bench_args(model: Path) -> Namespace:
    """The command line of a smoke run on a CPU."""
    return Namespace(
        model=str(model), dtype="auto", device="cpu", repeat=2, smoke=True, full=False
    )  # fmt: skip


def write_half_model(folder: Path) -> Path:
    """A tiny bfloat16 Qwen3 with all ids of the workloads, and heads for FlashAttention-2."""
    config = tiny_config("qwen3", vocab=10_240, head_dim=64)
    return write_checkpoint(folder, config, dtype="bfloat16", tokenizer=True)


def run_bench(name: str, model: Path, out: Path, device: str, *more: str) -> Result:
    """One benchmark at its smallest, one round; what it wrote."""
    command = ["--smoke", "--model", str(model), "--device", device, "--out", str(out), *more]
    assert bench("m4_flash", NAMES, [*command, "--only", name, "--repeat", "1"]) == 0
    (path,) = out.glob(f"*/m4_flash-{name}.json")
    return read_result(path)
