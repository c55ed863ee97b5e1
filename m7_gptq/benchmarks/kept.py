"""Finished cases of a long benchmark, kept on disk, so that an interrupted run goes on.

A case is found again only by the same case, sizes and model on the same source, to the byte: what
was computed by other source is computed anew. Where the source has no name, nothing is kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.environment import REPOSITORY, UNKNOWN, commit
from common.results import Row

FOLDER = REPOSITORY / "build" / "m7_gptq-accuracy"
Case = tuple[list[Row], dict[str, float]]
"""A case's rows, and its perplexity on each text."""


class Kept:
    """A folder with a file for each finished case.

    Attributes:
        folder: Where, or None to keep nothing.
    """

    def __init__(self, enabled: bool, settings: Mapping[str, Any]) -> None:
        """Look at the state of the source.

        Args:
            enabled: False keeps nothing.
            settings: What all cases share: sizes, model, device.
        """
        source = commit()
        self.folder = FOLDER if enabled and source != UNKNOWN else None
        self._shared = {**settings, "commit": source}

    def find(self, labels: Mapping[str, Any]) -> Case | None:
        """A finished case, if there is one."""
        path = self._path(labels)
        if path is None or not path.is_file():
            return None
        stored = json.loads(path.read_text(encoding="utf-8"))
        return stored["rows"], stored["values"]

    def keep(self, labels: Mapping[str, Any], case: Case) -> None:
        """Write a finished case; the file appears whole or not at all."""
        path = self._path(labels)
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps({"rows": case[0], "values": case[1]}), encoding="utf-8")
        part.replace(path)

    def _path(self, labels: Mapping[str, Any]) -> Path | None:
        if self.folder is None:
            return None
        key = json.dumps({**self._shared, "labels": dict(labels)}, sort_keys=True)
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
