"""A temporary tree: the repository's packages, linked, with some files replaced.

Tests run in it as if the replaced files stood in the repository. The tests themselves are always
the repository's own: what a working copy may bring along is decided in :func:`copied_files`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tools.drills.spec import repository_path

NOT_COPIED = ("tests", "benchmarks", "examples", "data", "__pycache__")
"""Folders of a stage that a working copy does not have."""
_SETTINGS = ("pyproject.toml", "conftest.py")


def build_tree(root: Path, into: Path, files: Mapping[str, str]) -> None:
    """Link the repository's packages into an empty folder, with other texts for some files.

    Args:
        root: The repository.
        into: An empty folder.
        files: Texts by path in the repository, new files among them.
    """
    for name in _SETTINGS:
        (into / name).symlink_to(root / name)
    packages = [root / "common", *(path.parent for path in root.glob("m[0-9]_*/__init__.py"))]
    for package in packages:
        _mirror(package, into / package.name, _below(files, package.name))


def _mirror(source: Path, target: Path, files: Mapping[str, str]) -> None:
    """One folder: a link where nothing in it is replaced, else a folder of links and texts."""
    if not files:
        target.symlink_to(source)
        return
    target.mkdir()
    names = {path.split("/")[0] for path in files}
    if source.is_dir():
        names |= {entry.name for entry in source.iterdir() if entry.name != "__pycache__"}
    for name in sorted(names):
        if name in files:
            (target / name).write_text(files[name], encoding="utf-8")
        else:
            _mirror(source / name, target / name, _below(files, name))


def _below(files: Mapping[str, str], folder: str) -> dict[str, str]:
    prefix = f"{folder}/"
    return {path[len(prefix) :]: text for path, text in files.items() if path.startswith(prefix)}


def copied_files(copy: Path, package: str) -> dict[str, str]:
    """The Python files of a working copy by their paths in the repository; never a test."""
    files = {}
    for path in sorted(copy.rglob("*.py")):
        inside = path.relative_to(copy)
        if not set(NOT_COPIED) & set(inside.parts[:-1]):
            place = repository_path(package, inside.as_posix())
            files[place] = path.read_text(encoding="utf-8")
    return files
