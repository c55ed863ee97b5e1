"""Measured numbers: the files of ``docs/benchmarks/results``, and how pages point into them.

A reference is ``device/stage-benchmark#what``, where *what* is a metric and the labels of its row,
``ttft[engine=m1_basic,prompt_tokens=512]`` (its median; ``….min`` and so on for another key), or a
path of keys into the file, ``workload.num_requests``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.results import ResultError, from_json
from tools.docs_build.errors import DocsError

RESULTS_DIR = "docs/benchmarks/results"
_METRIC = re.compile(r"(?P<metric>\w+)(?:\[(?P<labels>[^\]]*)\])?(?:\.(?P<key>\w+))?")
_STEP = re.compile(r"(?P<key>[^.\[\]]+)|\[(?P<selector>[^\]]*)\]|\.")


@dataclass(frozen=True)
class Result:
    """One result file.

    Attributes:
        name: Path under the results folder without ``.json``: ``device/stage-benchmark``.
        data: The decoded file.
    """

    name: str
    data: dict[str, Any]

    @property
    def anchor(self) -> str:
        """Id of this result's section on the benchmark page."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    @property
    def provenance(self) -> str:
        """Device, date and commit in one line."""
        head, dash, rest = str(self.data["commit"]).partition("-")
        return f"{self.device}, {self.data['created'][:10]}, commit {head[:10]}{dash}{rest}"

    @property
    def device(self) -> str:
        """The device by name and size."""
        device = self.data["device"]
        unit = "SMs" if device["kind"] == "cuda" else "cores"
        return f"{device['name']} ({device['cores']} {unit})"

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The flat rows: labels, ``metric``, ``unit``, ``median``, ``min``, ``max``, …."""
        rows: list[dict[str, Any]] = self.data["rows"]
        return rows


class Results:
    """Every result file of a checkout, read when first asked for."""

    def __init__(self, root: Path) -> None:
        self._folder = root / RESULTS_DIR
        self._cache: dict[str, Result] = {}

    def names(self) -> list[str]:
        """Return the names of all result files, sorted."""
        found = self._folder.rglob("*.json") if self._folder.is_dir() else ()
        return sorted(p.relative_to(self._folder).with_suffix("").as_posix() for p in found)

    def get(self, name: str) -> Result:
        """Return a result file by name, ``.json`` optional.

        Raises:
            DocsError: There is no such file, or it is not a result.
        """
        name = name.removesuffix(".json")
        if name not in self._cache:
            path = self._folder / f"{name}.json"
            if not path.is_file():
                raise DocsError(f"no result file {RESULTS_DIR}/{name}.json")
            text = path.read_text(encoding="utf-8")
            try:
                from_json(text)
            except ResultError as error:
                raise DocsError(f"{RESULTS_DIR}/{name}.json: {error}") from error
            self._cache[name] = Result(name, json.loads(text))
        return self._cache[name]

    def value(self, reference: str) -> tuple[Result, Any, str]:
        """Resolve ``file#what``.

        Returns:
            The result file, the value, and its unit ("" where it has none).

        Raises:
            DocsError: The file, a key or exactly one matching row is not there.
        """
        name, hash_, what = reference.strip().partition("#")
        if not hash_ or not what:
            raise DocsError(f"a result reference is file#metric[labels], got {reference!r}")
        result = self.get(name)
        metric = _METRIC.fullmatch(what)
        if metric is None or metric["metric"] in result.data:
            return result, walk(result.data, what, name), ""
        labels = f"metric={metric['metric']},{metric['labels'] or ''}"
        found = select(result.rows, labels)
        if len(found) != 1:
            known = ", ".join(dict.fromkeys(str(row["metric"]) for row in result.rows))
            raise DocsError(f"{what!r} matches {len(found)} rows of {name} (metrics: {known})")
        key = metric["key"] or "median"
        unit = found[0]["unit"] if key in ("median", "min", "max") else ""
        return result, walk(found[0], key, name), unit

    def has(self, reference: str) -> bool:
        """Return whether a reference points at a row that is there.

        A run may be missing, and one that is there may have left a row out. A metric or a label
        that no row of the run has is a mistake all the same.

        Raises:
            DocsError: The run is there, and nothing in it is called so.
        """
        name, _, what = reference.strip().partition("#")
        if name not in self.names():
            return False
        metric = _METRIC.fullmatch(what)
        if metric is None or metric["metric"] in self.get(name).data:
            return True
        rows = self.get(name).rows
        own = select(rows, f"metric={metric['metric']}")
        labels = [key for key, _ in _pairs(metric["labels"] or "")]
        known = {key for row in own for key in row}
        unknown = [] if not own else sorted(set(labels) - known)
        if not own or unknown:
            what = f"label {unknown[0]!r}" if unknown else f"metric {metric['metric']!r}"
            raise DocsError(f"no {what} in {name}")
        return bool(select(own, metric["labels"] or ""))


def walk(data: Any, pointer: str, where: str) -> Any:
    """Follow a pointer through decoded JSON.

    Raises:
        DocsError: A key is missing, or a selector does not match exactly one row.
    """
    value = data
    position = 0
    for step in _STEP.finditer(pointer):
        if step.start() != position:
            break
        position = step.end()
        if step["selector"] is not None:
            value = _row(value, step["selector"], where)
        elif step["key"] is not None:
            value = _key(value, step["key"], where)
    if position != len(pointer):
        raise DocsError(f"cannot read the pointer {pointer!r}")
    return value


def _key(value: Any, key: str, where: str) -> Any:
    if isinstance(value, dict) and key in value:
        return value[key]
    if isinstance(value, list) and key.isdigit() and int(key) < len(value):
        return value[int(key)]
    known = f" (has {', '.join(map(str, value))})" if isinstance(value, dict) else ""
    raise DocsError(f"no {key!r} in {where}{known}")


def _row(value: Any, selector: str, where: str) -> Any:
    if not isinstance(value, list):
        raise DocsError(f"[{selector}] needs a list in {where}")
    if selector.isdigit():
        return _key(value, selector, where)
    rows = select(value, selector)
    if len(rows) != 1:
        raise DocsError(f"[{selector}] matches {len(rows)} rows of {where}, not one")
    return rows[0]


def select(rows: list[Any], selector: str) -> list[Any]:
    """Return the rows for which every ``key=value`` of a comma-separated selector holds.

    Keys may be dotted; values compare as text, so ``prompt_len=512`` matches the number 512. A
    comma that no ``key=`` follows belongs to the value before it.
    """
    pairs = _pairs(selector)
    return [row for row in rows if all(_text_at(row, key) == wanted for key, wanted in pairs)]


def _pairs(selector: str) -> list[tuple[str, str]]:
    parts = (part.partition("=") for part in re.split(r",(?=\s*[\w.]+\s*=)", selector))
    return [(key.strip(), wanted.strip(" ,")) for key, _, wanted in parts if key.strip(" ,")]


def _text_at(row: Any, key: str) -> str | None:
    for part in key.split("."):
        if not isinstance(row, dict) or part not in row:
            return None
        row = row[part]
    if isinstance(row, bool):
        return str(row).lower()
    return str(row)
