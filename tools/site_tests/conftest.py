"""Fixtures for tests of widgets and pages: ``site_url``, ``page``, ``console``, ``axe``.

A test opens ``site_url + "lab/traces/"`` in ``page``. When it ends, nothing may have been written
to the console as an error, and no request may have gone to another origin.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tools.chromium import find

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "site"
FLAGS = (
    "--no-sandbox",  # the sandbox does not start as root
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
AXE_OPTIONS = {
    "runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]},
    "resultTypes": ["violations"],
}
# A figure is one image with a name; what is drawn inside it is for the eye, and thousands of nodes.
AXE_CONTEXT = {"exclude": [[".folo-figure svg"]]}


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Say nothing: a missing file shows in the console of the page."""


@pytest.fixture(scope="session")
def site_url() -> Iterator[str]:
    """Address of the built site, with a slash at the end."""
    if not (SITE / "index.html").is_file():
        pytest.fail("no site: run `make site-test`, which builds it")
    handler = functools.partial(_Quiet, directory=str(SITE))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = find()
    if path is None:
        pytest.fail("no Chromium: run `make site-test`, which says what to install")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield chromium
        chromium.close()


@dataclass
class Console:
    """What a context's pages complained about.

    Attributes:
        errors: Console errors and uncaught exceptions.
        foreign: Requests to another origin.
    """

    errors: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def watch(self, page: Page, site_url: str) -> None:
        page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self._request(request.url, site_url))

    def _request(self, url: str, site_url: str) -> None:
        if not url.startswith((site_url, "data:", "blob:")):
            self.foreign.append(url)


@pytest.fixture
def console() -> Iterator[Console]:
    """Collects complaints; there must be none when the test ends."""
    seen = Console()
    yield seen
    assert seen.errors == []
    assert seen.foreign == []


OpenPage = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser, site_url: str, console: Console) -> Iterator[OpenPage]:
    """Opens a page of the site in a context of its own; options are those of ``new_context``."""
    contexts: list[BrowserContext] = []

    def _open(path: str, width: int = 1280, **options: Any) -> Page:
        size = {"width": width, "height": 900}
        context = browser.new_context(viewport=size, **options)  # type: ignore[arg-type]
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        console.watch(page, site_url)
        page.goto(site_url + path)
        return page

    yield _open
    for context in contexts:
        context.close()


@pytest.fixture
def page(open_page: OpenPage) -> Page:
    """The landing page in a window of 1280 pixels; ``page.goto(site_url + …)`` goes elsewhere."""
    return open_page("")


@pytest.fixture
def axe() -> Callable[[Page], list[str]]:
    """Checks a page against WCAG 2.1 AA; returns a line per violation."""

    def _check(page: Page) -> list[str]:
        found = Axe().run(page, context=AXE_CONTEXT, options=AXE_OPTIONS).response["violations"]
        return [
            f"{rule['id']}: {node['html'][:120]} ({node.get('failureSummary', '')[:200]})"
            for rule in found
            for node in rule["nodes"]
        ]

    return _check
