"""What a stage changes, adds and takes over from the stages below, from the source alone.

A part of a stage is *changed* when it takes the place of one below: it has the same name, it
subclasses it, or its note says ``replaces``. Everything else that the stage defines is *new*, and
what it imports from below is *re-used*. ``docs/data/changes/STAGE.toml`` says why, part by part.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tools.docs_build.errors import DocsError
from tools.docs_build.parts import Module, Part, Parts

NOTES_DIR = "docs/data/changes"
_INTERFACES = {"Protocol", "ABC", "Generic"}


@dataclass(frozen=True)
class Note:
    """Why a part is another one than below.

    Attributes:
        why: Markdown, with tokens.
        replaces: Symbol of the part whose place it takes, where neither name nor base says so.
    """

    why: str
    replaces: str | None = None


@dataclass(frozen=True)
class Change:
    """A part that takes the place of one below.

    Attributes:
        old: The part below.
        new: The part of the stage.
        inherits: Whether it subclasses ``old``.
        why: Its note.
    """

    old: Part
    new: Part
    inherits: bool
    why: str


@dataclass(frozen=True)
class Changes:
    """A stage against those below it.

    Attributes:
        stage: Its package.
        changed: Parts that take the place of others.
        new: Modules with the names of their new parts.
        reused: Symbols from below with the modules that import them.
    """

    stage: str
    changed: tuple[Change, ...]
    new: tuple[tuple[Module, tuple[Part, ...]], ...]
    reused: Mapping[str, tuple[str, ...]]


def changes_of(stage: str, parts: Parts) -> Changes:
    """Compare a stage with the ones below.

    Raises:
        DocsError: A changed part has no note, a note's symbol is gone or is no change, or two
            notes are about the same part.
    """
    page = f"{NOTES_DIR}/{stage}.toml"
    if stage not in parts.packages:
        raise DocsError(f"no stage {stage!r}")
    notes = read_notes(parts.root / page, page)
    own = {part.symbol: part for part in parts.of(stage)}
    for symbol in notes:
        if symbol not in own:
            raise DocsError(f"a note for {symbol}, which is not there", page)
    changed: list[Change] = []
    for symbol, part in own.items():
        note = notes.get(symbol)
        old = _counterpart(part, note, parts, page)
        if old is None and note is not None:
            raise DocsError(f"{symbol} has a note, but takes no part's place: 'replaces'?", page)
        if old is not None and note is None:
            raise DocsError(f"{symbol} takes the place of {old.symbol}: a note must say why", page)
        if old is not None and note is not None:
            changed.append(Change(old, part, old.symbol in part.bases, note.why))
    taken = {change.new.symbol for change in changed}
    new = [
        (module, tuple(p for p in module.parts.values() if p.symbol not in taken))
        for module in parts.modules(stage)
    ]
    return Changes(
        stage,
        tuple(changed),
        tuple((module, found) for module, found in new if found),
        _reused(parts.modules(stage)),
    )


def read_notes(path: Path, page: str) -> dict[str, Note]:
    """Read the notes of one stage by symbol.

    Raises:
        DocsError: The file is missing, is no TOML, or has other keys.
    """
    if not path.is_file():
        raise DocsError(f"no notes {page}")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise DocsError(str(error), page) from error
    notes = {}
    for symbol, entry in data.items():
        if not isinstance(entry, dict) or not {"why"} <= set(entry) <= {"why", "replaces"}:
            raise DocsError(f"the note for {symbol} has 'why' and at most 'replaces'", page)
        notes[symbol] = Note(" ".join(str(entry["why"]).split()), entry.get("replaces"))
    return notes


def _counterpart(part: Part, note: Note | None, parts: Parts, page: str) -> Part | None:
    """The part below whose place this one takes: named by its note, by its name, by its base."""
    if note is not None and note.replaces is not None:
        found = parts.find(note.replaces)
        if found is None:
            raise DocsError(f"{part.symbol} replaces {note.replaces}, which is not there", page)
        return found
    bases = [base for base in map(parts.find, part.bases) if base]
    if any(base.package == part.package for base in bases):
        return None  # M2's engine: the place of M1's is taken by the class that it subclasses
    for package in reversed(parts.packages[1 : parts.packages.index(part.package)]):
        for other in parts.of(package):
            if other.name == part.name and other.kind == part.kind:
                return other
    concrete = [base for base in bases if not _INTERFACES.intersection(base.bases)]
    return concrete[0] if concrete else None


def _reused(modules: tuple[Module, ...]) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for module in modules:
        for symbol in module.uses.values():
            if not symbol.startswith("common."):
                found.setdefault(symbol, []).append(module.name)
    return {symbol: tuple(found[symbol]) for symbol in sorted(found)}
