"""Measure candidate tile sizes of the attention kernels on this GPU and write its table.

``python -m m4_flash.benchmarks.tune --out DIR`` writes the table, ``DIR/<device>.json``, which
belongs into ``m4_flash/kernels/tuned/``, and a result file with every measurement,
``DIR/<device>/m4_flash-tune.json``. ``--kind`` measures one kernel alone and takes the others'
entries from the committed table. Shapes are those of Qwen3-0.6B (16 query heads, 8 KV heads,
head_dim 128, bfloat16, blocks of 16). A candidate that does not compile, does not fit or computes
something else than the first one is left out and listed. Calls are replayed from a CUDA graph, so
that no launch is measured, with the L2 cache flushed before each.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, get_args

import torch

from common.bench import finish
from common.cli_errors import OneLineParser, one_line, run
from common.environment import device_info, versions
from common.errors import ConfigError
from common.results import Result, Row, make_result, row
from common.timing import device_timer, interleaved_calls
from m4_flash.benchmarks.tune_cases import (
    BLOCK_SIZE,
    NUM_HEADS,
    NUM_KV_HEADS,
    Case,
    Config,
    cases_of,
)
from m4_flash.kernels.tuning import (
    DecodeConfig,
    DecodeEntry,
    DecodeKind,
    PrefillConfig,
    PrefillEntry,
    PrefillKind,
    Table,
    dtype_name,
    table_of,
    write_table,
)

PREFILL_KINDS: tuple[PrefillKind, ...] = get_args(PrefillKind)
DECODE_KINDS: tuple[DecodeKind, ...] = get_args(DecodeKind)
PREFILLS = ((8, 2048), (1, 8192), (32, 512))
FEW = ((32, 8192), (128, 2048), (512, 8192))
DECODES = tuple((batch, length) for batch in (1, 8, 64, 256) for length in (512, 800, 8192))
TOLERANCE = 0.02
"""Two candidates may round bfloat16 weights at other places; outputs are of size 1 and below."""
FLUSH_BYTES = 2**28

Prepare = Callable[[Callable[[], object]], Callable[[], float]]
"""Runs a launch once, and returns what measures it in seconds."""


@dataclass(frozen=True)
class Sweep(Generic[Config]):
    """What came out of one case.

    Attributes:
        times: Seconds of every candidate that works.
        skipped: Why each of the others does not.
    """

    times: dict[Config, list[float]]
    skipped: dict[Config, str]


def prefill_candidates(*, contiguous: bool) -> list[PrefillConfig]:
    """Tile sizes worth measuring; the copy engine only serves contiguous K and V."""
    shapes = [
        (128, 128, 8, 2), (128, 128, 8, 3), (128, 64, 8, 2), (128, 64, 8, 3), (128, 64, 8, 4),
        (128, 64, 4, 2), (128, 64, 4, 3), (128, 32, 4, 3), (128, 32, 8, 4),
        (64, 128, 4, 2), (64, 64, 4, 2), (64, 64, 4, 3), (64, 64, 4, 4), (64, 32, 4, 3),
        (256, 64, 8, 2), (256, 64, 16, 3),
    ]  # fmt: skip
    copies = (False, True) if contiguous else (False,)
    return [PrefillConfig(*shape, use_tma=copy) for copy in copies for shape in shapes]


def decode_candidates() -> list[DecodeConfig]:
    """Tile sizes worth measuring: what varies is the number of bytes in flight."""
    shapes = [
        (16, 1, 4), (16, 1, 6), (16, 2, 6), (32, 1, 3), (32, 1, 5), (32, 2, 3), (32, 2, 5),
        (32, 4, 3), (32, 4, 5), (64, 2, 3), (64, 4, 2), (64, 4, 3), (64, 4, 4), (64, 8, 3),
        (128, 4, 2), (128, 4, 3), (128, 8, 2), (128, 8, 3),
    ]  # fmt: skip
    return [DecodeConfig(*shape) for shape in shapes]


def sweep(
    case: Case[Config], configs: Iterable[Config], prepare: Prepare, repeat: int
) -> Sweep[Config]:
    """Time every candidate that works on one shape, in turn.

    Args:
        case: The shape.
        configs: Candidates.
        prepare: See :data:`Prepare`.
        repeat: Rounds.
    """
    ready: dict[str, Callable[[], float]] = {}
    skipped: dict[Config, str] = {}
    named: dict[str, Config] = {}
    expected = None
    for config in configs:
        try:
            call = prepare(functools.partial(case.launch, config))
        except Exception as error:  # whatever a compiler or a driver raises
            skipped[config] = one_line(f"{type(error).__name__}: {error}")[:200]
            continue
        expected = case.out.float().clone() if expected is None else expected
        if not torch.allclose(case.out.float(), expected, atol=TOLERANCE, rtol=TOLERANCE):
            skipped[config] = "its output differs from that of the first candidate"
            continue
        ready[describe(config)], named[describe(config)] = call, config
    measured = interleaved_calls(ready, repeat, warmup=2) if ready else {}
    return Sweep({named[name]: times for name, times in measured.items()}, skipped)


def choose(sweeps: Iterable[Sweep[Config]]) -> Config | None:
    """The candidate with the least time relative to the best of each shape, geometric mean.

    Only those that work on every shape count; None where there is none.
    """
    shapes = [{config: min(times) for config, times in found.times.items()} for found in sweeps]
    if not shapes:
        return None
    common = [config for config in shapes[0] if all(config in shape for shape in shapes)]

    def loss(config: Config) -> float:
        return sum(math.log(shape[config] / min(shape.values())) for shape in shapes)

    return min(common, key=loss, default=None)


def describe(config: PrefillConfig | DecodeConfig) -> str:
    """``M128 N64 w8 s3``: rows, keys, warps and stages; ``tma`` for the copy engine."""
    text = f"N{config.block_n} w{config.num_warps} s{config.num_stages}"
    if isinstance(config, PrefillConfig):
        text = f"M{config.block_m} {text}{' tma' if config.use_tma else ''}"
    return text


def tune(
    cases: Iterable[Case[Any]],
    configs: Mapping[str, list[Any]],
    *,
    head_dim: int,
    dtype: torch.dtype,
    prepare: Prepare,
    repeat: int,
) -> tuple[list[PrefillEntry], list[DecodeEntry], list[Row], list[str]]:
    """Sweep all cases; returns the entries, every measurement, and what was skipped.

    Args:
        cases: The shapes, each of one kernel.
        configs: Candidates by kernel.
        head_dim: Width of a head.
        dtype: Element type.
        prepare: See :data:`Prepare`.
        repeat: Rounds.
    """
    rows: list[Row] = []
    notes: list[str] = []
    found: dict[str, list[Sweep[Any]]] = {}
    for case in cases:
        result = sweep(case, configs[case.kind], prepare, repeat)
        found.setdefault(case.kind, []).append(result)
        for config, times in result.times.items():
            labels = {"kernel": case.kind, "shape": case.label, "config": describe(config)}
            rows.append(row("time", "s", times, head_dim=head_dim, **labels))
            metric = "flops" if case.kind.startswith("prefill") else "bandwidth"
            unit = "FLOP/s" if metric == "flops" else "B/s"
            rates = [case.work / seconds for seconds in times]
            rows.append(row(metric, unit, rates, head_dim=head_dim, **labels))
        for config, why in result.skipped.items():
            notes.append(f"{case.kind} {case.label} {describe(config)} skipped: {why}")
    best = {kind: choose(sweeps) for kind, sweeps in found.items()}
    name = dtype_name(dtype)
    prefill_entries = [
        PrefillEntry(kind, head_dim, name, best[kind])  # type: ignore[arg-type]
        for kind in PREFILL_KINDS
        if best.get(kind)
    ]
    decode_entries = [
        DecodeEntry(kind, head_dim, name, best[kind])  # type: ignore[arg-type]
        for kind in DECODE_KINDS
        if best.get(kind)
    ]
    return prefill_entries, decode_entries, rows, notes


def replayed(  # gpu-only: m4_flash/tests/test_gpu_attention.py::test_tune_one_shape
    launch: Callable[[], object],
) -> Callable[[], float]:
    """Compile and check a launch, record it in a graph, and time replays with a cold cache."""
    launch()
    torch.cuda.synchronize()
    graph: Any = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    graph.replay()
    torch.cuda.synchronize()
    return device_timer("cuda", FLUSH_BYTES)(graph.replay)


def main(argv: list[str]) -> int:
    """The command. Returns the exit code.

    Raises:
        FoloError: No GPU, or a bad flag.
    """
    parser = OneLineParser(prog="python -m m4_flash.benchmarks.tune", description=_first_line())
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write")
    parser.add_argument("--head-dim", type=int, nargs="+", default=[128], help="(default 128)")
    parser.add_argument(
        "--kind", choices=(*PREFILL_KINDS, *DECODE_KINDS), help="one kernel (default all)"
    )
    parser.add_argument("--repeat", type=int, default=15, help="rounds per shape (default 15)")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise ConfigError("tile sizes are measured on a GPU, and there is none")
    return _measure(args)  # gpu-only: m4_flash/tests/test_gpu_attention.py::test_tune_one_shape


def _measure(  # gpu-only: m4_flash/tests/test_gpu_attention.py::test_tune_one_shape
    args: argparse.Namespace,
    prefills: tuple[tuple[int, int], ...] = PREFILLS,
    few: tuple[tuple[int, int], ...] = FEW,
    decodes: tuple[tuple[int, int], ...] = DECODES,
) -> int:
    sms = torch.cuda.get_device_properties("cuda").multi_processor_count
    configs: dict[str, list[Any]] = {
        "prefill_paged": prefill_candidates(contiguous=False),
        "prefill_few": prefill_candidates(contiguous=False),
        "prefill_contiguous": prefill_candidates(contiguous=True),
        **dict.fromkeys(DECODE_KINDS, decode_candidates()),
    }
    wanted = {args.kind} if args.kind else {*configs}
    found = []
    for head_dim in args.head_dim:
        cases = cases_of(
            wanted, prefills, few, decodes,
            head_dim=head_dim, dtype=torch.bfloat16, device="cuda", num_sms=sms,
        )  # fmt: skip
        found.append(
            tune(
                cases, configs,
                head_dim=head_dim, dtype=torch.bfloat16, prepare=replayed, repeat=args.repeat,
            )
        )  # fmt: skip
    table, result = tables(found, "cuda", f"tune_{args.kind}" if args.kind else "tune")
    if args.kind and (known := table_of(torch.device("cuda"))):
        table = table.over(known)
    path = args.out / f"{device_info('cuda').slug}.json"
    write_table(table, path)
    finish(result, f"m4_flash: tile sizes written to {path.name}", args.out)
    return 0


def tables(
    tuned: Iterable[tuple[list[PrefillEntry], list[DecodeEntry], list[Row], list[str]]],
    device: str,
    benchmark: str = "tune",
) -> tuple[Table, Result]:
    """What :func:`tune` found, as the table and as the result file of a name."""
    prefill: list[PrefillEntry] = []
    decode: list[DecodeEntry] = []
    rows: list[Row] = []
    notes: list[str] = []
    for some_prefill, some_decode, some_rows, some_notes in tuned:
        prefill += some_prefill
        decode += some_decode
        rows += some_rows
        notes += some_notes
    compiler = versions(device).get("triton", "unknown")
    table = Table(device_info(device).name, compiler, tuple(prefill), tuple(decode))
    config = {"num_heads": NUM_HEADS, "num_kv_heads": NUM_KV_HEADS, "block_size": BLOCK_SIZE}
    notes += [_chosen(e.kind, e.head_dim, e.config) for e in prefill]
    notes += [_chosen(e.kind, e.head_dim, e.config) for e in decode]
    result = make_result("m4_flash", benchmark, rows, device=device, config=config, notes=notes)
    return table, result


def _chosen(kind: str, head_dim: int, config: PrefillConfig | DecodeConfig) -> str:
    return f"chosen for {kind}, head_dim {head_dim}: {describe(config)}"


def _first_line() -> str:
    return (__doc__ or "").split("\n")[0]


if __name__ == "__main__":
    run(main)
