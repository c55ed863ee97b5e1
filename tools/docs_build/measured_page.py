"""Renders aims beside measured numbers: the directives ``measured`` and ``targets``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tools.docs_build.context import PageContext
from tools.docs_build.links import rewrite_links
from tools.docs_build.measured import Measure, load
from tools.docs_build.stages import STAGES
from tools.docs_build.tokens import expand_tokens

LADDER = "ladder"


def render_measured(stage: str, context: PageContext) -> list[str]:
    """Render the table of one stage.

    Raises:
        DocsError: A token is wrong.
    """
    return _table([item for item in load(context.root) if item.stage == stage], context)


def render_targets(context: PageContext) -> list[str]:
    """Render every aim by stage, after a sentence that counts them and a table of the misses.

    Raises:
        DocsError: A token is wrong.
    """
    aims = [item for item in load(context.root) if item.aim is not None]
    states = {item: item.state(item.reading(context)) for item in aims}
    count = Counter(states.values())
    titles = {s.package: f"M{s.number} · {s.title}" for s in STAGES} | {LADDER: "M7 against M1"}
    open_ = count["not measured yet"]
    lines = [
        f"{len(aims)} aims: {count['hit']} hit, {count['missed']} missed, {open_} still open.",
        "",
        "## Missed {#missed}",
        "",
        *_misses([item for item in aims if states[item] == "missed"], context),
    ]
    for stage, title in titles.items():
        found = [item for item in aims if item.stage == stage]
        if found:
            lines += ["", f"## {title} {{#{stage.replace('_', '-')}}}", "", *_table(found, context)]
    return lines


def _misses(missed: Sequence[Measure], context: PageContext) -> list[str]:
    if not missed:
        return ["None of what was measured."]
    lines = ["| What | Aim | Measured | Why |", "| --- | --- | --- | --- |"]
    for item in missed:
        reading = item.reading(context)
        assert reading is not None
        assert item.aim is not None
        reason = expand_tokens(item.reason, context) or "no reason written down yet"
        cells = (_what(item, context), item.aim.text, reading.linked(context), reason)
        lines.append(_row(cells, context))
    return ['<div class="folo-rows" markdown>', "", *lines, "", "</div>"]


def _table(items: Sequence[Measure], context: PageContext) -> list[str]:
    lines = ["| What | Aim | Measured |", "| --- | --- | --- |"]
    for item in items:
        reading = item.reading(context)
        state = item.state(reading)
        kind = state.partition(" ")[0]
        mark = f'<span class="folo-state folo-state--{kind}">{state}</span>' if state else ""
        shown = f"{reading.linked(context)} {mark}" if reading else mark
        cells = (_what(item, context), item.aim.text if item.aim else "–", shown)
        lines.append(_row(cells, context))
    return ['<div class="folo-rows" markdown>', "", *lines, "", "</div>"]


def _what(item: Measure, context: PageContext) -> str:
    setting = " · ".join(part for part in (item.setting, item.devices(context)) if part)
    return f"{item.what}<br><small>{setting}</small>"


def _row(cells: Sequence[str], context: PageContext) -> str:
    text = "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    return rewrite_links(text, context)
