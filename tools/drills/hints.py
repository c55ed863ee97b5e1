"""Hints, one level at a time; a file in the working copy remembers which were told."""

from __future__ import annotations

import json
from pathlib import Path

from common.errors import ConfigError
from tools.drills.spec import Drill

_FILE = ".hints.json"


def seen(copy: Path) -> dict[str, int]:
    """How many hints of each drill were told."""
    path = copy / _FILE
    if not path.is_file():
        return {}
    told: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))
    return told


def tell(drill: Drill, copy: Path, level: int | None) -> list[str]:
    """One hint as lines of text, the next one by default; remembered where there is a copy.

    Raises:
        ConfigError: There is no such level.
    """
    told = seen(copy)
    number = level if level is not None else min(told.get(drill.id, 0) + 1, len(drill.hints))
    if not 1 <= number <= len(drill.hints):
        raise ConfigError(f"{drill.id} has hints 1 to {len(drill.hints)}, not {number}")
    if copy.is_dir():
        told[drill.id] = max(number, told.get(drill.id, 0))
        (copy / _FILE).write_text(json.dumps(told, indent=1, sort_keys=True), encoding="utf-8")
    return [
        f"{drill.id}: {drill.title}",
        f"hint {number} of {len(drill.hints)}: {drill.hints[number - 1]}",
    ]
