"""Checks of the built site: it is HTML, asks no other origin, and every internal link arrives."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tools.check_docs.problem import Problem

# Tags whose address the browser fetches by itself; following an <a> is the reader's choice.
_FETCHED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
    "object": "data",
    "use": "href",
    "image": "href",
}
_FETCHING_RELS = {"stylesheet", "preconnect", "preload", "prefetch", "dns-prefetch", "icon"}
_REMOTE = re.compile(r"^(?:https?:)?//", re.IGNORECASE)
_CSS_URL = re.compile(r"(?:url\(|@import\s+)[\"']?((?:https?:)?//[^\"')\s]+)")


@dataclass
class _Page(HTMLParser):
    """What a built page holds: ids, links, and addresses that load by themselves."""

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    mermaid: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids.update(given[key] for key in ("id", "name") if given.get(key))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and _FETCHING_RELS.intersection(given.get("rel", "").split()):
            self.fetched.append(given.get("href", ""))
        elif tag in _FETCHED and _FETCHED[tag] in given:
            self.fetched.append(given[_FETCHED[tag]])
        self.mermaid |= "mermaid" in given.get("class", "").split()

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)


def check_site(site: Path) -> Iterator[Problem]:
    """Yield every problem of a built site.

    Args:
        site: Its folder.
    """
    pages: dict[str, _Page] = {}
    for path in sorted(site.rglob("*.html")):
        name = path.relative_to(site).as_posix()
        text = path.read_text(encoding="utf-8")
        if text.lstrip().startswith("{"):
            yield Problem(name, 0, "starts with '{': a notebook or JSON file was written raw")
            continue
        pages[name] = _Page()
        pages[name].feed(text)
        for address in [a for a in pages[name].fetched if _REMOTE.match(a)]:
            yield Problem(name, 0, f"loads {address} from another origin")
        if pages[name].mermaid:
            yield Problem(name, 0, "a mermaid diagram would load its script from another origin")
    if not pages:
        yield Problem(str(site), 0, "holds no pages")
    for path in sorted(site.rglob("*.css")):
        for address in _CSS_URL.findall(path.read_text(encoding="utf-8")):
            yield Problem(path.relative_to(site).as_posix(), 0, f"loads {address}")
    for name, page in pages.items():
        if name != "404.html":  # served from anywhere, so its links start at the root
            yield from _check_links(name, page, pages, site)


def _check_links(name: str, page: _Page, pages: dict[str, _Page], site: Path) -> Iterator[Problem]:
    for link in dict.fromkeys(page.links):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        path = unquote(parts.path)
        target = posixpath.normpath(posixpath.join(posixpath.dirname(name), path)) if path else name
        if target.startswith("/"):
            yield Problem(name, 0, f"link {link!r} starts at the root, which the site may not own")
            continue
        if (site / target).is_dir():
            target = posixpath.normpath(posixpath.join(target, "index.html"))
        if target not in pages:
            if not (site / target).is_file():
                yield Problem(name, 0, f"link {link!r} leads nowhere")
        elif parts.fragment and unquote(parts.fragment) not in pages[target].ids | {"__top"}:
            yield Problem(name, 0, f"link {link!r}: no such anchor on that page")
