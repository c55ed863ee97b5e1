"""Builds the whole of ``build/docs`` and ``build/mkdocs.yml`` from a checkout."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from tools import output_copies
from tools.docs_build import directives
from tools.docs_build.context import PageContext
from tools.docs_build.errors import DocsError
from tools.docs_build.links import rewrite_links
from tools.docs_build.nav import navigation
from tools.docs_build.notebooks import convert
from tools.docs_build.players import player_files
from tools.docs_build.questions import fold_questions
from tools.docs_build.results import Results
from tools.docs_build.stages import STAGES
from tools.docs_build.tokens import expand_tokens
from tools.markdown import Line, fences, lines

DOCS = "docs"
BUILD = "build"
_NOT_COPIED = ("data/", "outputs/", "traces/")
_RUN_INFO = re.compile(r"^(\s*`{3,}(?:bash|python)) (?:no-run|reason=|timeout=).*$")


@dataclass(frozen=True)
class Site:
    """What a build writes.

    Attributes:
        files: Content by path under ``build/docs``.
        config: Text of ``build/mkdocs.yml``.
    """

    files: dict[str, bytes]
    config: str


def pages_of(root: Path) -> dict[str, str]:
    """Return every page of the site: repository path to path under ``build/docs``."""
    docs = root / DOCS
    pages = {
        path.relative_to(root).as_posix(): path.relative_to(docs).as_posix()
        for path in sorted(docs.rglob("*.md"))
        if not path.relative_to(docs).as_posix().startswith("assets/")
    }
    for stage in STAGES:
        if (root / stage.readme).is_file():
            pages[stage.readme] = f"stages/{stage.package}.md"
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        pages[path.relative_to(root).as_posix()] = f"notebooks/{path.stem}.md"
    return pages


def build_site(root: Path) -> Site:
    """Expand every page of a checkout.

    Raises:
        ExceptionGroup: Of every :class:`DocsError` met, so that one run shows all of them.
    """
    pages = pages_of(root)
    results = Results(root)
    files = _assets(root)
    errors: list[DocsError] = []
    try:
        files.update(player_files(root))
    except DocsError as error:
        errors.append(error)
    for source, target in pages.items():
        context = PageContext(root, source, target, results, pages)
        try:
            if source.endswith(".ipynb"):
                text = _notebook(root / source, files)
            else:
                text = (root / source).read_text(encoding="utf-8")
        except DocsError as error:
            errors.append(error.at(source, 0))
            continue
        page, found = expand_page(text, context)
        files[target] = page.encode()
        errors += found
    if errors:
        raise ExceptionGroup("the docs do not build", errors)
    config = _config(navigation(pages.values()))
    return Site(files, config)


def _assets(root: Path) -> dict[str, bytes]:
    docs = root / DOCS
    names = (p.relative_to(docs).as_posix() for p in sorted(docs.rglob("*")) if p.is_file())
    return {
        name: (docs / name).read_bytes()
        for name in names
        if not name.startswith(_NOT_COPIED) and not name.endswith(".md")
    }


def _notebook(path: Path, files: dict[str, bytes]) -> str:
    page = convert(path)
    files[f"notebooks/{path.name}"] = path.read_bytes()
    files.update({f"notebooks/{name}": data for name, data in page.files.items()})
    return page.markdown


def expand_page(text: str, context: PageContext) -> tuple[str, list[DocsError]]:
    """Expand the directives, tokens and links of one page.

    Returns:
        The built page, and the errors met on it, each with its line.
    """
    built: list[str] = []
    errors: list[DocsError] = []
    opening = {fence.line for fence in fences(text)}
    copied = {n for copy in output_copies.find(text) for n in range(copy.start + 1, copy.end + 1)}
    for line in lines(text):
        if line.number in copied:
            continue
        if line.number in opening:
            built.append(_RUN_INFO.sub(r"\1", line.text))
            continue
        try:
            built += _expand_line(line, context)
        except DocsError as error:
            errors.append(error.at(context.source, line.number))
    return fold_questions("\n".join(built) + "\n"), errors


def _expand_line(line: Line, context: PageContext) -> list[str]:
    if line.in_code:
        return [line.text]
    parsed = directives.parse(line.text)
    if parsed is None:
        return [rewrite_links(expand_tokens(line.text, context), context)]
    indent, directive = parsed
    return [f"{indent}{new}" if new else "" for new in directives.expand(directive, context)]


def _config(nav: list[object]) -> str:
    """MkDocs' config: the committed one, plus the navigation (JSON is YAML)."""
    return (
        "# Written by tools.docs_build.\n"
        "INHERIT: ../mkdocs.yml\n"
        "docs_dir: docs\n"
        "site_dir: ../site\n"
        f"nav: {json.dumps(nav, ensure_ascii=False)}\n"
    )


def write_site(site: Site, root: Path) -> int:
    """Write a built site, touching only files whose content changed and removing stale ones.

    Returns:
        How many files were written or removed.
    """
    docs = root / BUILD / DOCS
    wanted = {docs / name: data for name, data in site.files.items()}
    wanted[root / BUILD / "mkdocs.yml"] = site.config.encode()
    changed = 0
    for path, data in wanted.items():
        if path.is_file() and path.read_bytes() == data:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        changed += 1
    for path in docs.rglob("*"):
        if path.is_file() and path not in wanted:
            path.unlink()
            changed += 1
    return changed
