"""Benchmark results as files: what was measured, where, on which source, by which command.

A result is a list of flat rows, one quantity each, with the median, the extremes and the number
of runs. Everything the site shows is generated from these files.
"""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.environment import (
    REPOSITORY,
    RESULTS,
    DeviceInfo,
    command_line,
    commit,
    device_info,
    versions,
)
from common.errors import FoloError
from common.records import RecordError, dump, from_plain, load, to_plain, without_paths
from common.timing import Measurement
from common.workload import Workload, WorkloadInfo

SCHEMA = "folovllm.result"
VERSION = 1
RESULTS_ROOT = REPOSITORY / RESULTS
MEASURED = ("metric", "unit", "median", "min", "max", "spread", "n")

Row = dict[str, Any]


class ResultError(FoloError, ValueError):
    """A result file that cannot be read, or two that must not be compared."""


@dataclass(frozen=True)
class Result:
    """One benchmark run.

    Attributes:
        stage: Stage whose benchmark it is.
        benchmark: Name of the benchmark within the stage.
        device: Where it ran.
        versions: Versions of Python, packages and, on a GPU, CUDA and driver.
        commit: State of the source, see :func:`common.environment.commit`.
        created: UTC time, ISO 8601, in seconds.
        command: The command that repeats it.
        workload: The request list, or None for a micro-benchmark.
        config: Engine and benchmark options, JSON scalars.
        rows: Flat rows: the keys of :data:`MEASURED`, and labels such as ``engine``.
        notes: Sentences that a reader of the numbers must know.
    """

    stage: str
    benchmark: str
    device: DeviceInfo
    versions: dict[str, str]
    commit: str
    created: str
    command: str
    workload: WorkloadInfo | None = None
    config: dict[str, Any] = field(default_factory=dict)
    rows: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_dirty(self) -> bool:
        """Whether the source had changes that no commit holds."""
        return "-dirty" in self.commit

    @property
    def path(self) -> Path:
        """Where the file lies under a results folder: ``<device>/<stage>-<benchmark>.json``."""
        return Path(self.device.slug) / f"{self.stage}-{self.benchmark}.json"

    def select(self, **labels: Any) -> list[Row]:
        """Rows whose keys have the values given, such as ``metric="ttft"``."""
        return [
            row for row in self.rows if all(row.get(key) == want for key, want in labels.items())
        ]


def row(
    metric: str,
    unit: str,
    values: Measurement | Sequence[float] | float,
    **labels: str | int | float | bool | None,
) -> Row:
    """One measured quantity as a flat row.

    Args:
        metric: What was measured: ``ttft``, ``output_throughput``, ``peak_memory``.
        unit: Its unit: ``s``, ``tok/s``, ``B``, ``share``.
        values: All runs, or one number.
        **labels: What sets the row apart: ``engine``, ``prompt_tokens``, ``batch``.

    Raises:
        ResultError: A label takes the name of a measured key, or there are no values.
    """
    taken = sorted(set(labels) & set(MEASURED))
    if taken:
        raise ResultError(f"a label must not be named {taken[0]!r}")
    if not isinstance(values, Measurement):
        values = Measurement(tuple(values) if isinstance(values, Sequence) else (float(values),))
    return {
        **labels,
        "metric": metric,
        "unit": unit,
        "median": values.median,
        "min": values.min,
        "max": values.max,
        "spread": round(values.spread, 4),
        "n": values.n,
    }


def make_result(
    stage: str,
    benchmark: str,
    rows: Sequence[Row],
    *,
    device: str = "cpu",
    workload: Workload | None = None,
    config: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Result:
    """Put rows together with the facts of this process, machine and source tree.

    Args:
        stage: Folder name of the stage.
        benchmark: Short name, a part of the file's.
        rows: From :func:`row`.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        workload: The request list that was served.
        config: Options that mattered. Absolute paths are cut to their last part.
        notes: What a reader must know: a stand-in for weights, a subset, a miss.

    Raises:
        ConfigError: No such device.
        ResultError: A row lacks a measured key or is not flat.
    """
    _check_rows(rows)
    options = dict(config or {})
    if device == "cpu" and "torch" in sys.modules:
        options.setdefault("torch_threads", sys.modules["torch"].get_num_threads())
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    return Result(
        stage=stage,
        benchmark=benchmark,
        device=device_info(device),
        versions=versions(device),
        commit=commit(),
        created=now.isoformat().replace("+00:00", "Z"),
        command=command_line(),
        workload=workload.info if workload is not None else None,
        config=without_paths(to_plain(options)),
        rows=tuple(rows),
        notes=tuple(notes),
    )


def to_json(result: Result) -> str:
    """The result as JSON text, one row a line.

    Raises:
        ResultError: A value that JSON cannot hold, such as NaN.
    """
    plain = to_plain(result)
    rows, notes = plain.pop("rows"), plain.pop("notes")
    try:
        return dump({"schema": SCHEMA, "version": VERSION, **plain}, rows=rows, notes=notes)
    except RecordError as error:
        raise ResultError(f"{result.stage}-{result.benchmark}: {error}") from error


def from_json(text: str) -> Result:
    """Read what :func:`to_json` wrote.

    Raises:
        ResultError: Not such a text; the message names the place.
    """
    try:
        result: Result = from_plain(Result, load(text, SCHEMA, VERSION), "result")
    except RecordError as error:
        raise ResultError(str(error)) from error
    _check_rows(result.rows)
    return result


def _check_rows(rows: Sequence[Row]) -> None:
    """Rows are flat, and hold every measured key."""
    for number, item in enumerate(rows):
        for key in MEASURED:
            if key not in item:
                raise ResultError(f"rows[{number}] has no key {key!r}")
        for key, value in item.items():
            if not isinstance(value, (str, int, float, bool, type(None))):
                raise ResultError(f"rows[{number}].{key} must be a scalar, got {value!r}")


def write_result(result: Result, root: str | Path | None = None) -> Path:
    """Write ``<root>/<device>/<stage>-<benchmark>.json`` and return its path.

    Args:
        result: What :func:`make_result` returned.
        root: Results folder; by default the repository's ``docs/benchmarks/results``.
    """
    path = (RESULTS_ROOT if root is None else Path(root)) / result.path
    text = to_json(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def read_result(path: str | Path) -> Result:
    """Read one result file.

    Raises:
        ResultError: The file is missing, unreadable or no result.
    """
    try:
        return from_json(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ResultError(f"cannot read result {path}: {error}") from error
    except ResultError as error:
        raise ResultError(f"{path}: {error}") from error


def read_results(root: str | Path | None = None) -> list[Result]:
    """Every result under a results folder, in order of device, stage and benchmark.

    Raises:
        ResultError: One of the files is no result.
    """
    folder = RESULTS_ROOT if root is None else Path(root)
    return [read_result(path) for path in sorted(folder.glob("*/*.json"))]
