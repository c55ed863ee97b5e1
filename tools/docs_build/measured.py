"""What each stage was meant to show, and what was measured: ``docs/data/measured.toml``.

An entry points at numbers of result files. A run that is not there yet is no error here: the entry
says so until the file lands. An aim is held against the number when the site is built, and
``make check-docs`` asks for the reason of every miss.
"""

from __future__ import annotations

import operator
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tools.docs_build.context import PageContext
from tools.docs_build.errors import DocsError
from tools.docs_build.tokens import Reading, read, references
from tools.docs_build.values import NBSP

MEASURED = "docs/data/measured.toml"
_KEYS = {"stage", "what", "value", "setting", "aim", "reason", "card"}
_TOKEN = re.compile(r"(?P<kind>[a-z]+):\s*(?P<argument>[^|]+?)\s*(?:\|\s*(?P<spec>.+?)\s*)?")
_AIM = re.compile(r"(?P<sign>>=|<=|>|<)\s*(?P<number>[\d.]+)(?P<shown>\s*\S+)?")
_SIGNS: dict[str, tuple[Callable[[float, float], bool], str]] = {
    ">=": (operator.ge, "at least"),
    "<=": (operator.le, "at most"),
    ">": (operator.gt, "more than"),
    "<": (operator.lt, "less than"),
}
_SCALE = {"%": 0.01, "ms": 1e-3}


@dataclass(frozen=True)
class Aim:
    """A bound for a measured number.

    Attributes:
        sign: ``>=``, ``<=``, ``>`` or ``<``.
        bound: In the number's own unit.
        text: How it is printed.
    """

    sign: str
    bound: float
    text: str

    @classmethod
    def parse(cls, text: str) -> Aim:
        """Read ``>= 12×``, ``< 1 %`` or ``<= 1 ms``.

        Raises:
            DocsError: It is something else.
        """
        match = _AIM.fullmatch(text.strip())
        if match is None:
            raise DocsError(f"an aim is a sign and a number, such as '>= 3×', got {text!r}")
        unit = (match["shown"] or "").strip()
        shown = f"{NBSP}{unit}" if unit and unit != "×" else unit
        words = f"{_SIGNS[match['sign']][1]} {match['number']}{shown}"
        return cls(match["sign"], float(match["number"]) * _SCALE.get(unit, 1.0), words)

    def is_met(self, value: float) -> bool:
        """Return whether a number is on the right side."""
        return _SIGNS[self.sign][0](value, self.bound)


@dataclass(frozen=True)
class Measure:
    """One quantity that a stage is about.

    Attributes:
        line: 1-based line of the file where it begins.
        stage: Its package, or ``ladder`` for M7 against M1.
        what: The quantity in words.
        value: A token without its braces, or "" while nothing measures it.
        setting: Model and workload.
        aim: What it was meant to be.
        reason: Why the aim was missed, or why there is no number.
        card: Sentence of the landing page, ``{}`` where the number goes.
    """

    line: int
    stage: str
    what: str
    value: str = ""
    setting: str = ""
    aim: Aim | None = None
    reason: str = ""
    card: str = ""

    def reading(self, context: PageContext) -> Reading | None:
        """Return the number, or None while its run, or its row of the run, is not there.

        Raises:
            DocsError: The token is wrong.
        """
        if not self.value:
            return None
        token = _TOKEN.fullmatch(self.value)
        if token is None:
            raise DocsError(f"not a token: {self.value!r}", MEASURED, self.line)
        kind, argument = token["kind"], token["argument"]
        try:
            if not all(context.results.has(ref) for ref in references(kind, argument)):
                return None
            found = read(kind, argument, token["spec"] or "", context)
        except DocsError as error:
            raise error.at(MEASURED, self.line) from error
        if not isinstance(found.value, int | float):
            raise DocsError(f"not a number: {found.value!r}", MEASURED, self.line)
        return found

    def devices(self, context: PageContext) -> str:
        """Return where the number comes from: a device, or arithmetic."""
        token = _TOKEN.fullmatch(self.value)
        if token is None:
            return ""
        refs = references(token["kind"], token["argument"])
        if not refs:
            return "arithmetic"
        folder = refs[0].partition("/")[0]
        names = (name for name in context.results.names() if name.startswith(f"{folder}/"))
        first = next(names, None)
        return context.results.get(first).device if first else folder

    def state(self, reading: Reading | None) -> str:
        """Return ``hit``, ``missed``, ``not measured yet``, or "" for a number without an aim."""
        if reading is None:
            return "not measured yet"
        if self.aim is None:
            return ""
        return "hit" if self.aim.is_met(reading.value) else "missed"


def load(root: Path) -> list[Measure]:
    """Read every entry, in the order of the file.

    Raises:
        DocsError: The file is not as the top of it says.
    """
    path = root / MEASURED
    if not path.is_file():
        raise DocsError(f"no file {MEASURED}")
    text = path.read_text(encoding="utf-8")
    try:
        entries = tomllib.loads(text).get("measure", [])
    except tomllib.TOMLDecodeError as error:
        raise DocsError(str(error), MEASURED) from error
    starts = [n for n, line in enumerate(text.splitlines(), 1) if line.strip() == "[[measure]]"]
    return [_measure(entry, line) for entry, line in zip(entries, starts, strict=True)]


def _measure(entry: dict[str, str], line: int) -> Measure:
    unknown = sorted(set(entry) - _KEYS)
    missing = sorted({"stage", "what"} - set(entry))
    if unknown or missing:
        wrong = f"unknown key {unknown[0]!r}" if unknown else f"no {missing[0]!r}"
        raise DocsError(f"{wrong} (known: {', '.join(sorted(_KEYS))})", MEASURED, line)
    texts = {key: " ".join(value.split()) for key, value in entry.items()}
    try:
        aim = Aim.parse(texts.pop("aim")) if "aim" in texts else None
    except DocsError as error:
        raise error.at(MEASURED, line) from error
    return Measure(line, aim=aim, **texts)
