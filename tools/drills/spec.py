"""Reads a stage's drills and wrong answers, and checks that what they name is there."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import ConfigError

DRILLS, WRONG = "drills.toml", "drills_wrong.toml"
_KEYS = {"id", "target", "title", "teaches", "task", "minutes", "hints", "tests"}
_WRONG_KEYS = {"drill", "misconception", "caught_by", "edits"}


@dataclass(frozen=True)
class WrongAnswer:
    """A plausible mistake: a few edits of the right body.

    Attributes:
        misconception: What somebody who writes it believes, as one sentence.
        caught_by: Node id of the test that fails.
        edits: Pairs of a text that stands exactly once in the function, and what replaces it.
    """

    misconception: str
    caught_by: str
    edits: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Drill:
    """One function to write.

    Attributes:
        id: Its name, unique in the stage.
        package: The stage's folder.
        path: Its file, relative to the working copy. Files of ``common`` lie in ``common/`` there.
        symbol: ``function`` or ``Class.method``.
        title: A few words.
        teaches: What is understood afterwards, half a sentence.
        task: What to do.
        minutes: Time to aim for.
        hints: From a nudge to nearly the answer.
        tests: Node ids that grade it.
        wrong: Mistakes that these tests catch.
    """

    id: str
    package: str
    path: str
    symbol: str
    title: str
    teaches: str
    task: str
    minutes: int
    hints: tuple[str, ...]
    tests: tuple[str, ...]
    wrong: tuple[WrongAnswer, ...]

    @property
    def source(self) -> str:
        """Its file's path in the repository."""
        return repository_path(self.package, self.path)

    @property
    def stage(self) -> str:
        """The stage's short name, as make's targets have it: ``m3``."""
        return self.package.split("_")[0]


def repository_path(package: str, path: str) -> str:
    """Where a file of a working copy comes from."""
    return path if path.startswith("common/") else f"{package}/{path}"


def find_package(root: Path, name: str) -> str:
    """The folder of a stage that was named ``m3`` or ``m3_paged``.

    Raises:
        ConfigError: There is none, or it has no drills.
    """
    packages = sorted(path.parent.name for path in root.glob(f"m[0-9]_*/{DRILLS}"))
    for package in packages:
        if name in (package, package.split("_")[0]):
            return package
    raise ConfigError(f"no drills for {name!r}; stages with drills: {', '.join(packages)}")


def read_drills(root: Path, package: str) -> tuple[Drill, ...]:
    """The drills of a stage, in the order of its file.

    Raises:
        ConfigError: An entry is incomplete, or has an id that another one has.
    """
    wrong: dict[str, list[WrongAnswer]] = {}
    for entry in _entries(root / package / WRONG, "wrong", _WRONG_KEYS):
        answer = WrongAnswer(
            entry["misconception"],
            _node_id(package, entry["caught_by"]),
            tuple((old, new) for old, new in entry["edits"]),
        )
        wrong.setdefault(entry["drill"], []).append(answer)
    drills = tuple(
        _drill(package, entry, tuple(wrong.pop(entry["id"], ())))
        for entry in _entries(root / package / DRILLS, "drill", _KEYS)
    )
    ids = [drill.id for drill in drills]
    if len(set(ids)) < len(ids):
        raise ConfigError(f"{package}/{DRILLS} has an id twice")
    if wrong:
        raise ConfigError(f"{package}/{WRONG}: no drill {', '.join(sorted(wrong))}")
    return drills


def choose(drills: tuple[Drill, ...], wanted: str) -> Drill:
    """The drill of an id.

    Raises:
        ConfigError: There is none.
    """
    for drill in drills:
        if drill.id == wanted:
            return drill
    known = ", ".join(drill.id for drill in drills)
    raise ConfigError(f"{drills[0].package} has no drill {wanted!r}; it has {known}")


def _drill(package: str, entry: Mapping[str, Any], wrong: tuple[WrongAnswer, ...]) -> Drill:
    path, _, symbol = entry["target"].partition(":")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", entry["id"]) or not symbol:
        raise ConfigError(f"{package}/{DRILLS}: bad id or target in {entry['id']!r}")
    return Drill(
        id=entry["id"],
        package=package,
        path=path,
        symbol=symbol,
        title=entry["title"],
        teaches=entry["teaches"],
        task=" ".join(entry["task"].split()),
        minutes=entry["minutes"],
        hints=tuple(" ".join(hint.split()) for hint in entry["hints"]),
        tests=tuple(_node_id(package, test) for test in entry["tests"]),
        wrong=wrong,
    )


def _node_id(package: str, test: str) -> str:
    return test if test.startswith("common/") else f"{package}/tests/{test}"


def _entries(path: Path, name: str, keys: set[str]) -> list[dict[str, Any]]:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path.parent.name}/{path.name}: {error}") from None
    entries: list[dict[str, Any]] = data.get(name, [])
    for entry in entries:
        if set(entry) != keys:
            odd = ", ".join(sorted(set(entry) ^ keys))
            raise ConfigError(f"{path.parent.name}/{path.name}: missing or unknown: {odd}")
    return entries
