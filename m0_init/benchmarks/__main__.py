"""``python -m m0_init.benchmarks``: loading a checkpoint, beside transformers.

Each load runs in a process of its own, both loaders in turn; with the file in the page cache
(warm) and without (cold). ``--full`` adds a random checkpoint of Qwen3-0.6B's shape.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from common.bench import add_bench_arguments, finish
from common.cli_errors import OneLineParser, run
from common.devices import format_bytes
from common.hub import resolve_model
from common.random_model import NOTE, RANDOM_MODEL
from common.records import without_paths
from common.results import Result, Row, make_result, row
from common.timing import interleaved_calls

if TYPE_CHECKING:
    from m0_init.benchmarks.measure import LoadRun

LOADERS = ("m0_init", "transformers")


def main(argv: list[str]) -> int:
    """Run the benchmark and write its result file.

    Raises:
        FoloError: Bad input, or a load that failed.
    """
    parser = OneLineParser(
        prog="python -m m0_init.benchmarks",
        description="What loading a checkpoint costs in time, memory and bytes, beside "
        "transformers.",
    )
    add_bench_arguments(parser)
    parser.add_argument("--model", help="one model instead of smollm2 (local folder, hub id)")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (cuda adds the CPU's)")
    parser.add_argument("--dtype", default="auto", help="element type (auto: as stored)")
    args = parser.parse_args(argv)
    from m0_init.benchmarks.measure import weights_only
    from m0_init.loader import resolve_device, resolve_dtype

    resolve_dtype(args.dtype)
    device = str(resolve_device(args.device))
    models = [args.model or "smollm2", *([RANDOM_MODEL] if args.full else [])]
    names = [str(without_paths(model)) for model in models]
    rows: list[Row] = []
    for model, name in zip(models, names, strict=True):
        with weights_only(resolve_model(model)) as folder:
            for place in dict.fromkeys(("cpu", device)):
                rows += load_rows(name, folder, place, args)
    result = make_result(
        "m0_init",
        "load",
        rows,
        device=device,
        config={"models": names, "dtype": args.dtype},
        notes=[NOTE] if RANDOM_MODEL in models else [],
    )
    finish(result, summary(result, names[-1], device), args.out)
    return 0


def load_rows(model: str, folder: Path, device: str, args: argparse.Namespace) -> list[Row]:
    """Measure both loaders on one model and device, warm and (but for ``--smoke``) cold.

    Args:
        model: Name for the rows.
        folder: Its folder.
        device: Where to load to.
        args: The benchmark's command line.
    """
    from m0_init.benchmarks.measure import drop_from_page_cache, fill_page_cache

    states: dict[str, Callable[[Path], object]] = {"warm": fill_page_cache}
    if not args.smoke:
        states["cold"] = drop_from_page_cache
    rows: list[Row] = []
    for cache, prepare in states.items():
        calls = {loader: _call(loader, folder, device, args.dtype, prepare) for loader in LOADERS}
        for loader, runs in interleaved_calls(calls, 1 if args.smoke else args.repeat, 0).items():
            labels = {"model": model, "loader": loader, "device": device, "cache": cache}
            rows += _rows_of(runs, labels)
    return rows


def _call(
    loader: str, folder: Path, device: str, dtype: str, prepare: Callable[[Path], object]
) -> Callable[[], LoadRun]:
    from m0_init.benchmarks.measure import load_in_fresh_process

    def call() -> LoadRun:
        prepare(folder)
        return load_in_fresh_process(loader, folder, device=device, dtype=dtype)

    return call


def _rows_of(runs: list[LoadRun], labels: dict[str, str]) -> list[Row]:
    """One row per quantity; memory and bytes only where the system tells them."""
    rows = [
        row("load_time", "s", [run.load_seconds for run in runs], **labels),
        row("first_token_time", "s", [run.first_token_seconds for run in runs], **labels),
    ]
    sizes = {
        "peak_private": [run.peak_private for run in runs],
        "peak_file_mapped": [run.peak_file_mapped for run in runs],
        "bytes_read": [run.bytes_read for run in runs],
    }
    for metric, values in sizes.items():
        known = [float(value) for value in values if value is not None]
        if known:
            rows.append(row(metric, "B", known, **labels))
    return rows


def summary(result: Result, model: str, device: str) -> str:
    """The last line: warm load of one model, ours and the ratio to transformers."""

    def median(metric: str, loader: str) -> float:
        labels = {"model": model, "device": device, "cache": "warm", "loader": loader}
        (found,) = result.select(metric=metric, **labels)
        return float(found["median"])

    (ours, theirs) = (median("first_token_time", loader) for loader in LOADERS)
    line = f"m0_init load, {model} to {device}: {ours:.2f} s to the first token"
    line += f" · transformers {theirs:.2f} s, {theirs / ours:.2f}×"
    private = result.select(metric="peak_private", model=model, cache="warm", device=device)
    sizes = {item["loader"]: format_bytes(int(item["median"])) for item in private}
    if sizes:
        line += f" · private memory {sizes['m0_init']} and {sizes['transformers']}"
    return line


if __name__ == "__main__":
    run(main)
