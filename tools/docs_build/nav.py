"""The site's navigation, from the pages that are there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tools.docs_build.errors import DocsError
from tools.docs_build.stages import STAGES, Stage


def _stage_pages(stage: Stage) -> tuple[str, ...]:
    """What a stage changed since the one below, then its own page."""
    changes = stage.changes.removeprefix("docs/stages/")
    return (*((changes,) if changes else ()), f"{stage.package}.md")


# The pages beyond M7, in the order of their index.
BEYOND = (
    "speculative_decoding",
    "tensor_parallelism",
    "disaggregation",
    "kv_quantisation",
    "awq_fp8",
    "mla_moe",
    "lora_serving",
    "structured_output",
    "slo_goodput",
    "batch_invariance",
)

# Tab title, folder, pages that come first. Pages of the folder that are not named follow by name.
_TABS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Start", "", ("setup.md", "user-manual.md")),
    (
        "Learn",
        "learn",
        (
            "index.md",
            *(stage.note.removeprefix("docs/learn/") for stage in STAGES),
            "where_the_time_goes.md",
        ),
    ),
    ("Beyond M7", "beyond", ("index.md", *(f"{name}.md" for name in BEYOND))),
    ("Lab", "lab", ("traces.md", "drills.md", "calculators.md")),
    ("Stages", "stages", tuple(name for stage in STAGES for name in _stage_pages(stage))),
    ("Notebooks", "notebooks", tuple(f"{stage.stem}.md" for stage in STAGES)),
    ("Interview", "interview", ("index.md", "by-stage.md", "by-theme.md", "cards.md")),
    ("Benchmarks", "benchmarks", ("index.md", "ladder.md")),
    ("Reference", "reference", ("glossary.md", "vllm.md", "targets.md", "plan.md")),
    ("Development", "dev", ("index.md", *(f"milestone_{s.number}.md" for s in STAGES))),
    ("API", "api", ("index.md", "common.md", *(f"{stage.package}.md" for stage in STAGES))),
)


def navigation(pages: Iterable[str]) -> list[Any]:
    """Return MkDocs' ``nav``: home, then one tab per folder, each page exactly once.

    Args:
        pages: Paths under ``build/docs``.

    Raises:
        DocsError: A page lies in a folder that no tab shows.
    """
    left = set(pages)
    nav: list[Any] = []
    if "index.md" in left:
        left.remove("index.md")
        nav.append({"Home": "index.md"})
    for title, folder, first in _TABS:
        prefix = f"{folder}/" if folder else ""
        inside = sorted(p for p in left if p.startswith(prefix) and (folder or "/" not in p))
        order = [prefix + name for name in first if prefix + name in left]
        order += [page for page in inside if page not in order]
        left.difference_update(order)
        if order:
            nav.append({title: order})
    if left:
        raise DocsError(f"no place in the navigation for {', '.join(sorted(left))}")
    return nav
