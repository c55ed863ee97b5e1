"""The products with packed weights alone, each kernel in turn, from one row of x to 256.

On a GPU four ways compete with cuBLAS on a dense bfloat16 weight: the GEMV, the kernel for few
rows, the fused GEMM, and dequantising followed by cuBLAS. The first three are launched early as
well, where the device can (:mod:`m4_flash.kernels.launch`), as an engine does. And a kernel that
only reads as many bytes, launched plainly, shows what is possible at all. Weights are cold: each
timed pass walks through as many copies as exceed the L2 cache, as one CUDA graph. A CPU has no
kernels to time: there the reference (unpack, multiply) is compared with the dense product.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from common.peaks import measured_bandwidth
from common.results import Result, Row, make_result, row
from common.timing import Measurement, interleaved_calls
from m4_flash.benchmarks.attention import ROUNDS, Passes, bench_dtype, differences
from m4_flash.benchmarks.engines import announce, release
from m4_flash.devices import supports_pdl
from m7_gptq.benchmarks.kernel_layers import (
    GROUP,
    Shape,
    batches_of,
    copies_of,
    random_weight,
    reference_layer,
    shapes_of,
)
from m7_gptq.kernels.repack import PackedWeight

FUSED = ("gemv", "few_rows", "gemm", "dense")
"""The paths of ``w4a16_matmul``."""

GEMV_ROWS = 4
"""Rows up to which the GEMV, which takes them one by one, is timed."""

EARLY = ("gemv early", "few_rows early", "gemm early")
"""The first three, launched before the kernel in front has ended."""

RATE_NOTE = "GB/s count the weight as it is stored, scales and zero points included, and not x"
COPY_NOTE = "share_of_copy is GB/s over those of a large copy, which count bytes read plus written"
CPU_NOTE = (
    "The Triton kernels need a GPU and are left out; 'reference' unpacks and multiplies in PyTorch"
)


def run(args: Namespace, notes: list[str]) -> tuple[Result, str]:
    """Time every kernel on a GPU, the reference on a CPU.

    Args:
        args: The benchmark's command line.
        notes: Sentences for the result file.

    Returns:
        The result and the summary line.

    Raises:
        WrongResultError: Two kernels disagree.
    """
    announce("kernels", args, 110, 20)
    gpu, rows = args.device.startswith("cuda"), list[Row]()
    rounds = args.repeat * (1 if args.smoke else ROUNDS)
    config: dict[str, object] = {"group_size": GROUP, "rounds": rounds}
    config["dtype"] = str(bench_dtype(args)).removeprefix("torch.")
    if gpu:  # gpu-only: m7_gptq/tests/test_gpu_kernels.py::test_benchmark
        notes = [*notes, RATE_NOTE, COPY_NOTE]
        config["copy_bandwidth"] = copy = measured_bandwidth(args.device).value
        for shape in shapes_of(args):
            rows += shape_rows(shape, args, rounds, copy)
    else:
        notes = [*notes, CPU_NOTE]
        for shape in shapes_of(args):
            rows += reference_rows(shape, args, rounds)
    result = make_result(
        "m7_gptq", "kernels", rows, device=args.device, config=config, notes=notes
    )  # fmt: skip
    return result, summary(result)


Calls = dict[str, list[Callable[[], Tensor]]]


def calls_of(
    weights: list[PackedWeight], dense: list[Tensor], flat: list[Tensor], x: Tensor
) -> Calls:
    """What each kernel does, once for each copy of the weight; cuBLAS is the first."""
    from m7_gptq.kernels.few_rows import MAX_ROWS, few_rows
    from m7_gptq.kernels.gemm import dequantise, gemm
    from m7_gptq.kernels.gemv import gemv
    from m7_gptq.kernels.read import read_words

    linear = torch.nn.functional.linear
    calls: Calls = {"cublas": [lambda w=w: linear(x, w) for w in dense]}
    kernels: dict[str, Callable[..., Tensor]] = {"gemm": gemm}
    if len(x) <= MAX_ROWS and x.dtype != torch.float32:
        kernels = {"few_rows": few_rows, **kernels}
    if len(x) <= GEMV_ROWS:
        kernels = {"gemv": gemv, **kernels}
    for name, kernel in kernels.items():
        calls[name] = [lambda w=w, k=kernel: k(x, w) for w in weights]
        if supports_pdl(x.device):  # gpu-only: m7_gptq/tests/test_gpu_kernels.py::test_benchmark
            calls[f"{name} early"] = [lambda w=w, k=kernel: k(x, w, pdl=True) for w in weights]
    calls["dense"] = [lambda w=w: linear(x, dequantise(w, x.dtype)) for w in weights]
    calls["read"] = [lambda f=f: read_words(f) for f in flat]
    return calls


def shape_rows(shape: Shape, args: Namespace, rounds: int, copy: float) -> list[Row]:
    """Compare, then time all kernels on one layer, for every number of rows.

    Args:
        shape: The layer.
        args: The command line: device, dtype, smoke.
        rounds: Timed passes of each kernel.
        copy: Bytes per second of a copy.

    Raises:
        WrongResultError: One of them disagrees with the dense product.
    """
    device, dtype, rows = args.device, bench_dtype(args), list[Row]()
    first = random_weight(shape, device)
    matrix = first.dequantised().to(dtype)
    weights = [first]
    weights += [random_weight(shape, device, i) for i in range(1, copies_of(first.nbytes, device))]
    dense = [matrix, *(matrix.clone() for _ in range(1, copies_of(matrix.nbytes, device)))]
    flat = [
        torch.cat([part.view(torch.int32).flatten() for part in (w.words, w.zeros, w.scales)])
        for w in weights
    ]
    passes = Passes(device)
    fastest: dict[int, str] = {}
    for batch in batches_of(args):
        x = torch.randn(batch, shape.inputs, device=device).to(dtype)
        calls = calls_of(weights, dense, flat, x)
        apart = differences({name: own[0]() for name, own in calls.items() if name != "read"})
        timed = {name: passes.timer(own) for name, own in calls.items()}
        taken = {k: Measurement(tuple(v)) for k, v in interleaved_calls(timed, rounds, 1).items()}
        sizes = dict.fromkeys(taken, first.nbytes) | {"cublas": matrix.nbytes}
        labels = {"shape": shape.name, "bits": shape.bits, "batch": batch, "graphs": passes.graphs}
        rows += kernel_rows(taken, sizes, apart, copy, labels)
        paths = {n: taken.get(f"{n} early", taken[n]).median for n in taken if n in FUSED}
        fastest[batch] = min(paths, key=lambda n: paths[n])
        del calls, timed
    del weights, dense, flat, passes
    release(device)
    return rows + crossover_rows(shape, fastest)


def kernel_rows(
    taken: Mapping[str, Measurement],
    sizes: Mapping[str, int],
    apart: Mapping[str, float],
    copy: float,
    labels: Mapping[str, str | int | bool],
) -> list[Row]:
    """Times of one batch, and what follows from them.

    Args:
        taken: Seconds of each kernel, in the same rounds.
        sizes: Bytes of each kernel's weight.
        apart: Largest difference from cuBLAS.
        copy: Bytes per second of a copy.
        labels: What sets this batch apart.
    """
    rows = list[Row]()
    for name, time in taken.items():
        own = {**labels, "kernel": name}
        rate = time.map(lambda seconds, size=sizes[name]: size / seconds)
        rows.append(row("time", "s", time, **own))
        rows.append(row("weight_rate", "GB/s", rate.map(lambda value: value / 1e9), **own))
        rows.append(row("share_of_copy", "share", rate.map(lambda value: value / copy), **own))
        if name in FUSED + EARLY:
            over_read = _ratios(time, taken["read"])
            rows.append(row("time_over_read", "ratio", over_read, **own))
            rows.append(row("speedup_over_cublas", "ratio", _ratios(taken["cublas"], time), **own))
            rows.append(row("max_difference", "abs", apart[name], **own))
    return rows


def _ratios(above: Measurement, below: Measurement) -> list[float]:
    return [a / b for a, b in zip(above.values, below.values, strict=True)]


def crossover_rows(shape: Shape, fastest: Mapping[int, str]) -> list[Row]:
    """The fields of ``Crossover`` that these measurements ask for; 0 where a path never wins.

    Args:
        shape: The layer.
        fastest: The fastest path by rows of x, in ascending order.
    """
    last = {"gemv_rows": 0, "few_rows": 0, "gemm_rows": 0}
    for place, path in enumerate(last, 1):
        for batch, name in fastest.items():
            if name in FUSED[place:]:
                break
            last[path] = batch
    return [
        row("crossover", "rows", float(value), shape=shape.name, bits=shape.bits, limit=limit)
        for limit, value in last.items()
    ]


def reference_rows(shape: Shape, args: Namespace, rounds: int) -> list[Row]:
    """Time the reference against the dense product, on the CPU.

    Raises:
        WrongResultError: They disagree.
    """
    dtype, rows, passes = bench_dtype(args), list[Row](), Passes("cpu")
    layer = reference_layer(shape, dtype)
    dense = layer.dequantised(0, shape.outputs).T.contiguous().to(dtype)
    for batch in batches_of(args):
        x = torch.randn(batch, shape.inputs).to(dtype)
        calls: Calls = {
            "torch": [lambda x=x: torch.nn.functional.linear(x, dense)],
            "reference": [lambda x=x: layer(x)],
        }
        apart = differences({name: own[0]() for name, own in calls.items()})
        timed = {name: passes.timer(own) for name, own in calls.items()}
        taken = {k: Measurement(tuple(v)) for k, v in interleaved_calls(timed, rounds, 1).items()}
        for name, time in taken.items():
            labels = {"shape": shape.name, "bits": shape.bits, "batch": batch, "kernel": name}
            rows.append(row("time", "s", time, **labels))
        over = _ratios(taken["reference"], taken["torch"])
        rows.append(row("time_over_dense", "ratio", over, **labels))
        rows.append(row("max_difference", "abs", apart["reference"], **labels))
    return rows


def summary(result: Result) -> str:
    """One row of the largest 4-bit layer; on a CPU what the reference costs."""
    found = result.select(metric="time_over_read", kernel="few_rows early", batch=1, bits=4)
    if not found:
        first = result.select(metric="time_over_dense")[0]
        return (
            f"m7_gptq kernels: need a GPU; the reference takes {first['median']:.3g} times as long "
            f"as the dense product at {first['shape']}, batch {first['batch']}"
        )
    over_read = found[-1]
    own = {"kernel": over_read["kernel"], "batch": 1, "shape": over_read["shape"]}
    (share,) = result.select(metric="share_of_copy", **own)
    (speedup,) = result.select(metric="speedup_over_cublas", **own)
    return (
        f"m7_gptq kernels, one row at {own['shape']}: {share['median']:.1%} of copy bandwidth, "
        f"{over_read['median']:.3g} times as long as a read, "
        f"{speedup['median']:.3g} times as fast as cuBLAS"
    )
