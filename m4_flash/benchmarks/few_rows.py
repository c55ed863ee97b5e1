"""A few rows times every matrix of the model: PyTorch's product, and ours written the other way.

The time of one pass over all linear layers and the head, which is what a decode step spends on
weights; beside it, the time that reading them takes at the measured copy bandwidth.
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
from m4_flash.linear import few_rows

ROWS = (1, 2, 4, 8, 16)
Pairs = Sequence[tuple[Tensor, Tensor]]


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
    kinds = (DenseLinear, TiedHead)
    weights = [layer.weight for layer in model.modules() if isinstance(layer, kinds)]
    moved = sum(weight.nbytes for weight in weights)
    rows: list[Row] = [row("weights", "B", float(moved))]
    for count in ROWS[::4] if args.smoke else ROWS:
        inputs = {
            width: torch.randn(count, width, dtype=model.dtype, device=model.device)
            for width in {weight.shape[1] for weight in weights}
        }
        pairs = [(inputs[weight.shape[1]], weight) for weight in weights]
        times = interleaved(
            {
                "torch": partial(_multiply, F.linear, pairs),
                "few_rows": partial(_multiply, few_rows, pairs),
            },
            repeat=args.repeat + 4,
            sync=synchronizer(args.device),
        )
        rows += [row("time", "s", time, rows=count, product=name) for name, time in times.items()]
        ratio = times["torch"].median / times["few_rows"].median
        rows.append(row("speedup_over_torch", "ratio", ratio, rows=count, product="few_rows"))
    config = {"model": args.model, "dtype": str(model.dtype)}
    result = make_result(
        "m4_flash", "few_rows", rows, device=args.device, config=config, notes=notes
    )
    (best,) = result.select(metric="time", rows=1, product="few_rows")
    used = mbu(moved, best["median"], measured_bandwidth(args.device))
    return result, summary_line("m4_flash, one row", 1 / best["median"], used, None)


def _multiply(product: Callable[[Tensor, Tensor], Tensor], pairs: Pairs) -> None:
    """Every input with its matrix, once."""
    for x, weight in pairs:
        product(x, weight)
