"""A result made by hand, for the tests of results and of the command that shows them."""

import dataclasses
from typing import Any

from common.environment import DeviceInfo
from common.results import Result, row
from common.workload import fixed

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def result(stage: str = "m1_basic", tpot: float = 0.02, **changes: Any) -> Result:
    rows = (
        row("tpot", "s", [tpot, tpot, tpot * 1.1], engine=stage, prompt_tokens=128),
        row("tpot", "s", 0.05, engine="transformers", prompt_tokens=128),
        row("peak_memory", "B", 2_000_000),
    )
    base = Result(
        stage=stage,
        benchmark="latency",
        device=DeviceInfo("cpu", "AMD EPYC", 2, 8 * 2**30),
        versions={"python": "3.11.7", "torch": "2.13.0"},
        commit=COMMIT,
        created="2026-11-23T12:00:00Z",
        command=f"python -m {stage}.benchmarks",
        workload=fixed(2, 3, 4).info,
        config={"dtype": "float32"},
        rows=rows,
        notes=("random weights",),
    )
    return dataclasses.replace(base, **changes)
