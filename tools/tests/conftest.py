from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tools.docs_build.context import PageContext
from tools.docs_build.results import RESULTS_DIR, Results

RESULT_NAME = "cpu-test-2c/m1_basic-latency"


def _row(engine: str, tokens: int, metric: str, unit: str, median: float) -> dict[str, Any]:
    measured = {"median": median, "min": median * 0.9, "max": median * 1.2, "spread": 0.3, "n": 3}
    return {"engine": engine, "prompt_tokens": tokens, "metric": metric, "unit": unit, **measured}


def result_data() -> dict[str, Any]:
    rows = [
        _row("m1_basic", 128, "ttft", "s", 0.2),
        _row("m1_basic", 512, "ttft", "s", 0.8),
        _row("transformers", 128, "ttft", "s", 0.3),
        _row("transformers", 512, "ttft", "s", 1.2),
        _row("m1_basic", 512, "throughput", "tok/s", 14.25),
    ]
    return {
        "schema": "folovllm.result",
        "version": 1,
        "stage": "m1_basic",
        "benchmark": "latency",
        "device": {"kind": "cpu", "name": "Test CPU", "cores": 2, "memory_bytes": 2**34},
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "created": "2026-11-23T12:00:00Z",
        "command": "python -m m1_basic.benchmarks",
        "workload": {
            "name": "fixed",
            "hash": "f" * 64,
            "seed": 0,
            "num_requests": 4,
            "prompt_tokens": 2048,
            "max_output_tokens": 64,
        },
        "config": {},
        "rows": rows,
        "notes": ["Random weights of the full shape."],
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write a file of a checkout under ``tmp_path``."""

    def _write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return _write


@pytest.fixture
def result_file(write: Callable[[str, str], Path]) -> Path:
    return write(f"{RESULTS_DIR}/{RESULT_NAME}.json", json.dumps(result_data()))


@pytest.fixture
def context(tmp_path: Path) -> PageContext:
    """A page two folders deep in a checkout under ``tmp_path``."""
    pages = {"docs/benchmarks/index.md": "benchmarks/index.md", "docs/learn/a.md": "learn/a.md"}
    return PageContext(tmp_path, "docs/learn/a.md", "learn/a.md", Results(tmp_path), pages)
