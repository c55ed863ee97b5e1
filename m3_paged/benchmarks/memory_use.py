"""How much of the KV memory holds tokens: fixed slots against blocks, at equal memory.

The schedules are the engines' own, run without a model (see ``simulate``), so these are counts and
not measurements: they hold on every device.
"""

from __future__ import annotations

import random
from argparse import Namespace
from collections.abc import Callable, Iterable
from statistics import fmean

from common.request import Sequence
from common.results import Result, Row, make_result, row
from common.workload import Workload, random_lengths
from m3_paged.benchmarks import simulate
from m3_paged.benchmarks.contiguous import ContiguousAllocator
from m3_paged.block_pool import BlockPool, KVCacheBlock

MAX_MODEL_LEN = 2048
BUDGET = 8192


def run(args: Namespace, notes: list[str]) -> tuple[Result, str]:
    """Count stored tokens over allocated and over all places while requests wait.

    Args:
        args: The benchmark's command line.
        notes: Sentences for the result file.

    Returns:
        The result and the summary line.
    """
    workload = random_lengths()
    slots = 4 if args.smoke else 32
    if args.smoke:
        workload = workload.subset(16)
    places = slots * MAX_MODEL_LEN
    rows = _usage_rows("m2_batching", None, _slots(workload, slots), places)
    for size in (8, 16, 32, 64, 128, 256):
        rows += _usage_rows("m3_paged", size, _blocks(workload, places // size, size), places)
    rows += fragmentation_rows(10_000)
    result = make_result(
        "m3_paged", "memory_use", rows, device="cpu", workload=workload,
        config={"max_model_len": MAX_MODEL_LEN, "places": places, "budget": BUDGET},
        notes=[*notes, "Counts of the real schedulers without a model; the same on every device."],
    )  # fmt: skip
    (share,) = result.select(metric="stored_of_allocated", engine="m3_paged", block_size=16)
    return result, f"m3_paged: {share['median']:.1%} of allocated places hold tokens"


def _slots(workload: Workload, slots: int) -> list[simulate.Usage]:
    scheduler = simulate.slot_scheduler(slots, MAX_MODEL_LEN, BUDGET)
    simulate.add_all(scheduler, workload)
    return list(simulate.run(scheduler, lambda _: MAX_MODEL_LEN, slots * MAX_MODEL_LEN))


def _blocks(workload: Workload, num_blocks: int, size: int) -> list[simulate.Usage]:
    scheduler = simulate.block_scheduler(num_blocks, size, MAX_MODEL_LEN, BUDGET, 256)
    simulate.add_all(scheduler, workload)

    def places_of(sequence: Sequence) -> int:
        return scheduler.manager.num_blocks(sequence) * size

    return list(simulate.run(scheduler, places_of, num_blocks * size))


def _usage_rows(
    engine: str, size: int | None, usage: Iterable[simulate.Usage], places: int
) -> list[Row]:
    """Means over the steps in which requests waited for memory: the pool was the limit."""
    steps = list(usage)
    full = [step for step in steps if step.waiting and step.running]
    labels: dict[str, str | int | None] = {"engine": engine, "block_size": size}

    def mean(value: Callable[[simulate.Usage], float]) -> float:
        return fmean(map(value, full))

    unused = mean(lambda u: (u.allocated - u.stored) / u.running)
    return [
        row("stored_of_allocated", "share", mean(lambda u: u.stored / u.allocated), **labels),
        row("stored_of_pool", "share", mean(lambda u: u.stored / places), **labels),
        row("running", "count", mean(lambda u: u.running), **labels),
        row("unused_per_sequence", "tokens", unused, **labels),
        row("steps", "count", float(len(steps)), **labels),
    ]


def fragmentation_rows(operations: int) -> list[Row]:
    """Random arrivals and departures: what is refused although enough places are free.

    A pool of blocks and a contiguous first-fit allocator of the same size see the same requests.
    """
    rng, blocks = random.Random(0), 4096
    pool, arena = BlockPool(blocks), ContiguousAllocator(blocks)
    held: list[list[KVCacheBlock]] = []
    spans: list[int] = []
    refused = {"m3_paged": 0, "contiguous": 0}
    asked = {"m3_paged": 0, "contiguous": 0}
    for _ in range(operations):
        want = rng.randint(1, 128)
        leave = rng.random()
        if pool.num_free >= want:
            asked["m3_paged"] += 1
            taken = pool.allocate(want)
            refused["m3_paged"] += taken is None
            held += [taken] if taken else []
        if (held and leave < 0.5) or pool.num_free < 128:
            pool.free(held.pop(int(leave * len(held)) % len(held)))
        if arena.num_free >= want:
            asked["contiguous"] += 1
            start = arena.allocate(want)
            refused["contiguous"] += start is None
            spans += [start] if start is not None else []
        if spans and (leave < 0.5 or arena.num_free < 128):
            arena.free(spans.pop(int(leave * len(spans)) % len(spans)))
    rows = []
    for name, count in refused.items():
        rows.append(row("fitting_requests", "count", float(asked[name]), engine=name))
        rows.append(row("refused_although_free", "share", count / asked[name], engine=name))
    return rows
