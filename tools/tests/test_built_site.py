from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tools.check_docs.built import check_site

Write = Callable[[str, str], Path]


@pytest.fixture
def site(tmp_path: Path, write: Write) -> Path:
    write(
        "index.html", '<a href="learn/#idea">x</a><a href="https://example.org">y</a><p id="top">'
    )
    write(
        "learn/index.html", '<h2 id="idea">Idea</h2><a href="..">home</a><a href="../f.json">f</a>'
    )
    write("f.json", "{}")
    write("404.html", '<a href="/learn/">root</a>')
    return tmp_path


def problems(site: Path) -> list[str]:
    return [str(problem) for problem in check_site(site)]


def test_a_sound_site_passes(site: Path) -> None:
    assert problems(site) == []


@pytest.mark.parametrize(
    "body, message",
    [
        ('{"cells": []}', "starts with '{'"),
        ('<script src="https://cdn.example/x.js"></script>', "loads https://cdn.example/x.js"),
        ('<link rel="preconnect" href="//fonts.example">', "loads //fonts.example"),
        ('<img src="http://example.org/x.png">', "another origin"),
        ('<pre class="mermaid">graph</pre>', "mermaid"),
        ('<a href="gone/">x</a>', "leads nowhere"),
        ('<a href="learn/#gone">x</a>', "no such anchor"),
        ('<a href="#gone">x</a>', "no such anchor"),
        ('<a href="/learn/">x</a>', "starts at the root"),
    ],
)
def test_what_is_refused(site: Path, write: Write, body: str, message: str) -> None:
    write("page.html", body)
    (problem,) = problems(site)
    assert problem.startswith("page.html: ")
    assert message in problem


def test_style_sheets_are_read_too(site: Path, write: Write) -> None:
    write("a.css", "@import 'https://fonts.example/x.css'; b { background: url(x.png) }")
    assert problems(site) == ["a.css: loads https://fonts.example/x.css"]


def test_links_of_the_reader_s_choice_pass(site: Path, write: Write) -> None:
    write(
        "page.html",
        '<a href="mailto:a@example.org">m</a><link rel="canonical" href="https://x.org/">',
    )
    assert problems(site) == []


def test_an_empty_site_is_a_problem(tmp_path: Path) -> None:
    assert "holds no pages" in problems(tmp_path)[0]
