"""M2 and M3 at equal KV memory on requests of random length: sequences at a time, and tok/s.

Same model, same requests, same bytes for K and V; only the way the bytes are handed out differs.
"""

from __future__ import annotations

from argparse import Namespace

from common.bench import serving_rows, summary_line
from common.metrics import mbu, mfu, serving_metrics
from common.model_costs import decode_bytes, linear_flops_per_token, lm_head_flops_per_row
from common.peaks import measured_bandwidth, measured_flops
from common.results import Result, Row, make_result, row
from common.serve import run_batch
from common.timing import interleaved_calls
from common.workload import Workload, random_lengths
from m2_batching.engine import LLMEngine as M2Engine
from m3_paged.engine import LLMEngine as M3Engine


def run(args: Namespace, notes: list[str]) -> tuple[Result, str]:
    """Serve one workload with both engines, in turn.

    Args:
        args: The benchmark's command line.
        notes: Sentences for the result file.

    Returns:
        The result and the summary line.
    """
    workload, slots, max_model_len = _sizes(args)
    options = {"dtype": args.dtype, "device": args.device, "max_model_len": max_model_len}
    m2 = M2Engine(args.model, **options, max_num_seqs=slots)
    blocks = slots * max_model_len // 16
    m3 = M3Engine(args.model, **options, num_blocks=blocks, max_num_seqs=256)
    assert m2.kv_bytes() == m3.kv_bytes(), "equal KV memory"
    calls = {
        "m2_batching": lambda: run_batch(m2, workload),
        "m3_paged": lambda: run_batch(m3, workload),
    }
    for engine in (m2, m3):
        run_batch(engine, workload.subset(2))  # warm-up; a whole round would take minutes
    before = {"m2_batching": m2.stats().num_steps, "m3_paged": m3.stats().num_steps}
    rows: list[Row] = []
    for name, runs in interleaved_calls(calls, args.repeat, 0).items():
        metrics = [serving_metrics(outputs) for outputs in runs]
        rows += serving_rows(metrics, engine=name)
        decodes = workload.max_output_tokens - len(workload.requests)
        steps = {"m2_batching": m2, "m3_paged": m3}[name].stats().num_steps - before[name]
        rows.append(row("sequences_per_step", "count", decodes * args.repeat / steps, engine=name))
    rows.append(row("kv_bytes", "B", float(m3.kv_bytes()), engine="m3_paged"))
    preempted = m3.scheduler.num_preemptions / args.repeat
    rows.append(row("preemptions", "count", preempted, engine="m3_paged"))
    result = make_result(
        "m3_paged", "throughput", rows, device=args.device, workload=workload,
        config={"model": args.model, "slots": slots, "num_blocks": blocks, **options},
        notes=notes,
    )  # fmt: skip
    return result, _summary(m3, result, workload, args.device)


def _sizes(args: Namespace) -> tuple[Workload, int, int]:
    """The requests, M2's slots, and the longest sequence."""
    if args.smoke:
        return random_lengths(4, (4, 8), (2, 6), temperature=0.0), 2, 32
    if args.device.startswith("cuda"):
        return random_lengths(temperature=0.0).subset(96), 32, 2048
    return random_lengths(12, (8, 32), (8, 32), temperature=0.0), 2, 96


def _summary(engine: M3Engine, result: Result, workload: Workload, device: str) -> str:
    (speed,) = result.select(metric="output_throughput", engine="m3_paged")
    (batch,) = result.select(metric="sequences_per_step", engine="m3_paged")
    config, dtype = engine.model.config, str(engine.model.dtype).removeprefix("torch.")
    context = (workload.prompt_tokens + workload.max_output_tokens // 2) // len(workload.requests)
    seconds = batch["median"] / speed["median"]
    moved = decode_bytes(config, round(batch["median"]), context, dtype)
    flops = batch["median"] * (linear_flops_per_token(config) + lm_head_flops_per_row(config))
    return summary_line(
        "m3_paged, random lengths",
        speed["median"],
        mbu(moved, seconds, measured_bandwidth(device)),
        mfu(flops, seconds, measured_flops(device, dtype)),
    )
