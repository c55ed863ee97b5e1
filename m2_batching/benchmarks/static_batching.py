"""Static against continuous batching on requests of unequal length, same engine, same slots.

Static: take as many requests as there are slots, run until the last of them has finished, take the
next group. Finished sequences leave the computation here too, so the comparison is kind to it: all
that static batching loses is the seats of those who are done.
"""

from __future__ import annotations

import time
from argparse import Namespace
from dataclasses import replace

from common.bench import serving_rows, summary_line
from common.metrics import serving_metrics
from common.outputs import RequestOutput
from common.results import Result, Row, make_result, row
from common.serve import run_batch
from common.timing import interleaved_calls
from common.workload import Workload, random_lengths
from m2_batching.engine import LLMEngine


def run(args: Namespace, notes: list[str]) -> tuple[Result, str]:
    """Serve one workload both ways, in turn.

    Args:
        args: The benchmark's command line.
        notes: Sentences for the result file.

    Returns:
        The result and the summary line.
    """
    gpu = args.device.startswith("cuda")
    workload, slots = _sizes(args, gpu)
    longest = max(len(r.prompt_token_ids) + r.sampling_params.max_tokens for r in workload.requests)
    engine = LLMEngine(
        args.model, dtype=args.dtype, device=args.device, max_num_seqs=slots, max_model_len=longest
    )
    before = engine.stats().num_steps
    run_batch(engine, workload)
    continuous_steps = engine.stats().num_steps - before
    static(engine, workload, slots)
    static_steps = engine.stats().num_steps - before - continuous_steps
    calls = {
        "static": lambda: static(engine, workload, slots),
        "continuous": lambda: run_batch(engine, workload),
    }
    rows: list[Row] = []
    for mode, runs in interleaved_calls(calls, args.repeat, 0).items():
        rows += serving_rows([serving_metrics(outputs) for outputs in runs], batching=mode)
    for mode, steps in (("static", static_steps), ("continuous", continuous_steps)):
        seats = workload.max_output_tokens / (steps * slots)
        rows.append(row("steps", "count", float(steps), batching=mode))
        rows.append(row("useful_seats", "share", seats, batching=mode))
    result = make_result(
        "m2_batching", "static_batching", rows, device=args.device, workload=workload,
        config={"model": args.model, "slots": slots}, notes=notes,
    )  # fmt: skip
    (best,) = result.select(metric="output_throughput", batching="continuous")
    return result, summary_line("m2_batching, continuous", best["median"], None, None)


def static(engine: LLMEngine, workload: Workload, slots: int) -> list[RequestOutput]:
    """Serve in groups of ``slots``; everybody has arrived at the start."""
    prompts, params = workload.prompts, workload.sampling_params
    start = time.perf_counter()
    outputs: list[RequestOutput] = []
    for first in range(0, len(prompts), slots):
        group = slice(first, first + slots)
        outputs += engine.generate(prompts[group], params[group])
    # A later group has waited since the start, not since the engine was handed it.
    return [replace(o, metrics=replace(o.metrics, arrival_time=start)) for o in outputs]


def _sizes(args: Namespace, gpu: bool) -> tuple[Workload, int]:
    if args.smoke:
        return random_lengths(4, (4, 8), (2, 6), temperature=0.0), 2
    if gpu:
        return random_lengths(64, (32, 256), (16, 256), temperature=0.0), 16
    return random_lengths(9, (8, 16), (4, 32), temperature=0.0), 3
