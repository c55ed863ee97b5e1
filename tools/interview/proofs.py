"""Proofs of answers: that each is there, and how a page links to it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from tools.docs_build.context import PageContext
from tools.docs_build.errors import DocsError
from tools.docs_build.reference import modules
from tools.docs_build.source import extract
from tools.interview.schema import Proof, Question, QuestionError
from tools.markdown import Heading, headings

_TEST = re.compile(r"(?P<path>[\w/]+\.py)::(?P<names>\w+(?:::\w+)*)")


def markdown(question: Question, proof: Proof, context: PageContext) -> str:
    """Return a proof as Markdown, linked where the site shows it.

    Raises:
        QuestionError: What it names is not there.
    """
    try:
        return _MARKDOWN[proof.kind](proof.target, context)
    except DocsError as error:
        message = f"{proof.kind} {proof.target!r}: {error.message}"
        raise QuestionError(question.file, question.id, "proof", message) from error


def _code(target: str, context: PageContext) -> str:
    path, _, symbol = target.partition(":")
    _require_file(context.root, path)
    if symbol:
        extract(context.root / path, symbol)
    package, _, _ = path.partition("/")
    dotted = path.removesuffix(".py").replace("/", ".")
    page = context.pages.get(f"docs/api/{package}.md")
    public = dotted in _modules(context.root, package) and not symbol.startswith("_")
    if page is None or not public or "._" in symbol:
        return f"`{target}`"
    anchor = f"{dotted}.{symbol}" if symbol else dotted.replace(".", "-")
    return f"[`{target}`]({context.link_to(page)}#{anchor})"


def _test(target: str, context: PageContext) -> str:
    match = _TEST.fullmatch(target)
    if match is None:
        raise DocsError("a test is path.py::test_name or path.py::TestClass::test_name")
    names = match["names"].split("::")
    if not names[-1].startswith(("test_", "Test")):
        raise DocsError(f"{names[-1]!r} is no test")
    _require_file(context.root, match["path"])
    extract(context.root / match["path"], ".".join(names))
    return f"`{target}`"


def _result(target: str, context: PageContext) -> str:
    name, hash_, _ = target.partition("#")
    result = context.results.get(name)
    if hash_:
        context.results.value(target)
    return f"[{result.name}]({context.link_to('benchmarks/index.md')}#{result.anchor})"


def _page(target: str, context: PageContext) -> str:
    path, hash_, anchor = target.partition("#")
    source = next((source for source, built in context.pages.items() if built == path), None)
    if source is None:
        raise DocsError("no such page of the site")
    ids = {h.id: h.text for h in _headings(context.root / source)}
    if hash_ and anchor not in ids:
        raise DocsError(f"no heading {{#{anchor}}}")
    title = next(iter(ids.values()))
    text = f"{title}: {ids[anchor]}" if hash_ else title
    return f"[{text}]({context.link_to(path)}{hash_}{anchor})"


def _require_file(root: Path, path: str) -> None:
    if not (root / path).is_file():
        raise DocsError("no such file")


@cache
def _modules(root: Path, package: str) -> frozenset[str]:
    return frozenset(modules(root, package))


def _headings(path: Path) -> list[Heading]:
    return list(headings(path.read_text(encoding="utf-8")))


_MARKDOWN = {"code": _code, "test": _test, "result": _result, "page": _page}
