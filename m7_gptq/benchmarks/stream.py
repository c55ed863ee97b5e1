"""One stream in four bits and in sixteen: time per token, bytes, and up to which batch it gains.

Four engines, one after the other in one process: M6 in bfloat16 at its best and with PyTorch's own
products (cuBLAS), M7 with 4-bit layers, and with an 8-bit output matrix too. All serve the same
prompt. Two of them also serve batches, while everybody decodes: where a step of M7 is no longer
shorter is where four bits have stopped to gain.

The 4-bit model is the dense one rounded to nearest, in groups of 128 where that divides its layers:
time depends on shapes alone.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from common.results import Result, Row, make_result, row
from common.workload import fixed
from m4_flash.benchmarks.engines import announce, model_of, release
from m5_chunked.benchmarks.speed import Sizes, stream
from m6_prefix.benchmarks.engines import options
from m6_prefix.engine import LLMEngine as M6Engine
from m7_gptq.benchmarks.rounded import RoundedEngine, spec_of
from m7_gptq.engine import LLMEngine

BEST, CUBLAS = "m6 bf16", "m6 bf16, PyTorch's products"
FOUR, EIGHT = "m7 4 bits", "m7 4 bits, head 8 bits"
BUDGET = 16_384
"""Tokens of a step: the prompts of 256 sequences at once."""
PROMPT, SPARE = 64, 32
"""Tokens of each prompt of a batch (K and V are few beside the weights), and steps untimed."""

Engine = M6Engine | LLMEngine

STEP_NOTE = (
    "step_time of batch 1 is that of a stream with a prompt of 512 tokens; of a batch, that of a "
    "step in which all sequences decode, with prompts of 64 tokens"
)
SPEEDUP_NOTE = "speedup is the other engine's step time over this one's, of the same batch"
MEMORY_NOTE = (
    "peak_memory counts from when the engine is ready: weights, KV pool, graphs, and a step's needs"
)


@dataclass(frozen=True)
class Case:
    """An engine of the comparison.

    Attributes:
        engine: Its class.
        options: What sets it apart.
        batches: Whether it serves batches as well.
    """

    engine: type[Engine]
    options: Mapping[str, Any]
    batches: bool


CASES = {
    CUBLAS: Case(M6Engine, {"linear_backend": "torch"}, batches=False),
    BEST: Case(M6Engine, {}, batches=True),
    FOUR: Case(RoundedEngine, {}, batches=True),
    EIGHT: Case(RoundedEngine, {"head_bits": 8}, batches=True),
}


def batches_of(args: Namespace) -> tuple[int, ...]:
    """Sequences that decode together, beside the stream."""
    if args.smoke:
        return (2,)
    return (4, 16, 64, 256) if args.device.startswith("cuda") else ()


def sizes(args: Namespace) -> Sizes:
    """The stream, and a pool that holds the largest batch."""
    if args.smoke:
        return Sizes(16, 4, (), None, 128, 4, 512)
    if args.device.startswith("cuda"):
        return Sizes(512, 128, (), None, 1024, 256, 45_056)
    return Sizes(32, 2, (), None, 128, 4, 512)  # the reference unpacks every weight in every step


def run(args: Namespace, notes: list[str]) -> tuple[Result, str]:
    """Serve with each engine, compare with the two in bfloat16.

    Args:
        args: The benchmark's command line.
        notes: Sentences for the result file.

    Returns:
        The result and the summary line.
    """
    announce("stream", args, 90, 180)
    rows: list[Row] = []
    for name, case in CASES.items():
        rows += case_rows(name, case, args)
    rows += speedups(rows)
    model, dtype = model_of(args)
    result = make_result(
        "m7_gptq", "stream", rows, device=args.device,
        config={"model": args.model, "dtype": dtype, "group_size": spec_of(model).group_size},
        notes=[*notes, STEP_NOTE, SPEEDUP_NOTE, MEMORY_NOTE],
    )  # fmt: skip
    return result, summary(result)


def case_rows(name: str, case: Case, args: Namespace) -> list[Row]:
    """All that is measured of one engine, which lives no longer than this."""
    release(args.device)
    size, gpu = sizes(args), args.device.startswith("cuda")
    limits = options(
        args, max_model_len=size.max_model_len, max_num_seqs=size.max_num_seqs,
        pool_tokens=size.pool_tokens, budget=BUDGET,
    )  # fmt: skip
    engine = case.engine(args.model, **limits, **case.options)
    if gpu:  # gpu-only: m7_gptq/tests/test_gpu.py::test_stream_benchmark
        torch.cuda.reset_peak_memory_stats(args.device)
    stream(engine, size, new_tokens=3)
    taken = {1: [stream(engine, size)[1] for _ in range(args.repeat)]}
    for batch in batches_of(args) if case.batches else ():
        taken[batch] = [step_time(engine, batch, size.steps // 2) for _ in range(args.repeat)]
    rows = [
        row("step_time", "s", seconds, engine=name, batch=batch) for batch, seconds in taken.items()
    ]
    layers = engine.model.layers.parameters()
    stats, linear = engine.stats(), sum(each.nbytes for each in layers if each.dim() > 1)
    rows += [
        row("linear_bytes", "B", float(linear), engine=name),
        row("weight_bytes", "B", float(stats.weight_bytes), engine=name),
    ]
    if gpu:  # gpu-only: m7_gptq/tests/test_gpu.py::test_stream_benchmark
        rows.append(row("peak_memory", "B", float(stats.peak_memory_bytes), engine=name))
    print(f"  {name}: {rows[0]['median'] * 1e3:.3f} ms a token", flush=True)
    return rows


def step_time(engine: Engine, batch: int, steps: int) -> float:
    """Seconds of a step in which ``batch`` sequences decode, over that many steps."""
    workload = fixed(batch, PROMPT, steps + SPARE, temperature=0.6)
    pairs = zip(workload.prompts, workload.sampling_params, strict=True)
    ids = [engine.add_request(prompt, params) for prompt, params in pairs]
    while engine.scheduler.waiting:
        engine.step(only_finished=True)
    for _ in range(SPARE // 2):
        engine.step(only_finished=True)
    assert len(engine.scheduler.running) == batch
    begin = time.perf_counter()
    for _ in range(steps):
        engine.step(only_finished=True)
    seconds = time.perf_counter() - begin
    for request_id in ids:
        engine.abort(request_id)
    return seconds / steps


def speedups(rows: list[Row]) -> list[Row]:
    """Of M7's engines, over each in bfloat16 that served the same batch."""
    times = {(r["engine"], r["batch"]): r["median"] for r in rows if r["metric"] == "step_time"}
    return [
        row("speedup", "ratio", other / taken, engine=name, batch=batch, over=over)
        for (name, batch), taken in times.items()
        if name in (FOUR, EIGHT)
        for over in (BEST, CUBLAS)
        if (other := times.get((over, batch)))
    ]


def summary(result: Result) -> str:
    """The stream of both M7 engines."""

    def over(name: str, base: str) -> float:
        (found,) = result.select(metric="speedup", engine=name, batch=1, over=base)
        return float(found["median"])

    (step,) = result.select(metric="step_time", engine=FOUR, batch=1)
    return (
        f"m7_gptq stream: {step['median'] * 1e3:.3f} ms a token in 4 bits, "
        f"{over(FOUR, BEST):.2f} times as fast as our bfloat16, {over(FOUR, CUBLAS):.2f} times as "
        f"with PyTorch's products; with a head in 8 bits {over(EIGHT, BEST):.2f} and "
        f"{over(EIGHT, CUBLAS):.2f} times"
    )
