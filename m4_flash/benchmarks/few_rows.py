"""A few rows times every matrix of the model: PyTorch's product, and ours.

The time of one pass over all linear layers, which is what a decode step spends on weights; on a CPU
with the head, which a GPU multiplies by PyTorch's product in either case. Beside it, the time that
reading them takes at the measured copy bandwidth. On a GPU a pass is replayed from a graph, and
``early`` is ours launched programmatically (:mod:`m4_flash.kernels.launch`).
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common.bench import summary_line
from common.metrics import mbu
from common.model.linear import DenseLinear, TiedHead
from common.peaks import measured_bandwidth
from common.results import Result, Row, make_result, row
from common.timing import interleaved, synchronizer
from m0_init.loader import load
from m4_flash.devices import supports_pdl
from m4_flash.linear import few_rows

ROWS = (1, 2, 4, 8, 16)
Pairs = Sequence[tuple[Tensor, Tensor]]
Product = Callable[[Tensor, Tensor], Tensor]


@torch.inference_mode()
def run(args: Namespace, notes: list[str]) -> tuple[Result, str]:
    """Multiply in turn, both ways, for each number of rows.

    Args:
        args: The benchmark's command line.
        notes: Sentences for the result file.

    Returns:
        The result and the summary line.
    """
    model = load(args.model, dtype=args.dtype, device=args.device).model
    gpu = args.device.startswith("cuda")
    kinds = DenseLinear if gpu else (DenseLinear, TiedHead)
    weights = [layer.weight for layer in model.modules() if isinstance(layer, kinds)]
    moved = sum(weight.nbytes for weight in weights)
    rows: list[Row] = [row("weights", "B", float(moved))]
    for count in ROWS[::4] if args.smoke else ROWS:
        inputs = {
            width: torch.randn(count, width, dtype=model.dtype, device=model.device)
            for width in {weight.shape[1] for weight in weights}
        }
        pairs = [(inputs[weight.shape[1]], weight) for weight in weights]
        passes: dict[str, Callable[[], None]] = {
            name: partial(_multiply, product, pairs)
            for name, product in products(args.device).items()
        }
        if gpu:  # gpu-only: m4_flash/tests/test_benchmarks.py::test_few_rows_on_a_gpu
            passes = {name: captured(run_all) for name, run_all in passes.items()}
        sync = synchronizer(args.device)
        times = interleaved(passes, repeat=args.repeat + 4, sync=sync)
        rows += [row("time", "s", time, rows=count, product=name) for name, time in times.items()]
        for name in list(times)[1:]:
            ratio = times["torch"].median / times[name].median
            rows.append(row("speedup_over_torch", "ratio", ratio, rows=count, product=name))
    config = {"model": args.model, "dtype": str(model.dtype)}
    result = make_result(
        "m4_flash", "few_rows", rows, device=args.device, config=config, notes=notes
    )
    (best,) = result.select(metric="time", rows=1, product=list(products(args.device))[-1])
    used = mbu(moved, best["median"], measured_bandwidth(args.device))
    return result, summary_line("m4_flash, one row", 1 / best["median"], used, None)


def products(device: str) -> dict[str, Product]:
    """Ways to multiply, PyTorch's first, ours last."""
    if device.startswith(
        "cuda"
    ):  # gpu-only: m4_flash/tests/test_benchmarks.py::test_few_rows_on_a_gpu
        from m4_flash.kernels.gemv import gemv

        found: dict[str, Product] = {"torch": F.linear, "gemv": lambda x, w: gemv(x, w, None)}
        if supports_pdl(torch.device(device)):
            found["early"] = lambda x, w: gemv(x, w, None, pdl=True)
        return found
    return {"torch": F.linear, "few_rows": few_rows}


def captured(  # gpu-only: m4_flash/tests/test_benchmarks.py::test_few_rows_on_a_gpu
    run_all: Callable[[], None],
) -> Callable[[], None]:
    """Warm up, then record a graph; returns what replays it."""
    run_all()
    torch.cuda.synchronize()
    graph: Any = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run_all()

    def replay() -> None:
        graph.replay()

    return replay


def _multiply(product: Product, pairs: Pairs) -> None:
    """Every input with its matrix, once."""
    for x, weight in pairs:
        product(x, weight)
