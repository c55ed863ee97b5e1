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
from m4_flash.cuda_graph import CudaCapture
from m4_flash.devices import supports_pdl
from m4_flash.linear import can_pack, few_rows, pack, product

ROWS = (1, 2, 4, 8, 16, 64)
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
    packed = [] if gpu or not can_pack() else [pack(weight) for weight in weights]
    rows: list[Row] = [row("weights", "B", float(moved))]
    for count in ROWS[::4] if args.smoke else ROWS:
        inputs = {
            width: torch.randn(count, width, dtype=model.dtype, device=model.device)
            for width in {weight.shape[1] for weight in weights}
        }
        pairs = [(inputs[weight.shape[1]], weight) for weight in weights]
        passes = ways(args.device, pairs, packed)
        if gpu:  # gpu-only: m4_flash/tests/test_benchmarks.py::test_few_rows_on_a_gpu
            capture = CudaCapture(model.device)
            passes = {name: capture.record(run_all)[1] for name, run_all in passes.items()}
        sync = synchronizer(args.device)
        times = interleaved(passes, repeat=args.repeat + 4, sync=sync)
        for name, time in times.items():
            rows.append(row("time", "s", time, rows=count, product=name))
            if name != "torch":
                ratio = times["torch"].median / time.median
                rows.append(row("speedup_over_torch", "ratio", ratio, rows=count, product=name))
    config = {"model": args.model, "dtype": str(model.dtype)}
    result = make_result(
        "m4_flash", "few_rows", rows, device=args.device, config=config, notes=notes
    )
    best = min(item["median"] for item in result.select(metric="time", rows=1))
    used = mbu(moved, best, measured_bandwidth(args.device))
    return result, summary_line("m4_flash, one row", 1 / best, used, None)


def ways(device: str, pairs: Pairs, packed: Sequence[Tensor]) -> dict[str, Callable[[], None]]:
    """Passes over all matrices by name: PyTorch's product first, then what this stage has."""
    found: dict[str, Callable[[], None]] = {"torch": partial(_multiply, F.linear, pairs)}
    gpu = device.startswith("cuda")
    if gpu:  # gpu-only: m4_flash/tests/test_benchmarks.py::test_few_rows_on_a_gpu
        from m4_flash.kernels.gemv import MAX_ROWS, gemv

        if len(pairs[0][0]) <= MAX_ROWS:
            found["gemv"] = partial(_multiply, partial(gemv, bias=None), pairs)
            if supports_pdl(torch.device(device)):
                early = partial(gemv, bias=None, pdl=True)
                found["early"] = partial(_multiply, early, pairs)
        return found
    found["few_rows"] = partial(_multiply, few_rows, pairs)
    if packed:
        blocked = [(x, p) for (x, _), p in zip(pairs, packed, strict=True)]
        found["packed"] = partial(_multiply, partial(product, bias=None), blocked)
    return found


def _multiply(multiply: Product, pairs: Pairs) -> None:
    """Every input with its matrix, once."""
    for x, weight in pairs:
        multiply(x, weight)
