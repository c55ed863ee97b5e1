"""Seconds from nothing to an engine that serves: import, weights, pool and kernels, graphs.

Each run is a process of its own. With a cold Triton cache the kernels are compiled, with a warm one
they are read from disk; the cache lies in a folder made for this benchmark, so the user's own is
neither read nor filled.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

from common.errors import FoloError
from common.results import Result, Row, make_result, row
from m4_flash.benchmarks.engines import announce, model_of, release

MOST = 2
"""Processes with the same cache, whatever ``--repeat`` says: each builds a whole engine."""
TIMEOUT = 300.0
"""Seconds after which a start has failed."""

NOTE = (
    "build is the constructor of the engine: load, pool and graphs; pool is what is left of it: "
    "the profiling step, compiling what that needs, and reserving memory. A request of its own "
    "follows twice: what the first takes longer was not ready"
)


class StartError(FoloError, RuntimeError):
    """A process that should have built an engine failed."""


def run(args: Namespace, notes: list[str]) -> tuple[Result, str]:
    """Start engines, with a cold and with a warm cache of kernels where there are kernels.

    Args:
        args: The benchmark's command line.
        notes: Sentences for the result file.

    Returns:
        The result and the summary line.

    Raises:
        StartError: A process failed.
    """
    announce("startup", args, 130, 20)
    gpu = args.device.startswith("cuda")
    release(args.device)  # the processes need the memory
    count = 1 if args.smoke else min(args.repeat, MOST)
    plan = [("cold", 1), ("warm", count)] if gpu else [("unused", count)]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for cache, count in plan:
            rows += start_rows([start(args, Path(folder)) for _ in range(count)], cache)
    result = make_result(
        "m4_flash", "startup", rows, device=args.device,
        config={"model": args.model, "dtype": model_of(args)[1]}, notes=[*notes, NOTE],
    )  # fmt: skip
    last = result.select(metric="build", triton_cache=plan[-1][0])[0]
    return result, f"m4_flash: {last['median']:.1f} s to build an engine, cache {plan[-1][0]}"


def start(args: Namespace, cache: Path) -> dict[str, float | str]:
    """One engine in a process of its own; what :mod:`m4_flash.benchmarks.startup_child` prints.

    Args:
        args: The benchmark's command line.
        cache: Folder of compiled kernels.

    Raises:
        StartError: The process failed or took too long.
    """
    command = [sys.executable, "-m", "m4_flash.benchmarks.startup_child"]
    command += [args.model, args.dtype, args.device]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=TIMEOUT
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise StartError(f"an engine was not ready after {TIMEOUT:g} s") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise StartError(f"a process that builds an engine ended with {done.returncode}: {reason}")
    measured: dict[str, float | str] = json.loads(done.stdout.splitlines()[-1])
    return measured


def start_rows(runs: list[dict[str, float | str]], cache: str) -> list[Row]:
    """A row per phase; runs of one plan have the same ones."""
    labels = {"engine": "m4_flash", "backend": runs[0].pop("backend"), "triton_cache": cache}
    count = float(runs[0].pop("num_graphs"))
    seconds = {phase: [float(item[phase]) for item in runs] for phase in runs[0]}
    return [
        row("num_graphs", "count", count, **labels),
        *(row(phase, "s", values, **labels) for phase, values in seconds.items()),
    ]
