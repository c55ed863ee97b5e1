"""The glossary: terms as data, each with its place in the code and in a note."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.docs_build.context import PageContext
from tools.docs_build.errors import DocsError
from tools.docs_build.parts import Parts
from tools.docs_build.tokens import expand_tokens
from tools.markdown import headings

GLOSSARY = "docs/data/glossary.toml"
_REQUIRED, _OPTIONAL = {"text", "code", "note"}, {"also", "never"}


@dataclass(frozen=True)
class Term:
    """One idea and its name.

    Attributes:
        name: The word for it.
        line: 1-based line of the file where its entry begins.
        text: What it means.
        code: A public class, function or module.
        note: Repository path of a page, and a heading's id.
        also: What others call it.
        never: Words for it that no page uses.
    """

    name: str
    line: int
    text: str
    code: str
    note: str
    also: tuple[str, ...] = ()
    never: tuple[str, ...] = ()

    @property
    def anchor(self) -> str:
        """Id of its entry."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower())


def load(root: Path) -> list[Term]:
    """Read the terms in alphabetical order.

    Raises:
        DocsError: The file is missing or an entry is incomplete.
    """
    path = root / GLOSSARY
    if not path.is_file():
        raise DocsError(f"no file {GLOSSARY}")
    text = path.read_text(encoding="utf-8")
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DocsError(str(error), GLOSSARY) from error
    rows = text.splitlines()
    terms = [_term(name, entry, _line_of(name, rows)) for name, entry in data.items()]
    return sorted(terms, key=lambda term: term.name.lower())


def _line_of(name: str, rows: list[str]) -> int:
    heads = (f'["{name}"]', f"[{name}]")
    return next((n for n, row in enumerate(rows, 1) if row.strip() in heads), 0)


def _term(name: str, entry: dict[str, Any], line: int) -> Term:
    if not _REQUIRED <= set(entry) <= _REQUIRED | _OPTIONAL:
        known = ", ".join(sorted(_REQUIRED | _OPTIONAL))
        raise DocsError(f"term {name!r} needs text, code and note (known: {known})", GLOSSARY, line)
    lists = {key: tuple(entry[key]) for key in _OPTIONAL if key in entry}
    return Term(name, line, entry["text"], entry["code"], entry["note"], **lists)


def render_glossary(context: PageContext) -> list[str]:
    """Render the ``glossary`` directive.

    Raises:
        DocsError: A term's code or heading is not there.
    """
    parts, lines = Parts(context.root), list[str]()
    for term in load(context.root):
        code, note = _code(term, parts, context), _note(term, context)
        also = f" Elsewhere: {', '.join(term.also)}." if term.also else ""
        lines += [
            f"{term.name} {{ #{term.anchor} }}",
            f":   {expand_tokens(term.text, context)}{also}",
            "",
            f"    {code} · {note}",
            "    { .folo-caption }",
            "",
        ]
    return lines


def _code(term: Term, parts: Parts, context: PageContext) -> str:
    is_module = (context.root / (term.code.replace(".", "/") + ".py")).is_file()
    if not is_module and parts.find(term.code) is None:
        raise DocsError(f"term {term.name!r}: no {term.code} in the code", GLOSSARY, term.line)
    return context.api_link(term.code, term.code)


def _note(term: Term, context: PageContext) -> str:
    page, _, anchor = term.note.partition("#")
    path = context.root / page
    found = list(headings(path.read_text(encoding="utf-8"))) if path.is_file() else []
    heading = next((h for h in found if h.id == anchor), None)
    if heading is None or page not in context.pages:
        raise DocsError(f"term {term.name!r}: no heading {term.note}", GLOSSARY, term.line)
    title = next(h.text for h in found if h.level == 1).partition(":")[0]
    shown = title if heading.level == 1 else f"{title}, {heading.text}"
    return f"[{shown}]({context.link_to(context.pages[page])}#{anchor})"
