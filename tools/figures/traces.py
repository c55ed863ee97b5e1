"""Figures of recorded traces: the files under ``docs/traces`` that ``--trace`` writes."""

from __future__ import annotations

from typing import Any

from common.plots import block_map, step_timeline, token_bars
from common.trace import Trace, TraceError
from tools.docs_build.errors import DocsError
from tools.figures.registry import FigureInput, figure


def _trace(given: FigureInput) -> Trace:
    name = given.option("trace")
    path = given.root / "docs" / "traces" / name
    if not path.is_file():
        raise DocsError(f"no trace docs/traces/{name}")
    try:
        return Trace.read(path)
    except TraceError as error:
        raise DocsError(f"docs/traces/{name}: {error}") from error


@figure("step-timeline", ("trace", "title"))
def timeline(given: FigureInput) -> Any:
    """Draw which sequence computed what in each step."""
    return step_timeline(_trace(given), title=given.options.get("title"))


@figure("token-bars", ("trace", "title"))
def tokens(given: FigureInput) -> Any:
    """Draw how many tokens each step computed."""
    return token_bars(_trace(given), title=given.options.get("title"))


@figure("block-map", ("trace", "step", "title"))
def blocks(given: FigureInput) -> Any:
    """Draw the KV blocks after a step."""
    step = given.option("step")
    if not step.isdigit():
        raise DocsError(f"step must be a number, got {step!r}")
    return block_map(_trace(given), int(step), title=given.options.get("title"))
