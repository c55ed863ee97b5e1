"""Attention alone, every implementation in turn in one run: prompts, and one query per sequence.

Inputs are cold: each timed pass walks through as many copies of them as exceed a GPU's L2 cache
several times. On a GPU a pass is one CUDA graph, so that no launch from Python is in the time.
"""

from __future__ import annotations

import random
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from common.errors import FoloError
from common.model.interfaces import TORCH_DTYPES
from common.peaks import measured_bandwidth
from common.results import Result, Row, make_result, row
from common.timing import Measurement, device_timer, interleaved_calls
from m4_flash.backends.base import AttentionShape
from m4_flash.benchmarks.attention_cases import (
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    Batch,
    Variant,
    decode_variants,
    make_batch,
    prefill_variants,
)
from m4_flash.benchmarks.engines import announce, release, usable
from m4_flash.cuda_graph import CudaCapture

COLD_BYTES = 256 * 2**20
"""More than four times the L2 cache of an H100 (50 MB)."""
MOST_COPIES = 128
"""Of inputs so small that they stay in the cache all the same: they are launches, not traffic."""
CALLS_PER_PASS = 4
"""At least, on a GPU: what a graph costs to start is divided among them."""
ROUNDS = 7
"""Recorded rounds per ``--repeat``: kernels are short, so there can be many."""
WRONG = 0.25
"""Outputs of normally distributed values that differ by more are not the same function."""

FLOPS_NOTE = (
    "TFLOP/s count causal attention, 2 · heads · head_dim · length² per prompt; naive attention "
    "computes twice as much and gets no credit for it"
)
BYTES_NOTE = "GB/s count K and V of every context once"


class WrongResultError(FoloError, RuntimeError):
    """An implementation computes something else than the first one."""


@dataclass(frozen=True)
class Shape:
    """One batch to measure.

    Attributes:
        name: As result rows call it.
        lens: Keys of each sequence.
    """

    name: str
    lens: tuple[int, ...]

    @property
    def causal_flops(self) -> int:
        """FLOPs of the prompts, half of each square."""
        return sum(2 * HEADS * HEAD_DIM * length**2 for length in self.lens)

    def kv_bytes(self, element: int) -> int:
        """Bytes of K and V of all contexts, for elements of that many bytes."""
        return 2 * KV_HEADS * HEAD_DIM * sum(self.lens) * element


def run(args: Namespace, notes: list[str]) -> tuple[Result, str]:
    """Compare prompts on any device; on a GPU one query per sequence too.

    Args:
        args: The benchmark's command line.
        notes: Sentences for the result file.

    Returns:
        The result and the summary line.

    Raises:
        WrongResultError: Two implementations disagree.
    """
    announce("attention", args, 70, 10)
    gpu, notes = args.device.startswith("cuda"), [*notes, FLOPS_NOTE]
    dtype = bench_dtype(args)
    shape_of_all = AttentionShape(torch.device(args.device), dtype, HEADS, KV_HEADS, HEAD_DIM)
    names = usable(("triton", "flash_attn"), shape_of_all, notes) if gpu else ()
    rounds = args.repeat * (1 if args.smoke else ROUNDS)
    rows: list[Row] = []
    for shape in prefill_shapes(args):
        variants = prefill_variants(("naive", "sdpa", *names))
        rows += shape_rows(shape, variants, args, rounds, decode=False)
    heads = {"heads": HEADS, "kv_heads": KV_HEADS, "head_dim": HEAD_DIM}
    config = {**heads, "dtype": str(dtype).removeprefix("torch."), "rounds": rounds}
    if gpu:  # gpu-only: m4_flash/tests/test_bench_attention.py::test_attention_on_a_gpu
        notes.append(BYTES_NOTE)
        config["copy_bandwidth"] = measured_bandwidth(args.device).value
        for shape in decode_shapes(args):
            rows += shape_rows(shape, decode_variants(names), args, rounds, decode=True)
    result = make_result(
        "m4_flash", "attention", rows, device=args.device, config=config, notes=notes
    )  # fmt: skip
    return result, _summary(result)


def bench_dtype(args: Namespace) -> torch.dtype:
    """bfloat16 on a GPU and float32 on a CPU, unless ``--dtype`` says otherwise."""
    auto = torch.bfloat16 if args.device.startswith("cuda") else torch.float32
    return TORCH_DTYPES[args.dtype] if args.dtype != "auto" else auto


def prefill_shapes(args: Namespace) -> list[Shape]:
    """Prompts, several of one length."""
    if args.smoke:
        sizes = [(1, 16), (1, 32)]
    elif args.device.startswith("cuda"):
        sizes = [(32, 512), (1, 2048), (8, 2048), (1, 8192), (4, 8192)]
    else:
        sizes = [(1, 128), (1, 256), (1, 512), (1, 1024)]
    return [Shape(f"{count}x{length}", (length,) * count) for count, length in sizes]


def decode_shapes(args: Namespace) -> list[Shape]:
    """Contexts of full and ragged batches, of one sequence, and of one long among many short."""
    if args.smoke:
        return [Shape("2x20", (20, 20))]
    rng = random.Random(0)
    return [
        Shape("256x800", (800,) * 256),
        Shape("256 of 100-2000", tuple(rng.randint(100, 2000) for _ in range(256))),
        Shape("32x4096", (4096,) * 32),
        Shape("1x512", (512,)),
        Shape("1x8192", (8192,)),
        Shape("1x32768", (32768,)),
        Shape("16384 among 255x100", (*(100,) * 127, 16384, *(100,) * 128)),
    ]


