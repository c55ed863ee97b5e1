"""Copies of recorded outputs inside pages that are also read on GitHub, such as the README.

A copy lies between ``<!-- output: NAME -->`` and ``<!-- /output -->``. The site replaces it by the
recording, ``make check-docs`` holds it to it, and ``python -m tools.outputs --copy`` renews it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools import outputs
from tools.markdown import lines

_START = re.compile(r"^<!--\s*output:\s*(?P<name>[\w-]+)\s*-->\s*$")
_END = re.compile(r"^<!--\s*/output\s*-->\s*$")


@dataclass(frozen=True)
class Copy:
    """Where a page holds a copy.

    Attributes:
        name: The recorded output.
        start: 1-based line of the directive.
        end: 1-based line of the end mark.
    """

    name: str
    start: int
    end: int


def find(text: str) -> Iterator[Copy]:
    """Yield every copy of a page; a directive without an end mark has none."""
    start, name = 0, ""
    for line in lines(text):
        if line.in_code:
            continue
        if match := _START.match(line.text):
            start, name = line.number, match["name"]
        elif start and _END.match(line.text):
            yield Copy(name, start, line.number)
            start = 0


def is_current(text: str, copy: Copy, root: Path) -> bool:
    """Whether a copy equals the recording, blank lines aside.

    Raises:
        DocsError: There is no such recording.
    """
    held = text.splitlines()[copy.start : copy.end - 1]
    recorded = outputs.render(outputs.load(root, copy.name))
    return [row for row in held if row.strip()] == [row for row in recorded if row.strip()]


def renewed(text: str, root: Path) -> str:
    """Return a page with every copy replaced by its recording.

    Raises:
        DocsError: There is no such recording.
    """
    rows = text.splitlines()
    for copy in reversed(list(find(text))):
        recorded = outputs.render(outputs.load(root, copy.name))
        rows[copy.start : copy.end - 1] = ["", *recorded, ""]
    return "\n".join(rows) + "\n"
