"""Benchmarks at their smallest, on a tiny model with known ceilings, for the tests of M2 and M3."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from common.metrics import Peak
from common.outputs import RequestOutput
from common.results import Result, read_result
from common.serve import run_batch
from common.testing.checkpoints import tiny_config, write_checkpoint
from common.workload import Workload
from m1_basic.benchmarks.command import bench

BANDWIDTH, FLOPS = 1e9, 1e12
"""Ceilings under which a step of the tiny model is bound by its bytes."""

SERVED = {
    "output_throughput": "tok/s",
    "total_throughput": "tok/s",
    "duration": "s",
    **{f"{name}_{point}": "s" for name in ("ttft", "tpot", "itl") for point in ("p50", "p99")},
    "largest_gap": "s",
}
"""The units of what is measured of a served workload."""


@dataclass
class SmokeRun:
    """What a run of a stage's benchmarks did.

    Attributes:
        results: What it wrote, by benchmark.
        text: The files.
        printed: Its standard output.
        served: Stage of the engine, requests and outputs of each ``run_batch``, in order.
    """

    results: dict[str, Result]
    text: str
    printed: str
    served: list[tuple[str, Workload, list[RequestOutput]]]

    @property
    def summaries(self) -> list[str]:
        """The last line of each benchmark: what follows where its file was written."""
        lines = self.printed.splitlines()
        return [lines[i + 1] for i, line in enumerate(lines) if line.startswith("written: ")]


def write_wide_model(folder: Path) -> Path:
    """A tiny Qwen3 that has every id of the workloads' prompts, up to 10,000."""
    return write_checkpoint(folder, tiny_config("qwen3", vocab=10_240), tokenizer=True)


def smoke(
    stage: str, names: Sequence[str], model: Path, out: Path, throughput: ModuleType, repeat: int
) -> SmokeRun:
    """Run a stage's benchmarks at smoke size.

    Args:
        stage: Folder name of the stage.
        names: Its benchmarks.
        model: Checkpoint from :func:`write_wide_model`.
        out: Results folder.
        throughput: The stage's module of this name; its ``run_batch`` is watched, its ceilings
            are :data:`BANDWIDTH` and :data:`FLOPS`.
        repeat: Recorded rounds.
    """
    served: list[tuple[str, Workload, list[RequestOutput]]] = []
    bandwidth, flops = Peak(BANDWIDTH, "measured", "a device"), Peak(FLOPS, "measured", "a device")

    def watched(engine: Any, workload: Workload) -> list[RequestOutput]:
        outputs = run_batch(engine, workload)
        served.append((type(engine).__module__.split(".")[0], workload, outputs))
        return outputs

    command = ["--smoke", "--model", str(model), "--device", "cpu", "--out", str(out)]
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as printed,
    ):
        patch.setattr(throughput, "run_batch", watched)
        # Measuring a ceiling takes longer than everything else here.
        patch.setattr(throughput, "measured_bandwidth", lambda _device: bandwidth)
        patch.setattr(throughput, "measured_flops", lambda _device, _dtype: flops)
        assert bench(stage, names, [*command, "--repeat", str(repeat)]) == 0
    files = sorted(out.glob(f"*/{stage}-*.json"))
    results = {result.benchmark: result for result in map(read_result, files)}
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    return SmokeRun(results, text, printed.getvalue(), served)


def medians(result: Result, **labels: str | int | None) -> dict[str, float]:
    """The medians of the rows with these labels, by metric; each metric is there once."""
    rows = result.select(**labels)
    values = {str(row["metric"]): float(row["median"]) for row in rows}
    assert len(values) == len(rows)
    return values
