"""The trace player's places on the site: the elements, the traces they load, the rules page."""

from __future__ import annotations

import html
import json
import posixpath
from pathlib import Path

from common.plots import block_map, step_timeline
from common.trace import Trace
from tools.docs_build.context import PageContext
from tools.figures.svg import adapt, from_matplotlib
from tools.markdown import fenced
from tools.scenarios.catalogue import CATALOGUE, SIDES, load_catalogue, scenario
from tools.scenarios.questions import question
from tools.scenarios.rules import place, rules_json, uses

RULES_FILE = "assets/trace-rules.json"
_STEMS = {
    "admit": "a sequence begins",
    "compute": "tokens of a step",
    "preempt": "a preemption",
    "finish": "the end of a sequence",
    "abort": "an abort",
    "alloc": "a block (or slot) is taken",
    "free": "blocks (or a slot) are given back",
    "share": "a block is shared by a fork",
    "copy": "a copy on write",
    "hit": "a cached block is found",
    "cache": "a block becomes findable",
    "evict": "an eviction",
}


def player_files(root: Path) -> dict[str, bytes]:
    """Return what players load: the recorded traces and the rules, by path under ``build/docs``.

    Raises:
        DocsError: A trace or a rule's symbol is missing.
    """
    if not (root / CATALOGUE).is_file():
        return {}
    files = {RULES_FILE: json.dumps(rules_json(root), separators=(",", ":")).encode()}
    for item in load_catalogue(root).values():
        for name, trace in zip(item.files(), item.traces(root), strict=True):
            files[f"traces/{name}"] = trace.to_json().encode()
    return files


def render_player(name: str, context: PageContext) -> list[str]:
    """Render the ``player`` directive: the element, and inside it what is shown without scripts.

    Args:
        name: A scenario of the catalogue.
        context: The page.

    Raises:
        DocsError: There is no such scenario, a trace of it is missing, or a question has no answer.
    """
    item = scenario(context.root, name)
    traces = item.traces(context.root)
    for mark in item.mark:
        question(traces[SIDES.index(mark.side)], mark)
    sides = [
        {"label": run.label, "src": _url(context, f"traces/{file}")}
        for run, file in zip(item.run, item.files(), strict=True)
    ]
    marks = [
        {"step": mark.step, "kind": mark.kind, "side": mark.side, "about": mark.about}
        for mark in item.mark
    ]
    given = {
        "id": item.id,
        "start": item.start,
        "sides": sides,
        "marks": marks,
        "rules": _url(context, RULES_FILE),
    }
    lines = [
        '<div class="tp-frame" data-search-exclude>',
        f'<trace-player id="player-{item.id}" data-player="{_attribute(given)}">',
        f'<p class="tp-title">{html.escape(item.title)}</p>',
        f'<p class="tp-sees">{html.escape(item.sees)}</p>',
    ]
    for run, trace in zip(item.run, traces, strict=True):
        lines += _fallback(f"{run.label}: {item.title}", trace, item.start, context)
    names = " and ".join(
        f'<a href="{side["src"]}" download>{file}</a>'
        for side, file in zip(sides, item.files(), strict=True)
    )
    command = f"<code>python -m tools.scenarios record {item.id}</code>"
    source = f'<p class="tp-source">Recorded with {command}: {names}.</p>'
    return [*lines, "</trace-player>", source, "</div>"]


def _url(context: PageContext, target: str) -> str:
    """The address of a file from the page as it is served: ``a/b.md`` is the folder ``a/b/``."""
    folder = context.target.removesuffix(".md").removesuffix("index") or "."
    return posixpath.relpath(target, folder)


def _attribute(value: object) -> str:
    return html.escape(json.dumps(value, separators=(",", ":")), quote=True)


def _fallback(title: str, trace: Trace, step: int, context: PageContext) -> list[str]:
    """The static figures of one run: what was computed when, and the blocks at the first frame."""
    drawings = [step_timeline(trace, title=title)]
    if trace.info.block_size is not None and trace.info.stage != "m2_batching":
        drawings.append(block_map(trace, min(step, len(trace) - 1)))
    lines: list[str] = []
    for drawing in drawings:
        context.figures += 1
        svg = adapt(from_matplotlib(drawing), f"fig{context.figures}")
        label = html.escape(title, quote=True)
        lines += [f'<div class="folo-figure" role="img" aria-label="{label}">']
        lines += [*svg.splitlines(), "</div>"]
    return lines


def render_rules(context: PageContext) -> list[str]:
    """Render the ``rules`` directive: a section per symbol that causes events, with its source.

    Raises:
        DocsError: A symbol is not in the source.
    """
    lines: list[str] = []
    for rule, kinds in uses().items():
        snippet = rule.snippet(context.root)
        stages = sorted({stage for some in kinds.values() for stage in some})
        lines += [f"### `{rule.symbol}` · {_short(stages)} {{#{rule.anchor}}}", ""]
        causes = [f"{_STEMS[kind]} ({_short(some)})" for kind, some in kinds.items()]
        lines += [f"Decides: {'; '.join(causes)}.", ""]
        lines += [*fenced(snippet.code, f'python title="{place(rule, context.root)}"'), ""]
    return lines


def _short(stages: list[str]) -> str:
    """``M3, M4`` for the packages of these stages."""
    return ", ".join(stage.split("_")[0].upper() for stage in stages)
