"""Many requests at once: this stage beside the one below, and how busy the GPU is.

On a GPU the workload is nano-vllm's: 256 requests of 100–1024 prompt and 100–1024 output tokens,
sampled. M3 serves a stated part of it, this stage that part in turn with it, and the whole.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from common.bench import serving_rows, summary_line
from common.metrics import mbu, mfu, serving_metrics
from common.model_costs import decode_bytes, linear_flops_per_token, lm_head_flops_per_row
from common.peaks import measured_bandwidth, measured_flops
from common.profiling import profile_kernels
from common.results import Result, Row, make_result, row
from common.serve import run_batch
from common.timing import interleaved_calls
from common.workload import Workload, fixed, random_lengths
from m3_paged.engine import LLMEngine as M3Engine
from m4_flash.benchmarks.engines import (
    Engine,
    announce,
    labels_of,
    m3_engine,
    m4_engine,
    model_of,
    model_shape,
    name_of,
    usable,
)

WINDOW = 32
"""Steps under the profiler."""
AT_LEAST = 5
"""Recorded rounds on a CPU: "not slower" is a median of five runs in turn."""


@dataclass(frozen=True)
class Sizes:
    """What is served, and with how much memory.

    Attributes:
        whole: What this stage serves.
        part: What M3 serves, in turn with this stage.
        batches: Requests of one length, for both stages.
        max_model_len: Longest sequence.
        pool_tokens: Places of this stage's KV pool: nobody is preempted.
        m3_pool_tokens: Places of M3's.
    """

    whole: Workload
    part: Workload
    batches: tuple[Workload, ...]
    max_model_len: int
    pool_tokens: int
    m3_pool_tokens: int

    @property
    def warm_up(self) -> Workload:
        """Two prompts, on a GPU longer together than a graph takes, so that everything compiles."""
        return fixed(2, min(600, self.max_model_len // 2), 4)


def sizes(args: Namespace) -> Sizes:
    """Workloads and pools of the size that was asked for."""
    if args.smoke:
        few = random_lengths(4, (4, 8), (2, 6), temperature=0.0)
        return Sizes(few, few, (fixed(2, 8, 4),), 32, 128, 128)
    if args.device.startswith("cuda"):
        # All 256 together hold at most 170,640 places in blocks of 16, and 202,240 in blocks of
        # 256; the first 96 of them 66,128.
        whole = random_lengths()
        batches = (fixed(16, 512, 128), fixed(64, 512, 128))
        return Sizes(whole, whole.subset(96), batches, 2048, 215_040, 81_920)
    count = 32 if args.full else 12
    some = random_lengths(count, (8, 32), (8, 32), temperature=0.0)
    return Sizes(some, some, (fixed(4, 64, 16),), 96, 96 * count, 96 * count)


def run(args: Namespace, notes: list[str]) -> tuple[Result, str]:
    """Serve the workloads with every engine, in turn.

    Args:
        args: The benchmark's command line.
        notes: Sentences for the result file.

    Returns:
        The result and the summary line.
    """
    announce("throughput", args, 170, 60)
    gpu, size, notes = args.device.startswith("cuda"), sizes(args), list(notes)
    names = usable(("triton", "flash_attn"), model_shape(args), notes) if gpu else ("sdpa",)
    limits: dict[str, Any] = {
        "max_model_len": size.max_model_len,
        "max_num_seqs": len(size.whole.requests),
    }
    ours: list[Engine] = [
        m4_engine(args, name, **limits, pool_tokens=size.pool_tokens) for name in names
    ]
    m3 = m3_engine(args, **limits, pool_tokens=size.m3_pool_tokens)
    for engine in (*ours, m3):
        run_batch(engine, size.warm_up)
    rows = workload_rows(ours, m3, size, args, notes)
    if gpu:  # gpu-only: m4_flash/tests/test_benchmarks.py::test_throughput_on_a_gpu
        rows += busy_rows(ours[0], size.whole, args.device)
        for engine in (ours[0], m3):
            rows += busy_rows(engine, size.batches[-1], args.device)
    config = {
        "model": args.model, "dtype": model_of(args)[1], **limits,
        "pool_tokens": size.pool_tokens, "m3_pool_tokens": size.m3_pool_tokens,
        "max_num_batched_tokens": m3.config.scheduler.max_num_batched_tokens,
    }  # fmt: skip
    result = make_result(
        "m4_flash", "throughput", rows, device=args.device, workload=size.whole, config=config,
        notes=notes,
    )  # fmt: skip
    return result, _summary(result, args, size.whole)


def workload_rows(
    ours: list[Engine], m3: Engine, size: Sizes, args: Namespace, notes: list[str]
) -> list[Row]:
    """All workloads: the whole with this stage's engines, the part and the batches with M3 too."""
    gpu, rows = args.device.startswith("cuda"), list[Row]()
    rounds = args.repeat if gpu or args.smoke else max(args.repeat, AT_LEAST)
    if size.part != size.whole:
        rows += served_rows(ours, size.whole, rounds)
        notes.append(
            f"m3_paged serves the first {len(size.part.requests)} requests, in one round unless "
            f"--full; compare it with m4_flash on the same ones"
        )
    long_part = size.part != size.whole and not args.full
    rows += served_rows([ours[0], m3], size.part, 1 if long_part else rounds)
    for workload in size.batches:
        rows += served_rows([*ours, m3], workload, rounds)
    return rows


