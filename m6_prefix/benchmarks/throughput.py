"""Nothing to share: what looking for prefixes costs where there are none.

Requests of random length with random prompts, all at once. M6 with caching, M6 without, and the
stages below serve the same ones in turn, on a CPU five rounds at least; "no slowdown" means that
the ratio's distance from 1 is within the spread of the runs. On a GPU this is nano-vllm's workload
of 256 sequences, beside M4 and M5.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from functools import partial

from common.bench import serving_rows, summary_line
from common.metrics import mbu, mfu, serving_metrics
from common.model_costs import decode_bytes, linear_flops_per_token, lm_head_flops_per_row
from common.outputs import RequestOutput
from common.peaks import measured_bandwidth, measured_flops
from common.results import Result, Row, make_result, row
from common.serve import run_batch
from common.timing import interleaved_calls
from common.workload import Workload, fixed, random_lengths
from m4_flash.benchmarks.engines import m4_engine
from m4_flash.engine import LLMEngine as M4Engine
from m5_chunked.engine import LLMEngine as M5Engine
from m6_prefix.benchmarks.engines import backend, forget, options, settings
from m6_prefix.engine import LLMEngine as M6Engine

AT_LEAST = 5
"""Recorded rounds on a CPU, whose runs scatter more: a median of five runs in turn."""

ONE_ENGINE_NOTE = (
    "one engine serves both rows of m6_prefix: between two runs only enable_prefix_caching of its "
    "manager changes, and every run begins with an empty cache"
)


@dataclass(frozen=True)
class Variant:
    """An engine; of this stage's, whether it caches.

    Attributes:
        engine: M4's, M5's or M6's.
        caching: Whether M6 looks for prefixes; None for the stages below.
    """

    engine: M4Engine | M5Engine | M6Engine
    caching: bool | None = None

    @property
    def labels(self) -> dict[str, str | bool | None]:
        """What sets its rows apart."""
        return {"engine": self.engine.stage, "caching": self.caching}

    @property
    def name(self) -> str:
        """The labels as a key."""
        return f"{self.engine.stage} {self.caching}"

    def serve(self, workload: Workload) -> list[RequestOutput]:
        """One run, from an empty cache."""
        if isinstance(self.engine, M6Engine):
            assert self.caching is not None, "M6 caches or does not"
            forget(self.engine)
            self.engine.manager.enable_prefix_caching = self.caching
        return run_batch(self.engine, workload)


def sizes(args: Namespace) -> tuple[Workload, int, int]:
    """The requests, the longest sequence, and the places of each pool: nobody is preempted."""
    if args.smoke:
        return random_lengths(4, (4, 8), (2, 6), temperature=0.0), 32, 128
    if args.device.startswith("cuda"):
        # All 256 together hold at most 170,640 places in blocks of 16; three pools must fit.
        return random_lengths(), 2048, 172_032
    return random_lengths(12, (8, 32), (8, 32), temperature=0.0), 96, 96 * 12


def variants(args: Namespace) -> tuple[list[Variant], M6Engine]:
    """The stages below, then M6 with caching and without; and M6's engine.

    M4 comes along on a GPU and with ``--full``.
    """
    workload, max_model_len, pool_tokens = sizes(args)
    seats = len(workload.requests)
    limits = options(args, max_model_len=max_model_len, max_num_seqs=seats, pool_tokens=pool_tokens)
    below = list[M4Engine | M5Engine]()
    if args.full or args.device.startswith("cuda"):
        m4 = m4_engine(
            args, backend(args), max_model_len=max_model_len, max_num_seqs=seats,
            pool_tokens=pool_tokens,
        )  # fmt: skip
        below.append(m4)
    below.append(M5Engine(args.model, **limits))
    m6 = M6Engine(args.model, **limits)
    assert {engine.kv_bytes() for engine in below} == {m6.kv_bytes()}, "equal KV memory"
    return [*map(Variant, below), Variant(m6, True), Variant(m6, False)], m6


def run(args: Namespace, notes: list[str]) -> tuple[Result, str]:
    """Serve one workload with every variant, in turn.

    Args:
        args: The benchmark's command line.
        notes: Sentences for the result file.

    Returns:
        The result and the summary line.
    """
    workload, max_model_len, _ = sizes(args)
    all_of_them, m6 = variants(args)
    for variant in all_of_them:
        variant.serve(fixed(2, min(600, max_model_len // 2), 4))  # compiles; a round takes long
    short = args.smoke or args.device.startswith("cuda")
    rounds = args.repeat if short else max(args.repeat, AT_LEAST)
    rows = served_rows(all_of_them, workload, rounds)
    result = make_result(
        "m6_prefix", "throughput", rows, device=args.device, workload=workload,
        config=settings(args, m6), notes=[*notes, ONE_ENGINE_NOTE],
    )  # fmt: skip
    return result, _summary(m6, result, workload, args.device)


def served_rows(all_of_them: list[Variant], workload: Workload, rounds: int) -> list[Row]:
    """Every variant in turn; M6 beside each stage below, round by round."""
    steps = dict.fromkeys((variant.name for variant in all_of_them), 0)
    assert len(steps) == len(all_of_them), "every variant has a name of its own"

    def serve(variant: Variant) -> list[RequestOutput]:
        before = variant.engine.stats().num_steps
        outputs = variant.serve(workload)
        steps[variant.name] += variant.engine.stats().num_steps - before
        return outputs

    preempted = [variant.engine.scheduler.num_preemptions for variant in all_of_them]
    calls = {variant.name: partial(serve, variant) for variant in all_of_them}
    taken = interleaved_calls(calls, rounds, 0)
    assert preempted == [v.engine.scheduler.num_preemptions for v in all_of_them], "room for all"
    rows, speeds = list[Row](), dict[str, list[float]]()
    decodes = (workload.max_output_tokens - len(workload.requests)) * rounds
    for variant in all_of_them:
        metrics = [serving_metrics(outputs) for outputs in taken[variant.name]]
        speeds[variant.name] = [item.output_throughput for item in metrics]
        rows += serving_rows(metrics, **variant.labels)  # type: ignore[arg-type]
        hits = [float(item.cached_tokens) for item in metrics]
        rows.append(row("cached_tokens", "tokens", hits, **variant.labels))
        batch = decodes / steps[variant.name]
        rows.append(row("sequences_per_step", "count", batch, **variant.labels))
    below = [variant for variant in all_of_them if variant.caching is None]
    for variant in all_of_them[len(below) :]:
        for other in below:
            pairs = zip(speeds[variant.name], speeds[other.name], strict=True)
            ratios = [own / theirs for own, theirs in pairs]
            labels = {**variant.labels, "over": other.engine.stage}
            rows.append(row("throughput_ratio", "ratio", ratios, **labels))
    return rows


def _summary(engine: M6Engine, result: Result, workload: Workload, device: str) -> str:
    """M6 with caching beside the device's measured ceilings, and beside the lowest stage."""
    own = {"engine": "m6_prefix", "caching": True}
    (speed,) = result.select(metric="output_throughput", **own)
    (batch,) = result.select(metric="sequences_per_step", **own)
    ratio = result.select(metric="throughput_ratio", **own)[0]
    config, dtype = engine.model.config, str(engine.model.dtype).removeprefix("torch.")
    context = (workload.prompt_tokens + workload.max_output_tokens // 2) // len(workload.requests)
    seconds = batch["median"] / speed["median"]
    moved = decode_bytes(config, max(round(batch["median"]), 1), context, dtype)
    flops = batch["median"] * (linear_flops_per_token(config) + lm_head_flops_per_row(config))
    return summary_line(
        f"m6_prefix, random lengths, {ratio['median']:.3f} of {ratio['over']} "
        f"(spread {speed['spread']:.1%})",
        speed["median"],
        mbu(moved, seconds, measured_bandwidth(device)),
        mfu(flops, seconds, measured_flops(device, dtype)),
    )
