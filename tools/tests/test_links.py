from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.docs_build.context import PageContext
from tools.docs_build.errors import DocsError
from tools.docs_build.links import rewrite_links


@pytest.fixture
def readme(context: PageContext, write: Callable[[str, str], Path]) -> PageContext:
    write("m1_basic/engine.py", "")
    pages = {
        "docs/learn/01_basic_inference.md": "learn/01_basic_inference.md",
        "m1_basic/README.md": "stages/m1_basic.md",
        "m0_init/README.md": "stages/m0_init.md",
        "notebooks/01_basic_inference.ipynb": "notebooks/01_basic_inference.md",
    }
    return dataclasses.replace(
        context, source="m1_basic/README.md", target="stages/m1_basic.md", pages=pages
    )


@pytest.mark.parametrize(
    "line, built",
    [
        (
            "[note](../docs/learn/01_basic_inference.md#idea)",
            "[note](../learn/01_basic_inference.md#idea)",
        ),
        ("[below](../m0_init/README.md)", "[below](m0_init.md)"),
        ("[nb](../notebooks/01_basic_inference.ipynb)", "[nb](../notebooks/01_basic_inference.md)"),
        ("[engine](engine.py) and [`engine.py`](engine.py)", "`engine` and `engine.py`"),
        ('![x](../docs/assets/x.svg "t")', '![x](../assets/x.svg "t")'),
        (
            "[a](https://x.org/b) [b](#c) [d](mailto:e)",
            "[a](https://x.org/b) [b](#c) [d](mailto:e)",
        ),
        ("`[engine](engine.py)`", "`[engine](engine.py)`"),
    ],
)
def test_links_point_at_built_pages(readme: PageContext, line: str, built: str) -> None:
    assert rewrite_links(line, readme) == built


@pytest.mark.parametrize("target", ["gone.py", "../../outside.md", "../gone/README.md"])
def test_a_link_to_nothing_is_refused(readme: PageContext, target: str) -> None:
    with pytest.raises(DocsError, match="no such file"):
        rewrite_links(f"[x]({target})", readme)
