"""A unified diff of two versions of a part, member by member, as Markdown that needs no script."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from tools.docs_build.parts import HEAD
from tools.docs_build.values import counted
from tools.markdown import fenced

SHORT = 32
"""Lines of a diff that is shown open; a longer one is folded."""
_CONTEXT = 3
_ALIKE = 0.35
"""Below this similarity two texts are shown one after the other: matching lines are chance."""


@dataclass(frozen=True)
class Diff:
    """What became of a part's members.

    Attributes:
        rewritten: Members of both, with another text.
        added: Members of the new one alone.
        gone: Members of the old one alone, unless they are inherited.
        inherited: Members of the old one that its subclass takes over.
        kept: Members of both, with the same text.
        lines: The diff's lines, a ``@@`` line before each member.
    """

    rewritten: tuple[str, ...]
    added: tuple[str, ...]
    gone: tuple[str, ...]
    inherited: tuple[str, ...]
    kept: tuple[str, ...]
    lines: tuple[str, ...]

    @property
    def counts(self) -> tuple[int, int]:
        """Lines added and removed."""
        signs = [line[0] for line in self.lines]
        return signs.count("+"), signs.count("-")


def compare(old: Mapping[str, str], new: Mapping[str, str], *, inherits: bool) -> Diff:
    """Compare two parts member by member, in the order of the new one.

    Args:
        old: Source of each member of the old part.
        new: Source of each member of the new part.
        inherits: The new part subclasses the old one: what it does not have it inherits.
    """
    absent = tuple(name for name in old if name not in new)
    names = [*new, *(() if inherits else absent)]
    lines: list[str] = []
    for name in names:
        before, after = old.get(name, ""), new.get(name, "")
        if before != after:
            lines += [f"@@ {name or 'class'} @@", *_lines(before, after)]
    both = [name for name in new if name in old and name != HEAD]
    return Diff(
        rewritten=tuple(name for name in both if old[name] != new[name]),
        added=tuple(name for name in new if name not in old and name != HEAD),
        gone=() if inherits else absent,
        inherited=absent if inherits else (),
        kept=tuple(name for name in both if old[name] == new[name]),
        lines=tuple(lines),
    )


def _lines(before: str, after: str) -> list[str]:
    old, new = before.splitlines(), after.splitlines()
    if _similarity(old, new) < _ALIKE:
        pairs = zip(old, new, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(old), len(new)))
        head = [f" {line}" for line in old[:same]]
        return [*head, *(f"-{line}" for line in old[same:]), *(f"+{line}" for line in new[same:])]
    hunks = list(difflib.unified_diff(old, new, n=_CONTEXT, lineterm=""))[2:]
    # The member's own line says where we are; line numbers would be of no file.
    return ["@@" if line.startswith("@@") else line for line in hunks][1:]


def _similarity(old: list[str], new: list[str]) -> float:
    return difflib.SequenceMatcher(None, old, new, autojunk=False).ratio()


def render(diff: Diff) -> list[str]:
    """Return a box that opens on a click, without a script, and holds the coloured diff."""
    added, removed = diff.counts
    fold = "???+" if len(diff.lines) <= SHORT else "???"
    code = fenced("\n".join(diff.lines), "diff")
    title = f'{fold} diff "Diff: {counted(added, "line")} added, {removed:,} removed"'
    return [title, "", *(f"    {line}" if line else "" for line in code)]
