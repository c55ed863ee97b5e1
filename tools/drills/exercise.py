"""Writes a working copy of a stage with the bodies of its drills blanked."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from common.errors import ConfigError
from tools.drills.rewrite import blank
from tools.drills.spec import Drill, repository_path
from tools.drills.tree import copied_files


def write_exercise(
    root: Path, drills: Sequence[Drill], into: Path, *, only: Drill | None, force: bool
) -> Path:
    """Write ``into/mN_name``: every module of the stage, and the files of ``common`` it drills.

    Args:
        root: The repository.
        drills: The stage's drills.
        into: Folder of all working copies.
        only: Blank this one alone.
        force: Write over a copy that is there.

    Returns:
        The copy's folder.

    Raises:
        ConfigError: There is a copy already.
    """
    package = drills[0].package
    copy = into / package
    if copy.exists() and not force:
        raise ConfigError(
            f"{copy} is there and may hold your work: it stays as it is. "
            f"FORCE=1 writes over it, EXERCISES=folder writes elsewhere"
        )
    texts = copied_files(root / package, package)
    for drill in drills:
        texts[drill.source] = (root / drill.source).read_text(encoding="utf-8")
    chosen = drills if only is None else [only]
    for path in {drill.path for drill in chosen}:
        here = [drill for drill in chosen if drill.path == path]
        source = repository_path(package, path)
        texts[source] = blank(texts[source], here)
    if copy.exists():
        shutil.rmtree(copy)
    for source, text in texts.items():
        target = copy / source.removeprefix(f"{package}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return copy