def served_rows(engines: list[Engine], workload: Workload, rounds: int) -> list[Row]:
    """Serve one workload with every engine in turn.

    Args:
        engines: Warm ones. Where the last is M3, the first is compared with it.
        workload: What they serve.
        rounds: Recorded rounds.
    """
    before = [(engine.stats().num_steps, engine.scheduler.num_preemptions) for engine in engines]
    calls = {name_of(engine): partial(run_batch, engine, workload) for engine in engines}
    assert len(calls) == len(engines), "every engine has labels of its own"
    rows: list[Row] = []
    speeds: list[list[float]] = []
    decodes = (workload.max_output_tokens - len(workload.requests)) * rounds
    served = interleaved_calls(calls, rounds, 0)
    for engine, (steps, preemptions) in zip(engines, before, strict=True):
        labels = {**labels_of(engine), "workload": workload.name}
        metrics = [serving_metrics(outputs) for outputs in served[name_of(engine)]]
        speeds.append([item.output_throughput for item in metrics])
        rows += serving_rows(metrics, **labels)
        batch = decodes / (engine.stats().num_steps - steps)
        lost = (engine.scheduler.num_preemptions - preemptions) / rounds
        rows.append(row("sequences_per_step", "count", batch, **labels))
        rows.append(row("preemptions", "count", lost, **labels))
    if isinstance(engines[-1], M3Engine):
        ratios = [own / below for own, below in zip(speeds[0], speeds[-1], strict=True)]
        labels = {**labels_of(engines[0]), "workload": workload.name}
        rows.append(row("speedup_over_m3", "ratio", ratios, **labels))
    return rows


def busy_rows(engine: Engine, workload: Workload, device: str, window: int = WINDOW) -> list[Row]:
    """Kernel time over wall time in three parts of a run: prompts, everybody decodes, the tail.

    Args:
        engine: A warm one.
        workload: Enough requests, long enough for ``window`` steps more after each part.
        device: The GPU.
        window: Steps under the profiler, while everybody decodes and in the tail.
    """
    scheduler, ids = engine.scheduler, []
    for prompt, params in zip(workload.prompts, workload.sampling_params, strict=True):
        ids.append(engine.add_request(prompt, params))

    def admit() -> None:
        while scheduler.waiting:
            engine.step(only_finished=True)

    def decode() -> None:
        for _ in range(window):
            engine.step(only_finished=True)

    rows = _window_rows("prompts", engine, admit, workload, device)
    rows += _window_rows("decode", engine, decode, workload, device)
    while len(scheduler.running) > max(len(ids) // 8, 1):
        engine.step(only_finished=True)
    rows += _window_rows("tail", engine, decode, workload, device)
    for request_id in ids:
        engine.abort(request_id)
    return rows


def _window_rows(
    phase: str, engine: Engine, work: Callable[[], None], workload: Workload, device: str
) -> list[Row]:
    before, running = engine.stats().num_steps, len(engine.scheduler.running)
    profile = profile_kernels(work, device)
    steps = engine.stats().num_steps - before
    if not steps:  # everybody had finished
        return []
    labels = {**labels_of(engine), "workload": workload.name, "phase": phase, "running": running}
    rows = [
        row("busy", "share", profile.busy, **labels),
        row("kernels_per_step", "count", profile.num_kernels / steps, **labels),
        row("profiled_step_time", "s", profile.wall / steps, **labels),
    ]
    if profile.nvml_utilization is not None:
        rows.append(row("nvml_utilization", "share", profile.nvml_utilization, **labels))
    return rows


def _summary(result: Result, args: Namespace, workload: Workload) -> str:
    """This stage's throughput on its whole workload beside the device's measured ceilings."""
    own = {"engine": "m4_flash", "workload": workload.name}
    best = result.select(metric="output_throughput", **own)[0]
    (batch,) = result.select(metric="sequences_per_step", backend=best["backend"], **own)
    config, dtype = model_of(args)
    context = (workload.prompt_tokens + workload.max_output_tokens // 2) // len(workload.requests)
    seconds = batch["median"] / best["median"]
    moved = decode_bytes(config, round(batch["median"]), context, dtype)
    flops = batch["median"] * (linear_flops_per_token(config) + lm_head_flops_per_row(config))
    return summary_line(
        f"m4_flash {best['backend']}, {workload.name}",
        best["median"],
        mbu(moved, seconds, measured_bandwidth(args.device)),
        mfu(flops, seconds, measured_flops(args.device, dtype)),
    )
