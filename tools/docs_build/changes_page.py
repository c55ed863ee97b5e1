"""Renders the ``changes`` directive: what a stage changes, adds and takes over."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

from tools.docs_build.changes import NOTES_DIR, Change, Changes, changes_of
from tools.docs_build.context import PageContext
from tools.docs_build.diffs import Diff, compare, render
from tools.docs_build.links import rewrite_links
from tools.docs_build.parts import Parts
from tools.docs_build.tokens import expand_tokens
from tools.docs_build.values import counted


def render_changes(stage: str, context: PageContext) -> list[str]:
    """Render the sections of a page about one stage.

    Args:
        stage: The later of the two stages.
        context: The page.

    Raises:
        DocsError: The notes and the code do not agree.
    """
    parts = Parts(context.root)
    changes = changes_of(stage, parts)
    origin = (
        f"Why a part is another one is written in `{NOTES_DIR}/{stage}.toml`. Diffs and tables are "
        "made from the source when the site is built; docstrings are left out."
    )
    return [
        *_glance(changes, parts),
        "",
        "## What changed {#changed}",
        "",
        origin,
        "{ .folo-caption }",
        "",
        *(line for change in changes.changed for line in _changed(change, context)),
        "## What is new {#new}",
        "",
        *_new(changes, context),
        "",
        "## What is used as it is {#reused}",
        "",
        *_reused(changes, parts, context),
        "",
    ]


def _glance(changes: Changes, parts: Parts) -> list[str]:
    modules = parts.modules(changes.stage)
    below = parts.packages[: parts.packages.index(changes.stage)]
    lines = sum(module.lines for module in modules)
    counts = {p: sum(module.lines for module in parts.modules(p)) for p in below}
    before, common = sum(counts.values()) - counts["common"], counts["common"]
    added = sum(len(found) for _, found in changes.new)
    homes = counted(len(changes.new), "module")
    rows = (
        ("Lines of code", f"{lines:,} in {counted(len(modules), 'module')}"),
        ("Lines below", f"{before:,} in the stages below, {common:,} in `common`"),
        ("Parts changed", f"{len(changes.changed)}, each with its diff below"),
        (
            "Parts added",
            f"{added} public classes and functions in {homes}",
        ),
        ("Parts used as they are", f"{counted(len(changes.reused), 'name')} from below"),
    )
    table = [f"| {name} | {value} |" for name, value in rows]
    note = "Lines of code are those that hold code: no blank lines, comments, docstrings or tests."
    return ["| What | How much |", "| --- | --- |", *table, "", note, "{ .folo-caption }"]


def _changed(change: Change, context: PageContext) -> list[str]:
    old, new = change.old, change.new
    diff = compare(old.members, new.members, inherits=change.inherits)
    verb = "subclasses" if change.inherits else "takes the place of"
    places = f"{context.api_link(new.symbol, new.symbol)} {verb} "
    why = rewrite_links(expand_tokens(change.why, context), context)
    return [
        f"### `{new.name}` {{#{_anchor(new.symbol)}}}",
        "",
        f"{places}{context.api_link(old.symbol, old.symbol)}. {_members(diff)}",
        "{ .folo-caption }",
        "",
        why,
        "",
        *render(diff),
        "",
    ]


def _anchor(symbol: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", symbol.lower())


def _members(diff: Diff) -> str:
    groups = {
        "Rewritten": diff.rewritten,
        "Added": diff.added,
        "Gone": diff.gone,
        "Inherited": diff.inherited,
        "Unchanged": diff.kept,
    }
    found = (f"{label}: {_listed(names)}." for label, names in groups.items() if names)
    return " ".join(found)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _new(changes: Changes, context: PageContext) -> list[str]:
    lines = ["| Module | What it is | Its new parts | Lines |", "| --- | --- | --- | ---: |"]
    for module, found in changes.new:
        link = context.api_link(module.name, module.name.partition(".")[2])
        names = ", ".join(context.api_link(part.symbol) for part in found)
        summary = module.summary.replace("|", "\\|")
        lines.append(f"| {link} | {summary} | {names} | {sum(p.lines for p in found)} |")
    return lines


def _reused(changes: Changes, parts: Parts, context: PageContext) -> list[str]:
    if not changes.reused:
        return ["Nothing but `common`."]
    lines = ["| From | Parts | Used in |", "| --- | --- | --- |"]
    for module, names in itertools.groupby(changes.reused, key=lambda s: s.rpartition(".")[0]):
        symbols = list(names)
        shown = [
            context.api_link(s) if parts.find(s) else f"`{s.rpartition('.')[2]}`" for s in symbols
        ]
        users = sorted({user for symbol in symbols for user in changes.reused[symbol]})
        where = [context.api_link(user, user.partition(".")[2]) for user in users]
        row = (context.api_link(module, module), ", ".join(shown), ", ".join(where))
        lines.append("| " + " | ".join(row) + " |")
    return lines
