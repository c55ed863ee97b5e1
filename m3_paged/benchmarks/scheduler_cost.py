"""What deciding a step costs: scheduler and cache manager at 256 running sequences, no model."""

from __future__ import annotations

import time
from argparse import Namespace

from common.results import Result, make_result, row
from common.workload import fixed
from m3_paged.benchmarks import simulate


def run(args: Namespace, notes: list[str]) -> tuple[Result, str]:
    """Time decode steps with few and with many requests in the waiting queue.

    Args:
        args: The benchmark's command line.
        notes: Sentences for the result file.

    Returns:
        The result and the summary line.
    """
    running = 8 if args.smoke else 256
    rows = []
    for waiting in (10, 100) if args.smoke else (100, 10_000):
        times = _step_times(running, waiting, rounds=5 if args.smoke else 60)
        rows.append(row("step_time", "s", times, running=running, waiting=waiting))
    result = make_result(
        "m3_paged", "scheduler_cost", rows, device="cpu",
        config={"running": running, "prompt_tokens": 300, "block_size": 16}, notes=notes,
    )  # fmt: skip
    slowest = max(item["median"] for item in rows)
    return result, f"m3_paged: {slowest * 1e6:.0f} µs to decide a step of {running} sequences"


def _step_times(running: int, waiting: int, rounds: int) -> list[float]:
    """Seconds of each step while every seat is taken and nobody finishes."""
    scheduler = simulate.block_scheduler(running * 40, 16, 4096, running * 300, running)
    simulate.add_all(scheduler, fixed(running + waiting, 300, 200))
    simulate.step(scheduler)  # admits everybody who has a seat
    assert len(scheduler.running) == running
    assert len(scheduler.waiting) == waiting
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        simulate.step(scheduler)
        times.append(time.perf_counter() - begin)
    return times
