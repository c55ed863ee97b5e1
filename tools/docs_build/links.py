"""Rewrites a page's relative links from where its source lies to where the page is built."""

from __future__ import annotations

import posixpath
import re

from tools.docs_build.context import PageContext
from tools.docs_build.errors import DocsError
from tools.markdown import code_spans

_LINK = re.compile(
    r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^()\s]+)(?P<title>\s+\"[^\"]*\")?\)"
)
_ABSOLUTE = re.compile(r"^(?:[a-z][a-z0-9+.-]*:|#|/)")


def rewrite_links(line: str, context: PageContext) -> str:
    """Point every relative link of one line at the built page.

    A link to another page's source (a note, a stage's README, a notebook) goes to that page. A file
    under ``docs/`` keeps its place. Any other file of the repository is not part of the site: its
    link becomes the bare text, as code.

    Raises:
        DocsError: The target is not in the repository.
    """
    if "](" not in line:
        return line
    spans = code_spans(line)
    return _LINK.sub(
        lambda match: (
            match[0]
            if any(start < match.start() < end for start, end in spans)
            else _rewritten(match, context)
        ),
        line,
    )


def _rewritten(match: re.Match[str], context: PageContext) -> str:
    target, hash_, anchor = match["target"].partition("#")
    if _ABSOLUTE.match(match["target"]) or not target:
        return match[0]
    source = posixpath.normpath(posixpath.join(posixpath.dirname(context.source), target))
    built = _built_place(source, target, context)
    if built is None:
        text = match["text"]
        return text if "`" in text else f"`{text}`"
    title = match["title"] or ""
    return f"{match['image']}[{match['text']}]({context.link_to(built)}{hash_}{anchor}{title})"


def _built_place(source: str, target: str, context: PageContext) -> str | None:
    if source in context.pages:
        return context.pages[source]
    if source.startswith("docs/"):
        return source.removeprefix("docs/")  # MkDocs checks that it is there
    if (context.root / source).exists() and not source.startswith(".."):
        return None
    raise DocsError(f"link to {target!r}: no such file")
