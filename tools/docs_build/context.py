"""What expanding one page needs to know: the checkout, the page's place, results, constants."""

from __future__ import annotations

import importlib
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tools.docs_build.results import Results


@dataclass
class PageContext:
    """The surroundings of one page.

    Attributes:
        root: The checkout.
        source: The page's path in the repository (``docs/learn/01_basic_inference.md``).
        target: Its path under ``build/docs`` (``learn/01_basic_inference.md``).
        results: The checkout's result files.
        pages: Repository path of every page of the site to its path under ``build/docs``.
        figures: How many figures this page has drawn so far (their ids must differ).
    """

    root: Path
    source: str
    target: str
    results: Results
    pages: Mapping[str, str] = field(default_factory=dict)
    figures: int = 0

    def link_to(self, target: str) -> str:
        """Return the relative link from this page to another path under ``build/docs``."""
        return posixpath.relpath(target, posixpath.dirname(self.target) or ".")

    def api_link(self, symbol: str, text: str | None = None) -> str:
        """Return ``symbol`` as code, linked to the API reference where that has a page for it.

        Args:
            symbol: A public class or function with its module, or a module: ``m3_paged.kernels``.
            text: What to print instead of the last name.
        """
        shown = f"`{text or symbol.rpartition('.')[2]}`"
        page = self.pages.get(f"docs/api/{symbol.partition('.')[0]}.md")
        if page is None:
            return shown
        is_module = (self.root / (symbol.replace(".", "/") + ".py")).is_file()
        anchor = symbol.replace(".", "-") if is_module else symbol
        return f"[{shown}]({self.link_to(page)}#{anchor})"

    def constants(self) -> Mapping[str, object]:
        """Return what expressions may name: the constants sheet, and ``common/qwen3.py``."""
        sheet = importlib.import_module("common.qwen3")
        return {**vars(sheet), **{name: c.value for name, c in sheet.CONSTANTS.items()}}