def shape_rows(
    shape: Shape, variants: list[Variant], args: Namespace, rounds: int, *, decode: bool
) -> list[Row]:
    """Compare, then time the variants of one shape in turn.

    Raises:
        WrongResultError: One of them disagrees with the first.
    """
    batches = cold_batches(shape, args.device, bench_dtype(args), decode=decode)
    calls = {v.name: [v.prepare(batch) for batch in batches] for v in variants}
    apart = differences({name: own[0]() for name, own in calls.items()})
    passes = Passes(args.device)
    timed = {name: passes.timer(own) for name, own in calls.items()}
    taken = interleaved_calls(timed, rounds, 1)
    first, rows = variants[0], list[Row]()
    for variant in variants:
        seconds = taken[variant.name]
        labels: dict[str, str | int | bool | None] = {
            "part": "decode" if decode else "prefill",
            "shape": shape.name,
            "backend": variant.backend,
            "layout": variant.layout,
            "block_size": variant.block_size,
            "graphs": passes.graphs,
        }
        time = Measurement(tuple(seconds))
        rows.append(row("time", "s", time, **labels))
        if decode:
            moved = shape.kv_bytes(batches[0].k.element_size())
            rows.append(row("kv_rate", "GB/s", time.map(partial(_rate, moved / 1e9)), **labels))
        else:
            work = shape.causal_flops / 1e12
            rows.append(row("compute_rate", "TFLOP/s", time.map(partial(_rate, work)), **labels))
        if variant is not first:
            ratios = [a / b for a, b in zip(taken[first.name], seconds, strict=True)]
            rows.append(row(f"speedup_over_{first.backend}", "ratio", ratios, **labels))
            rows.append(row("max_difference", "abs", apart[variant.name], **labels))
    del calls, timed, batches
    release(args.device)
    return rows


def _rate(amount: float, seconds: float) -> float:
    return amount / seconds


def cold_batches(shape: Shape, device: str, dtype: torch.dtype, *, decode: bool) -> list[Batch]:
    """As many copies of the inputs as are larger than the cache together; one on a CPU."""
    queries = (1,) * len(shape.lens) if decode else shape.lens
    first = make_batch(queries, shape.lens, device, dtype)
    size = first.q.nbytes + first.k.nbytes + first.v.nbytes
    count = min(-(-COLD_BYTES // size), MOST_COPIES) if device.startswith("cuda") else 1
    return [first, *(make_batch(queries, shape.lens, device, dtype, i) for i in range(1, count))]


def differences(outputs: dict[str, Tensor]) -> dict[str, float]:
    """Largest absolute difference of each output from the first one.

    Raises:
        WrongResultError: It is too large for rounding, or not a number.
    """
    reference = next(iter(outputs.values())).float()
    found = {name: float((out.float() - reference).abs().max()) for name, out in outputs.items()}
    for name, difference in found.items():
        if not difference <= WRONG:
            raise WrongResultError(
                f"{name} differs from the reference by {difference:g}; "
                f"rounding explains up to {WRONG}"
            )
    return found


class Passes:
    """Turns calls into a function that returns the seconds of one of them.

    Attributes:
        graphs: Whether a pass is one CUDA graph.
    """

    def __init__(self, device: str) -> None:
        """Graphs on a GPU; their temporary tensors share one pool."""
        self.device, self.graphs = device, device.startswith("cuda")
        self._capture: CudaCapture | None = None
        if self.graphs:  # gpu-only: m4_flash/tests/test_bench_attention.py::test_attention_on_a_gpu
            self._capture = CudaCapture(torch.device(device))

    def timer(self, calls: list[Callable[[], Tensor]]) -> Callable[[], float]:
        """Warm the calls up; the result walks through all of them each time."""
        if self._capture is not None:
            calls = calls * -(-CALLS_PER_PASS // len(calls))

        def one_pass() -> None:
            for call in calls:
                call()

        run: Callable[[], None] = one_pass
        if self._capture is not None:
            _, run = self._capture.record(one_pass)
        timed = device_timer(self.device)(run)
        return lambda: timed() / len(calls)


def _summary(result: Result) -> str:
    """Our prefill kernel at the longest prompts (on a CPU PyTorch's), and our decode kernel."""
    for backend in ("triton", "sdpa"):
        own = {"backend": backend, "layout": "contiguous"}
        found = result.select(metric="compute_rate", **own)
        if found:
            break
    rate, shape = found[-1]["median"], found[-1]["shape"]
    (ratio,) = result.select(metric="speedup_over_naive", shape=shape, **own)
    line = (
        f"m4_flash attention, {backend}: {rate:.3g} TFLOP/s at {shape}, "
        f"{ratio['median']:.3g} times naive"
    )
    decodes = result.select(metric="kv_rate", backend="triton")
    return line + (
        f"; {decodes[0]['median']:,.0f} GB/s at {decodes[0]['shape']}" if decodes else ""
    )
