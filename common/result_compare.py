"""Two results side by side, refused where their ratio would mean nothing.

A ratio is a statement about one change. Results from two machines, two states of the source or
two request lists differ by more than that, so they are refused rather than footnoted.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from common.environment import UNKNOWN
from common.results import MEASURED, Result, ResultError, Row
from common.tables import format_table


def check_comparable(a: Result, b: Result) -> None:
    """Raise unless both ran on one machine, one source tree and one workload.

    Raises:
        ResultError: The message names the first difference.
    """
    if not a.device.same_machine(b.device):
        raise ResultError(f"different machines: {_device(a)} and {_device(b)}")
    if UNKNOWN in (a.commit, b.commit):
        raise ResultError("a result without a commit cannot be compared")
    if a.commit != b.commit:
        raise ResultError(f"different commits: {_short(a.commit)} and {_short(b.commit)}")
    hashes = [None if item.workload is None else item.workload.hash for item in (a, b)]
    if hashes[0] != hashes[1]:
        names = [
            "none" if item.workload is None else f"{item.workload.name} ({item.workload.hash[:8]})"
            for item in (a, b)
        ]
        raise ResultError(f"different workloads: {names[0]} and {names[1]}")


def compare(a: Result, b: Result) -> list[Row]:
    """Pair the rows of two results and divide the second's median by the first's.

    Two results of one stage are paired row by row. Between stages each contributes the rows of
    its own engine (a row without the label ``engine`` counts as its own), and that label is left
    out of the pairing, so that M2's file is compared with M1's although both also hold baselines.

    Returns:
        Rows with the labels, ``a`` and ``b`` (medians), ``b/a``, and ``noise``: the larger of the
        two spreads. A ratio within ``1 ± noise`` says nothing.

    Raises:
        ResultError: The results are not comparable, or have no row in common.
    """
    check_comparable(a, b)
    across = a.stage != b.stage
    left, right = _by_key(a, across), _by_key(b, across)
    paired = []
    for key, row in left.items():
        other = right.get(key)
        if other is None:
            continue
        labels = {name: row[name] for name in row if name not in MEASURED and name != "engine"}
        if not across and "engine" in row:
            labels = {"engine": row["engine"], **labels}
        ratio = other["median"] / row["median"] if row["median"] else None
        paired.append(
            {
                **labels,
                "metric": row["metric"],
                "unit": row["unit"],
                "a": row["median"],
                "b": other["median"],
                "b/a": ratio,
                "noise": max(row["spread"], other["spread"]),
            }
        )
    if not paired:
        raise ResultError(f"no row in common: {a.path.name} and {b.path.name}")
    return paired


def _by_key(result: Result, across: bool) -> dict[Hashable, Row]:
    """Rows by what identifies them."""
    rows: dict[Hashable, Row] = {}
    for row in result.rows:
        if across and row.get("engine", result.stage) != result.stage:
            continue
        labels = {key: value for key, value in row.items() if key not in MEASURED[2:]}
        if across:
            labels.pop("engine", None)
        rows[tuple(sorted(labels.items(), key=lambda item: item[0]))] = row
    return rows


def format_comparison(a: Result, b: Result) -> str:
    """The table of :func:`compare`, with a line above that says what is compared."""
    rows = compare(a, b)
    lines = [
        f"a = {a.stage}-{a.benchmark} ({a.created}), b = {b.stage}-{b.benchmark} ({b.created})",
        f"{_device(a)}, commit {_short(a.commit)}" + (f", {_workload(a)}" if a.workload else ""),
        *(f"note: {name} differs: {one} and {two}" for name, one, two in _differences(a, b)),
        "",
        format_table(rows),
    ]
    return "\n".join(lines)


def format_result(result: Result) -> str:
    """One result as a terminal shows it."""
    facts = [
        f"{result.stage}-{result.benchmark} · {_device(result)}",
        f"commit {_short(result.commit)} · {result.created} · {result.command}",
        " · ".join(f"{name} {version}" for name, version in result.versions.items()),
    ]
    if result.workload:
        facts.append(_workload(result))
    if result.config:
        facts.append(", ".join(f"{key}={value}" for key, value in result.config.items()))
    notes = [f"note: {note}" for note in result.notes]
    return "\n".join([*facts, "", format_table(result.rows), *notes])


def _differences(a: Result, b: Result) -> list[tuple[str, Any, Any]]:
    """Versions that are not the same in both."""
    names = list({**a.versions, **b.versions})
    pairs = [(name, a.versions.get(name), b.versions.get(name)) for name in names]
    return [pair for pair in pairs if pair[1] != pair[2]]


def _device(result: Result) -> str:
    device = result.device
    unit = "SMs" if device.kind == "cuda" else "cores"
    return f"{device.name} ({device.cores} {unit}, {device.memory_bytes / 2**30:.0f} GiB)"


def _short(commit: str) -> str:
    """``0123456789`` or ``0123456789-dirty.89abcdef``."""
    head, dash, rest = commit.partition("-")
    return head[:10] + dash + rest


def _workload(result: Result) -> str:
    assert result.workload is not None
    item = result.workload
    return (
        f"workload {item.name}: {item.num_requests} requests, {item.prompt_tokens:,} prompt and "
        f"at most {item.max_output_tokens:,} output tokens, seed {item.seed}, {item.hash[:12]}"
    )
