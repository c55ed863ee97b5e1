"""The little of Markdown that the docs tools must understand: code fences, headings, code spans.

Everything here works on source text and keeps line numbers, so that a complaint can name the line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_FENCE = re.compile(r"^(?P<indent>\s*)(?P<mark>`{3,}|~{3,})(?P<info>.*)$")
_HEADING = re.compile(r"^(?P<marks>#{1,6})\s+(?P<text>.*?)\s*$")
_HEADING_ID = re.compile(r"\s*\{(?P<attrs>[^{}]*#[^{}]*)\}\s*$")
_ID = re.compile(r"#([\w-]+)")
_CODE_SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)")


@dataclass(frozen=True)
class Line:
    """One source line.

    Attributes:
        number: 1-based line number.
        text: The line without its line break.
        in_code: True for every line of a fenced block, its two fences included.
    """

    number: int
    text: str
    in_code: bool


@dataclass(frozen=True)
class Fence:
    """A fenced code block.

    Attributes:
        line: 1-based number of the opening fence.
        language: First word of the info string ("" without one).
        info: The rest of the info string.
        body: The block's text, its indentation removed, ending in a line break unless empty.
    """

    line: int
    language: str
    info: str
    body: str


@dataclass(frozen=True)
class Heading:
    """An ATX heading outside code.

    Attributes:
        line: 1-based line number.
        level: 1 to 6.
        text: The heading without marks and attribute list.
        id: The explicit id of ``{#id}``, or None.
    """

    line: int
    level: int
    text: str
    id: str | None


def lines(text: str) -> Iterator[Line]:
    """Yield every line of ``text`` and whether it belongs to a fenced code block."""
    mark: str | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        match = _FENCE.match(line)
        if mark is None:
            if match and "`" not in match["info"]:
                mark = match["mark"]
                yield Line(number, line, True)
            else:
                yield Line(number, line, False)
        else:
            if match and _closes(match, mark):
                mark = None
            yield Line(number, line, True)


def _closes(match: re.Match[str], mark: str) -> bool:
    same_kind = match["mark"][0] == mark[0] and len(match["mark"]) >= len(mark)
    return same_kind and not match["info"].strip()


def fences(text: str) -> Iterator[Fence]:
    """Yield every fenced code block of ``text``."""
    block: list[str] = []
    start: Line | None = None
    opening: re.Match[str] | None = None
    for line in lines(text):
        if opening is None:
            if line.in_code:
                opening, start, block = _FENCE.match(line.text), line, []
            continue
        match = _FENCE.match(line.text)
        if match and _closes(match, opening["mark"]):
            assert start is not None
            yield _fence(start.number, opening, block)
            opening = None
        else:
            block.append(line.text)


def _fence(number: int, opening: re.Match[str], block: list[str]) -> Fence:
    indent = len(opening["indent"])
    words = opening["info"].strip().split(None, 1)
    body = "".join(line[min(indent, len(line) - len(line.lstrip())) :] + "\n" for line in block)
    return Fence(number, words[0] if words else "", words[1] if len(words) > 1 else "", body)


def headings(text: str) -> Iterator[Heading]:
    """Yield every heading of ``text`` with the explicit id it carries, if any."""
    for line in lines(text):
        match = None if line.in_code else _HEADING.match(line.text)
        if match is None:
            continue
        title, attrs = match["text"], _HEADING_ID.search(match["text"])
        ident = None
        if attrs:
            title = title[: attrs.start()]
            found = _ID.search(attrs["attrs"])
            ident = found[1] if found else None
        yield Heading(line.number, len(match["marks"]), title.strip(), ident)


def outside_code_spans(line: str, change: Callable[[str], str]) -> str:
    """Apply ``change`` to the parts of one line that are not inside backticks."""
    parts: list[str] = []
    end = 0
    for span in _CODE_SPAN.finditer(line):
        parts += [change(line[end : span.start()]), span[0]]
        end = span.end()
    return "".join([*parts, change(line[end:])])


def code_spans(line: str) -> list[tuple[int, int]]:
    """Return start and end (exclusive) of every code span of one line, backticks included."""
    return [span.span() for span in _CODE_SPAN.finditer(line)]


def without_code_spans(line: str) -> str:
    """Return one line with everything inside backticks removed."""
    return _CODE_SPAN.sub("", line)


def fenced(code: str, info: str) -> list[str]:
    """Return ``code`` as the lines of a fenced block whose marks are longer than any inside it."""
    longest = max((len(run) for run in re.findall(r"`{3,}", code)), default=2)
    mark = "`" * (longest + 1)
    return [f"{mark}{info}", *code.rstrip("\n").splitlines(), mark]
