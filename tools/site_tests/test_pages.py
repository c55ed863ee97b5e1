from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page

from tools.site_tests.conftest import OpenPage

TEMPLATES = {
    "landing": "",
    "note": "learn/03_paged_kv_cache/",
    "benchmarks": "benchmarks/",  # the longest page: axe-core needs half a minute for it
    "notebook": "notebooks/03_paged_kv_cache/",
    "lab": "lab/traces/",
    "rules": "lab/rules/",
    "calculators": "lab/calculators/",
    "drills": "lab/drills/",
    "cards": "interview/cards/",
    "questions": "interview/by-stage/",
    "changes": "stages/m2_to_m3/",
    "targets": "reference/targets/",
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_pages_are_accessible_and_fit_the_window(
    open_page: OpenPage,
    axe: Callable[[Page], list[str]],
    name: str,
    scheme: str,
) -> None:
    page = open_page(TEMPLATES[name], color_scheme=scheme, reduced_motion="reduce")
    page.wait_for_load_state("networkidle")
    for width in (1280, 360):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert axe(page) == []
