"""The catalogue ``docs/traces/scenarios.toml``: what is recorded, what to see in it, what to ask.

A scenario serves one list of requests with one or two engines. Prompts are made of named parts, so
that it can be seen which prompts begin alike: ``"system:32 alice:8"`` is 32 tokens that every
prompt with the part ``system`` shares, and 8 of its own; ``answer:0`` is what request 0 was
answered. ``docs/dev/writing.md`` describes the file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from common.records import RecordError, from_plain
from common.trace import Trace, TraceError
from tools.docs_build.errors import DocsError

TRACES_DIR = "docs/traces"
CATALOGUE = f"{TRACES_DIR}/scenarios.toml"
SIDES = ("a", "b")

Side = Literal["a", "b"]
Kind = Literal[
    "admitted", "tokens", "step-tokens", "preempted", "evicted", "hits", "copies", "owned-blocks"
]


@dataclass(frozen=True)
class RequestSpec:
    """A request of a scenario.

    Attributes:
        prompt: Named parts, ``name:length`` or ``answer:request``.
        max_tokens: Tokens that it generates, exactly.
        at: Engine steps before it arrives.
        after: A request that must have ended before it arrives.
        abort_at: Engine steps before it is aborted.
        priority: Smaller is served first; given to engines with that policy only.
        n: Completions.
    """

    prompt: str
    max_tokens: int
    at: int = 0
    after: int | None = None
    abort_at: int | None = None
    priority: int = 0
    n: int = 1


@dataclass(frozen=True)
class Run:
    """One engine that serves the requests.

    Attributes:
        stage: Package of the engine.
        label: What the player calls it.
        options: Its options.
    """

    stage: str
    label: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Mark:
    """A step before which the player asks.

    Attributes:
        step: The step that answers.
        kind: A kind of :mod:`tools.scenarios.questions`.
        side: The engine that is asked about.
        about: The ``seq_id`` that is asked about, where the kind wants one.
    """

    step: int
    kind: Kind
    side: Side = "a"
    about: int | None = None


@dataclass(frozen=True)
class Scenario:
    """An entry of the catalogue.

    Attributes:
        id: Its name in directives, links and file names.
        title: A few words.
        sees: A sentence or two that say what to see.
        run: One or two engines.
        request: The requests, numbered from 0.
        start: The step that the player shows first.
        mark: Steps at which it asks.
    """

    id: str
    title: str
    sees: str
    run: tuple[Run, ...]
    request: tuple[RequestSpec, ...]
    start: int = 0
    mark: tuple[Mark, ...] = ()

    def files(self) -> tuple[str, ...]:
        """Names of its traces, in the order of its runs."""
        if len(self.run) == 1:
            return (f"{self.id}.json",)
        return tuple(f"{self.id}-{side}.json" for side in SIDES)

    def traces(self, root: Path) -> tuple[Trace, ...]:
        """Its recorded traces.

        Raises:
            DocsError: One is missing or cannot be read.
        """
        try:
            return tuple(Trace.read(root / TRACES_DIR / name) for name in self.files())
        except TraceError as error:
            raise DocsError(f"scenario {self.id!r}: {error}") from error


@dataclass(frozen=True)
class _File:
    scenario: tuple[Scenario, ...]


def load_catalogue(root: Path) -> dict[str, Scenario]:
    """Read the catalogue of a checkout; one without the file has no scenarios.

    Raises:
        DocsError: It does not parse, an id is there twice, or a scenario has no engine or three,
            two questions before one step, or one about an engine that it does not have.
    """
    path = root / CATALOGUE
    if not path.is_file():
        return {}
    try:
        data: Mapping[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        scenarios = from_plain(_File, data, "catalogue").scenario
    except (tomllib.TOMLDecodeError, RecordError) as error:
        raise DocsError(f"{CATALOGUE}: {error}") from error
    found: dict[str, Scenario] = {}
    for item in scenarios:
        if item.id in found:
            raise DocsError(f"{CATALOGUE}: two scenarios are called {item.id!r}")
        if not 1 <= len(item.run) <= len(SIDES):
            raise DocsError(f"{CATALOGUE}: {item.id!r} needs one run or two, has {len(item.run)}")
        steps = [mark.step for mark in item.mark]
        if len(set(steps)) < len(steps):
            raise DocsError(f"{CATALOGUE}: {item.id!r} asks twice before the same step")
        for mark in item.mark:
            if mark.side not in SIDES[: len(item.run)]:
                raise DocsError(f"{CATALOGUE}: {item.id!r} has no side {mark.side!r}")
        found[item.id] = item
    return found


def scenario(root: Path, name: str) -> Scenario:
    """Return one scenario.

    Raises:
        DocsError: There is none of that name.
    """
    catalogue = load_catalogue(root)
    if name not in catalogue:
        raise DocsError(f"no scenario {name!r} in {CATALOGUE} (known: {', '.join(catalogue)})")
    return catalogue[name]
