"""Checks of what stands in ``docs/data``: reasons, words, and claims like those of pages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tools.check_docs.claims import check_claims
from tools.check_docs.problem import Problem
from tools.docs_build import glossary, measured, vllm_pairs
from tools.docs_build.changes import NOTES_DIR, read_notes
from tools.docs_build.context import PageContext
from tools.docs_build.errors import DocsError
from tools.docs_build.results import Results
from tools.markdown import lines, without_code_spans


def check_data(root: Path, pages: Mapping[str, str]) -> Iterator[Problem]:
    """Yield every problem of the data files of a checkout.

    Args:
        root: The checkout.
        pages: Text of every page by repository path.
    """
    checks: dict[str, Callable[[], Iterator[Problem]]] = {
        measured.MEASURED: lambda: _check_measured(root),
        glossary.GLOSSARY: lambda: _check_glossary(root, pages),
        vllm_pairs.PAIRS: lambda: _check_pairs(root),
    }
    for file, check in checks.items():
        if (root / file).is_file():
            yield from _placed(check())
    for path in sorted((root / NOTES_DIR).glob("*.toml")):
        yield from _placed(_check_notes(path, path.relative_to(root).as_posix()))


def _placed(found: Iterator[Problem]) -> Iterator[Problem]:
    try:
        yield from found
    except DocsError as error:
        yield Problem(error.page, error.line, error.message)


def _check_measured(root: Path) -> Iterator[Problem]:
    """Every miss says why, and sentences claim nothing that their number does not show."""
    context = PageContext(root, measured.MEASURED, "index.md", Results(root))
    for item in measured.load(root):
        state = item.state(item.reading(context))
        if state == "missed" and not item.reason:
            yield Problem(measured.MEASURED, item.line, f"{item.what!r} is missed: no reason")
        shown = item.card.replace("{}", "{{ " + item.value + " }}")
        yield from _claims(measured.MEASURED, item.line, item.what, item.reason, shown)


def _check_glossary(root: Path, pages: Mapping[str, str]) -> Iterator[Problem]:
    """No page uses a word that the glossary has another one for."""
    for term in glossary.load(root):
        yield from _claims(glossary.GLOSSARY, term.line, term.text)
        for word in term.never:
            pattern = re.compile(rf"\b{re.escape(word)}s?\b", re.IGNORECASE)
            for page, text in pages.items():
                for line in lines(text):
                    if not line.in_code and pattern.search(without_code_spans(line.text)):
                        yield Problem(page, line.number, f"{word!r} is called {term.name!r} here")


def _check_pairs(root: Path) -> Iterator[Problem]:
    for pair in vllm_pairs.load(root).pairs:
        yield from _claims(vllm_pairs.PAIRS, 0, pair.simpler)


def _check_notes(path: Path, page: str) -> Iterator[Problem]:
    for note in read_notes(path, page).values():
        yield from _claims(page, 0, note.why)


def _claims(page: str, line: int, *texts: str) -> Iterator[Problem]:
    for text in texts:
        yield from (Problem(page, line, found.message) for found in check_claims(page, text))
