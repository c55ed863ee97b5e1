"""The parts that a learning note and a dev log must have, by the ids of their headings."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.check_docs.problem import Problem
from tools.docs_build.directives import DIRECTIVE
from tools.markdown import Heading, Line, headings, lines

NOTE_PARTS = (
    "failure-before",
    "idea",
    "maths",
    "code-walk",
    "changes",
    "vs-vllm",
    "measured",
    "interview",
    "misconceptions",
    "references",
)
LOG_PARTS = ("features", "decisions", "problems", "structure", "next-interfaces")
MIN_QUESTIONS = 10
MIN_SNIPPETS = 3
_VERSION = re.compile(r"vLLM\s+v?\d+\.\d+\.\d+")
_HASH = re.compile(r"\b[0-9a-f]{7,40}\b")


@dataclass(frozen=True)
class Section:
    """A heading and the lines below it, up to the next heading of its level or above."""

    heading: Heading
    lines: tuple[Line, ...]

    @property
    def text(self) -> str:
        """The lines below the heading as one text."""
        return "\n".join(line.text for line in self.lines)


def sections(text: str, level: int) -> list[Section]:
    """Return the sections of a page at one heading level."""
    found = list(headings(text))
    every = list(lines(text))
    result = []
    for index, heading in enumerate(found):
        if heading.level != level:
            continue
        later = (h.line for h in found[index + 1 :] if h.level <= level)
        end = next(later, len(every) + 1)
        result.append(Section(heading, tuple(every[heading.line : end - 1])))
    return result


def check_headings(page: str, text: str) -> Iterator[Problem]:
    """Every heading below the title carries an explicit id, and no id occurs twice."""
    seen: dict[str, int] = {}
    for heading in headings(text):
        if heading.level > 1 and heading.id is None:
            yield Problem(page, heading.line, f"heading {heading.text!r} needs an id: {{#…}}")
        if heading.id in seen:
            yield Problem(
                page, heading.line, f"id {heading.id!r} is taken by line {seen[heading.id]}"
            )
        if heading.id:
            seen[heading.id] = heading.line


def check_parts(page: str, text: str, parts: tuple[str, ...]) -> Iterator[Problem]:
    """The parts are there as second-level headings with these ids, in this order, none empty."""
    found = {s.heading.id: s for s in sections(text, 2) if s.heading.id in parts}
    for part in parts:
        if part not in found:
            yield Problem(page, 0, f"no part '## … {{#{part}}}'")
        elif not found[part].text.strip():
            yield Problem(page, found[part].heading.line, f"part {part!r} is empty")
    order = [part for part in parts if part in found]
    if list(found) != order:
        yield Problem(
            page, 0, f"parts are in the order {', '.join(map(str, found))}, not {', '.join(order)}"
        )


def check_note(page: str, text: str) -> Iterator[Problem]:
    """A learning note has its parts, and each part what makes it worth reading."""
    yield from check_parts(page, text, NOTE_PARTS)
    directives = [
        m["name"] for ln in lines(text) if not ln.in_code and (m := DIRECTIVE.match(ln.text))
    ]
    if directives.count("source") < MIN_SNIPPETS:
        count = directives.count("source")
        yield Problem(page, 0, f"{count} source snippets; a note has at least {MIN_SNIPPETS}")
    if "figure" not in directives:
        yield Problem(page, 0, "no generated figure (<!-- figure: … -->)")
    for section in sections(text, 2):
        match section.heading.id:
            case "vs-vllm":
                yield from _check_vllm(page, section)
            case "measured":
                yield from _check_measured(page, text, section)
            case "interview":
                yield from check_questions(page, text, section)


def _check_vllm(page: str, section: Section) -> Iterator[Problem]:
    rows = [ln.text for ln in section.lines if not ln.in_code and ln.text.lstrip().startswith("|")]
    if len(rows) < 3 or "vllm" not in rows[0].lower():
        message = "needs a table: ours | vLLM | why simpler"
        yield Problem(page, section.heading.line, message)
    if not _VERSION.search(section.heading.text + section.text):
        yield Problem(page, section.heading.line, "must name the pinned version: 'vLLM 0.33.0'")


def _check_measured(page: str, text: str, measured: Section) -> Iterator[Problem]:
    first, last = measured.heading.line, measured.heading.line + len(measured.lines)
    inner = [s for s in sections(text, 3) if first < s.heading.line <= last]
    where = next((s for s in inner if s.heading.id == "when-it-does-not-help"), None)
    if where is None:
        message = "needs '### When it does not help {#when-it-does-not-help}'"
        yield Problem(page, first, message)
    elif not where.text.strip():
        yield Problem(page, where.heading.line, "is empty")


def check_questions(page: str, text: str, interview: Section) -> Iterator[Problem]:
    """The interview part has enough questions (third-level headings), each with its answer."""
    first, last = interview.heading.line, interview.heading.line + len(interview.lines)
    questions = [s for s in sections(text, 3) if first < s.heading.line <= last]
    if len(questions) < MIN_QUESTIONS:
        message = f"{len(questions)} questions ('### …? {{#q-…}}'); at least {MIN_QUESTIONS}"
        yield Problem(page, first, message)
    for question in questions:
        if not question.heading.text.rstrip("*_ ").endswith("?"):
            yield Problem(page, question.heading.line, "an interview question ends with '?'")
        if not question.text.strip():
            yield Problem(page, question.heading.line, "this question has no answer")


def check_log(page: str, text: str, root: Path) -> Iterator[Problem]:
    """A dev log has its parts; its problems name at least one commit, once there is one."""
    yield from check_parts(page, text, LOG_PARTS)
    problems = next((s for s in sections(text, 2) if s.heading.id == "problems"), None)
    if problems is None or not _has_history(root):
        return
    if not any(_is_commit(word, root) for word in _HASH.findall(problems.text)):
        yield Problem(page, problems.heading.line, "names no commit of this repository")


def _git(root: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = ["git", "-C", str(root), *args]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _has_history(root: Path) -> bool:
    """Whether commits can be looked up: a checkout with at least one, and not a shallow one."""
    try:
        shallow = _git(root, "rev-parse", "--is-shallow-repository")
    except FileNotFoundError:
        return False
    if shallow.returncode != 0 or shallow.stdout.strip() == "true":
        return False
    return _git(root, "rev-parse", "--verify", "--quiet", "HEAD").returncode == 0


def _is_commit(word: str, root: Path) -> bool:
    return _git(root, "cat-file", "-e", f"{word}^{{commit}}").returncode == 0
