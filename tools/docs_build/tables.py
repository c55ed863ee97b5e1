"""Tables of measured numbers: rows of one result file, or the whole benchmark page."""

from __future__ import annotations

import itertools
from typing import Any

from tools.docs_build.context import PageContext
from tools.docs_build.errors import DocsError
from tools.docs_build.pivot import (
    TableOptions,
    default_across,
    labels_of,
    pivot,
    spelled,
    values_of,
)
from tools.docs_build.results import RESULTS_DIR, Result, select
from tools.figures import registry

_VERSIONS = ("python", "torch", "transformers", "triton", "cuda")
_MOST_BARS = 6
_MOST_COLUMNS = 6


def render_table(context: PageContext, name: str, options: dict[str, str]) -> list[str]:
    """Render the ``bench`` directive.

    Args:
        context: The page.
        name: A result file.
        options: ``where``, ``metrics`` (comma-separated), ``across``, ``spread`` and ``long``
            (yes or no), ``caption`` (default: device, date, commit, with a link).

    Raises:
        DocsError: The file, a metric or a label is not there, or no row is left.
    """
    result = context.results.get(name)
    wanted = tuple(m.strip() for m in options.get("metrics", "").split(",") if m.strip())
    chosen = TableOptions(
        where=options.get("where", ""),
        metrics=wanted,
        across=options.get("across", ""),
        spread=_yes(options, "spread"),
        long=_yes(options, "long"),
    )
    link = context.link_to("benchmarks/index.md")
    caption = options.get(
        "caption", f"{result.provenance} · [all of this run]({link}#{result.anchor})"
    )
    return [*pivot(result, chosen), "", caption, "{ .folo-caption }"]


def _yes(options: dict[str, str], key: str) -> bool:
    value = options.get(key, "no")
    if value not in ("yes", "no"):
        raise DocsError(f"{key} is yes or no, not {value!r}")
    return value == "yes"


def render_benchmarks(context: PageContext) -> list[str]:
    """Render the ``benchmarks`` directive: every result file, by device, with chart and table."""
    results = [context.results.get(name) for name in context.results.names()]
    if not results:
        return [f"This checkout holds no result files (`{RESULTS_DIR}`)."]
    lines: list[str] = []
    for folder, group in itertools.groupby(results, key=lambda r: r.name.partition("/")[0]):
        members = list(group)
        lines += [f"## {members[0].device} {{#{folder}}}", ""]
        for result in members:
            lines += [*_section(result, context), ""]
    return lines


def _section(result: Result, context: PageContext) -> list[str]:
    data = result.data
    path = f"{RESULTS_DIR.removeprefix('docs/')}/{result.name}.json"
    across = default_across(result.rows)
    variants = len(values_of(result.rows, across)) if across else 1
    many = len(values_of(result.rows, "metric")) * variants > _MOST_COLUMNS
    options = TableOptions(across=across, spread=True, long=many)
    facts = [f"`{data['command']}`", *_workload(data["workload"]), *_versions(data["versions"])]
    facts += [result.provenance.removeprefix(f"{result.device}, ")]
    facts += [f"[JSON]({context.link_to(path)})"]
    return [
        f"### {data['stage']} · {data['benchmark']} {{#{result.anchor}}}",
        "",
        *_charts(result, context),
        *pivot(result, options),
        "",
        *(line for note in data["notes"] for line in (f"- {note}",)),
        "",
        " · ".join(facts),
        "{ .folo-caption }",
    ]


def _charts(result: Result, context: PageContext) -> list[str]:
    """The figure named after the benchmark, or a chart of its first metrics by its one label."""
    name = f"{result.data['stage']}-{result.data['benchmark']}"
    if name in registry.names():
        return _drawn(name, {"result": result.name}, name, context)
    varying = [x for x in labels_of(result.rows) if len(values_of(result.rows, x)) > 1]
    by = [label for label in varying if label != "engine"]
    if len(by) != 1:
        return []
    points = [value for value in values_of(result.rows, by[0]) if value is not None]
    many = len(points) > _MOST_BARS and all(isinstance(value, int | float) for value in points)
    lines: list[str] = []
    for metric in _charted(result, by[0]):
        options = {"result": result.name, "metric": metric, "by": by[0], "title": spelled(metric)}
        label = f"{spelled(metric)} by {spelled(by[0])}"
        lines += _drawn("curves" if many else "bars", options, label, context)
    return lines


def _charted(result: Result, by: str) -> list[str]:
    """The first two metrics that have several values of a label, each row having it."""
    found = []
    for metric in dict.fromkeys(row["metric"] for row in result.rows):
        rows = select(result.rows, f"metric={metric}")
        if len(values_of(rows, by)) > 1 and all(row.get(by) is not None for row in rows):
            found.append(metric)
    return found[:2]


def _drawn(name: str, options: dict[str, str], label: str, context: PageContext) -> list[str]:
    context.figures += 1
    given = registry.FigureInput(context.root, context.results, context.constants(), options)
    svg = registry.draw(name, given, f"fig{context.figures}")
    alt = f"Chart of {label}; the table below holds the same numbers"
    opening = f'<div class="folo-figure" role="img" aria-label="{alt}" data-search-exclude>'
    return [opening, *svg.splitlines(), "</div>", ""]


def _workload(workload: dict[str, Any] | None) -> list[str]:
    if workload is None:
        return []
    size = f"{workload['num_requests']:,} requests, {workload['prompt_tokens']:,} prompt tokens"
    output = f"at most {workload['max_output_tokens']:,} output tokens"
    origin = f"seed {workload['seed']}, hash {workload['hash'][:12]}"
    return [f"workload {workload['name']}: {size}, {output}, {origin}"]


def _versions(versions: dict[str, str]) -> list[str]:
    return [", ".join(f"{name} {versions[name]}" for name in _VERSIONS if name in versions)]
