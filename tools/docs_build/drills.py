"""Tables of the drills, from the stages' own lists."""

from __future__ import annotations

from common.errors import ConfigError
from tools.docs_build.context import PageContext
from tools.docs_build.errors import DocsError
from tools.docs_build.stages import STAGES, Stage
from tools.drills.spec import DRILLS, Drill, read_drills


def render_drills(context: PageContext, package: str) -> list[str]:
    """Render the ``drills`` directive: one stage's drills, or how many each stage has.

    Args:
        context: The page.
        package: A stage's folder; "" for all stages.

    Raises:
        DocsError: The stage has no drills, or its list is broken.
    """
    try:
        if not package:
            return _summary(context)
        if not (context.root / package / DRILLS).is_file():
            raise DocsError(f"{package!r} has no {DRILLS}")
        drills = read_drills(context.root, package)
    except ConfigError as error:
        raise DocsError(str(error)) from error
    return [*_table(drills), "", *_hints(drills)]


def _summary(context: PageContext) -> list[str]:
    lines = ["| Stage | Drills | Minutes |", "| --- | ---: | ---: |"]
    count = minutes = 0
    for stage in STAGES:
        if (context.root / stage.package / DRILLS).is_file():
            drills = read_drills(context.root, stage.package)
            own = sum(drill.minutes for drill in drills)
            lines.append(f"| {_link(stage)} | {len(drills)} | {own} |")
            count, minutes = count + len(drills), minutes + own
    return [*lines, f"| all | {count} | {minutes:,} |"]


def _link(stage: Stage) -> str:
    return f"[M{stage.number} · {stage.title}](#m{stage.number})"


def _table(drills: tuple[Drill, ...]) -> list[str]:
    lines = ["| Drill | Teaches | Minutes |", "| --- | --- | ---: |"]
    lines += [
        f"| {drill.title}<br>`{drill.id}` | {drill.teaches} | {drill.minutes} |" for drill in drills
    ]
    return lines


def _hints(drills: tuple[Drill, ...]) -> list[str]:
    """All tasks and hints, folded twice: the stage's, and in it each drill's."""
    lines = ['??? tip "Tasks and hints"', ""]
    for drill in drills:
        lines += [f'    ??? note "{drill.id}"', ""]
        lines += [f"        {drill.task} The function is `{drill.symbol}` in `{drill.path}`.", ""]
        lines += [f"        1. {hint}" for hint in drill.hints]
        lines.append("")
    return lines
