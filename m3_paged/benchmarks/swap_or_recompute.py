"""A lab, not an engine mode: bring a preempted sequence back by copying its KV, or by computing it.

Swap: its blocks are copied to host memory at preemption and back at resumption. Recompute: its
tokens are prefilled again. vLLM V1 only recomputes; this is the measurement behind that choice.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable

import torch

from common.bench import summary_line
from common.request import SamplingParams
from common.results import Result, Row, make_result, row
from common.timing import interleaved, synchronizer
from m3_paged.engine import LLMEngine


def run(args: Namespace, notes: list[str]) -> tuple[Result, str]:
    """Time both ways at three context lengths, in turn.

    Args:
        args: The benchmark's command line.
        notes: Sentences for the result file.

    Returns:
        The result and the summary line.
    """
    gpu = args.device.startswith("cuda")
    lengths = (16, 32, 48) if args.smoke else (512, 2048, 8192) if gpu else (64, 256, 1024)
    blocks = -(-(lengths[-1] + 16) // 16)
    engine = LLMEngine(
        args.model, dtype=args.dtype, device=args.device, num_blocks=2 * blocks,
        max_model_len=lengths[-1] + 16, max_num_batched_tokens=lengths[-1] + 16,
    )  # fmt: skip
    sync = synchronizer(args.device)
    rows: list[Row] = []
    for length in lengths:
        out, back, size = _swaps(engine, length // 16, pinned=gpu)
        calls: dict[str, Callable[[], object]] = {
            "swap_out": out,
            "swap_in": back,
            "recompute": _prefill(engine, length),
        }
        for name, seconds in interleaved(calls, args.repeat, 1, sync).items():
            rows.append(row(name, "s", seconds, context=length))
        rows.append(row("kv_bytes", "B", float(size), context=length))
    result = make_result(
        "m3_paged", "swap_or_recompute", rows, device=args.device,
        config={"model": args.model, "dtype": str(engine.model.dtype), "pinned": gpu}, notes=notes,
    )  # fmt: skip
    (last,) = result.select(metric="recompute", context=lengths[-1])
    name = f"m3_paged recompute of {lengths[-1]} tokens"
    return result, summary_line(name, lengths[-1] / last["median"], None, None)


def _swaps(
    engine: LLMEngine, count: int, *, pinned: bool
) -> tuple[Callable[[], object], Callable[[], object], int]:
    """Copies of ``count`` scattered blocks to the host and back, and their bytes."""
    kv = engine.runner.cache.kv
    order = torch.randperm(kv.shape[2], generator=torch.Generator().manual_seed(0))
    blocks = order[:count].to(kv.device)
    shape = (*kv.shape[:2], count, *kv.shape[3:])
    host = torch.empty(shape, dtype=kv.dtype, pin_memory=pinned)

    def out() -> None:
        host.copy_(kv[:, :, blocks], non_blocking=True)

    def back() -> None:
        kv[:, :, blocks] = host.to(kv.device, non_blocking=True)

    return out, back, host.nbytes


def _prefill(engine: LLMEngine, length: int) -> Callable[[], object]:
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    prompt = [token % 1000 for token in range(length)]
    return lambda: engine.generate([prompt], params)
