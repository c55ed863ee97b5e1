"""Output tokens per second against batch size: M1 one after the other, M2 together.

All requests have the same length, so that nothing but the batch changes. The ceiling is the
roofline of a decode step: weights are read once for the whole batch, each sequence's KV for
itself, both at the measured copy bandwidth; or the arithmetic, where that takes longer.
"""

from __future__ import annotations

from argparse import Namespace
from functools import partial

from common.bench import serving_rows, summary_line
from common.metrics import Peak, mbu, mfu, serving_metrics
from common.model_config import ModelConfig
from common.model_costs import decode_bytes, linear_flops_per_token, lm_head_flops_per_row
from common.outputs import RequestOutput
from common.peaks import measured_bandwidth, measured_flops
from common.profiling import profile_kernels
from common.results import Result, Row, make_result, row
from common.serve import run_batch
from common.timing import interleaved_calls
from common.workload import fixed
from m1_basic.engine import LLMEngine as M1Engine
from m2_batching.engine import LLMEngine as M2Engine


def run(args: Namespace, notes: list[str]) -> tuple[Result, str]:
    """Measure M2 at every batch size; M1 in turn with it at the ends, with a stated subset.

    Args:
        args: The benchmark's command line.
        notes: Sentences for the result file.

    Returns:
        The result and the summary line.
    """
    gpu = args.device.startswith("cuda")
    batches, prompt_len, output_len = _sizes(args, gpu)
    limit = {"max_model_len": prompt_len + output_len}
    options = {"dtype": args.dtype, "device": args.device, **limit}
    m1 = M1Engine(args.model, **options)
    m2 = M2Engine(args.model, **options, max_num_seqs=max(batches))
    config, dtype = m2.model.config, str(m2.model.dtype).removeprefix("torch.")
    bandwidth, flops = measured_bandwidth(args.device), measured_flops(args.device, dtype)
    rows: list[Row] = []
    for batch in batches:
        workload = fixed(batch, prompt_len, output_len)
        few = workload.subset(min(batch, 4 if gpu else 2))
        calls = {"m2_batching": lambda w=workload: run_batch(m2, w)}
        if batch in (1, 8, max(batches)):  # M1's pace does not depend on how many wait
            calls["m1_basic"] = lambda w=few: run_batch(m1, w)
        for name, runs in interleaved_calls(calls, args.repeat, 1).items():
            metrics = [serving_metrics(outputs, _duration(outputs)) for outputs in runs]
            rows += serving_rows(metrics, engine=name, batch=batch)
        context = prompt_len + output_len // 2
        roof = batch / _floor(config, batch, context, dtype, bandwidth.value, flops.value)
        rows.append(row("roofline", "tok/s", roof, engine="m2_batching", batch=batch))
    if gpu:
        rows += _busy_rows(args, max(batches), (prompt_len, 1024))
    subset = "M1 runs its requests one after the other, so a subset has the same tok/s"
    result = make_result(
        "m2_batching", "throughput", rows, device=args.device,
        workload=fixed(max(batches), prompt_len, output_len),
        config={"model": args.model, "dtype": dtype, "batches": list(batches), **limit},
        notes=[*notes, subset],
    )  # fmt: skip
    return result, _summary(result, config, max(batches), context, dtype, bandwidth, flops)


def _sizes(args: Namespace, gpu: bool) -> tuple[tuple[int, ...], int, int]:
    """Batch sizes, prompt length and output length."""
    if args.smoke:
        return (1, 2), 8, 4
    if gpu:
        return (1, 2, 4, 8, 16, 32, 64, 128, 256), 128, 64
    return ((1, 2, 4, 8, 16, 32) if args.full else (1, 8)), 32, 24


def _duration(outputs: list[RequestOutput]) -> float:
    """Seconds from the first arrival to the last token."""
    last = max(o.metrics.finished_time or 0.0 for o in outputs)
    return last - min(o.metrics.arrival_time for o in outputs)


def _floor(
    config: ModelConfig, batch: int, context: int, dtype: str, bandwidth: float, flops: float
) -> float:
    """Least seconds of one decode step: its bytes, or its arithmetic."""
    moved = decode_bytes(config, batch, context, dtype) / bandwidth
    computed = batch * (linear_flops_per_token(config) + lm_head_flops_per_row(config)) / flops
    return max(moved, computed)


def _busy_rows(args: Namespace, batch: int, contexts: tuple[int, ...]) -> list[Row]:
    """Kernel time over wall time while a full batch decodes, at a short and a long context."""
    rows = []
    for context in contexts:
        limits = {"max_num_seqs": batch, "max_model_len": context + 32}
        engine = M2Engine(args.model, dtype=args.dtype, device=args.device, **limits)
        workload = fixed(batch, context, 24)
        for prompt, params in zip(workload.prompts, workload.sampling_params, strict=True):
            engine.add_request(prompt, params)
        while engine.scheduler.waiting:
            engine.step()
        _steps(engine, 2)
        profile = profile_kernels(partial(_steps, engine, 8), args.device)
        for metric, unit, value in (
            ("busy", "share", profile.busy),
            ("kernels_per_step", "count", profile.num_kernels / 8),
        ):
            rows.append(
                row(metric, unit, value, engine="m2_batching", batch=batch, context=context)
            )
    return rows


def _steps(engine: M2Engine, count: int) -> None:
    for _ in range(count):
        engine.step()


def _summary(
    result: Result,
    config: ModelConfig,
    batch: int,
    context: int,
    dtype: str,
    bandwidth: Peak,
    flops: Peak,
) -> str:
    (best,) = result.select(metric="output_throughput", engine="m2_batching", batch=batch)
    seconds = batch / best["median"]
    moved = decode_bytes(config, batch, context, dtype)
    computed = batch * (linear_flops_per_token(config) + lm_head_flops_per_row(config))
    return summary_line(
        f"m2_batching, batch {batch}",
        best["median"],
        mbu(moved, seconds, bandwidth),
        mfu(computed, seconds, flops),
    )
