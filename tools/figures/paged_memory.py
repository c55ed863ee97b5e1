"""Figures of note 03: slots beside blocks over time, waste, tables, swap against recompute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from common.charts import grouped, line_with_floor
from common.plot_style import DECODE_ALPHA, INK, axes, hue, label, legend
from common.request import Sequence
from common.workload import Workload, WorkloadRequest, random_lengths
from m2_batching.plan import StepResult
from m3_paged.benchmarks import simulate
from tools.docs_build.errors import DocsError
from tools.docs_build.results import Result, select
from tools.docs_build.values import scale
from tools.figures.registry import FigureInput, figure

_SLOTS, _LENGTH, _BLOCK = 4, 32, 4
_PLACES = _SLOTS * _LENGTH

# Of one sequence, by the first place of a span of memory: (step, places that hold a token).
_Spans = dict[int, dict[tuple[int, int], list[tuple[int, int]]]]


def _requests() -> Workload:
    """Eight requests, most of them far shorter than the 32 tokens that a slot reserves."""
    drawn = random_lengths(8, (3, 9), (3, 18), seed=5)
    rows = tuple(WorkloadRequest(r.prompt_token_ids, r.sampling_params) for r in drawn.requests)
    return Workload("figure", 5, rows)


def _occupancy(
    scheduler: simulate.AnyScheduler, spans_of: Callable[[Sequence], list[tuple[int, int]]]
) -> tuple[_Spans, list[int]]:
    """Run a scheduler; returns who filled which span in which step, and how many ran."""
    simulate.add_all(scheduler, _requests())
    owned: _Spans = {}
    running: list[int] = []
    while scheduler.has_unfinished():
        plan = scheduler.schedule()
        step = len(running)
        for sequence in scheduler.running:
            left = sequence.num_computed_tokens
            for begin, size in spans_of(sequence):
                place = owned.setdefault(sequence.seq_id, {}).setdefault((begin, size), [])
                place.append((step, max(0, min(left, size))))
                left -= size
        running.append(len(scheduler.running))
        tokens = {item.seq_id: 0 for item in plan.scheduled if item.num_sampled}
        scheduler.update(plan, StepResult(tokens), 0.0)
    return owned, running


@figure("m3-memory-over-time")
def memory_over_time(_: FigureInput) -> Any:
    """Draw every place of KV memory over the steps: M2's slots, and M3's blocks."""
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    slot_of: dict[int, int] = {}
    slots = simulate.slot_scheduler(_SLOTS, _LENGTH, 64)
    blocks = simulate.block_scheduler(_PLACES // _BLOCK, _BLOCK, _LENGTH, 64, 32)

    def slot_spans(sequence: Sequence) -> list[tuple[int, int]]:
        for event in slots.drain_events():
            if event.kind == "alloc" and event.seq_id is not None:
                slot_of[event.seq_id] = event.block
        return [(slot_of[sequence.seq_id] * _LENGTH, _LENGTH)]

    def block_spans(sequence: Sequence) -> list[tuple[int, int]]:
        return [(block * _BLOCK, _BLOCK) for block in blocks.manager.block_ids(sequence)]

    runs = [_occupancy(slots, slot_spans), _occupancy(blocks, block_spans)]
    longest = max(len(running) for _, running in runs)
    drawn, panels = plt.subplots(1, 2, figsize=(8.2, 4.4), sharey=True, layout="constrained")
    names = (f"M2: {_SLOTS} slots of {_LENGTH}", f"M3: {_PLACES // _BLOCK} blocks of {_BLOCK}")
    for panel, name, (owned, running), unit in zip(
        panels, names, runs, (_LENGTH, _BLOCK), strict=True
    ):
        ax = axes(panel, 0, 0)
        ax.set(xlim=(0, longest), ylim=(_PLACES, 0))
        _draw_spans(ax, owned)
        for border in range(0, _PLACES + 1, unit):
            ax.axhline(border, color=INK, lw=0.4 if unit == _BLOCK else 0.9, alpha=0.5)
        text = f"{name}, done after {len(running)} steps, at most {max(running)} run"
        label(ax, None, f"engine step\n{text}", None)
    panels[0].set_ylabel("place in the KV memory", color=INK, fontsize=10)
    entries = [
        Patch(facecolor=INK, edgecolor=INK, label="holds a token (hue = request)"),
        Patch(facecolor=(INK, DECODE_ALPHA / 2), edgecolor=INK, label="reserved, empty"),
        Patch(facecolor="none", edgecolor=INK, label="free"),
    ]
    drawn.legend(
        handles=entries, loc="outside upper left", ncols=3, frameon=False, fontsize=9,
        labelcolor=INK,
    )  # fmt: skip
    return drawn


def _draw_spans(ax: Any, owned: _Spans) -> None:
    """Fill each owned span up to its last token; what is only reserved stays light."""
    for seq_id, spans in owned.items():
        colour = hue(seq_id)
        for (begin, size), filled in spans.items():
            steps = [step for step, _ in filled]
            xs = [*steps, steps[-1] + 1]
            tops = [begin + tokens for _, tokens in filled]
            style = {"step": "post", "lw": 0.0}
            ax.fill_between(xs, begin, [*tops, tops[-1]], color=colour, **style)
            ax.fill_between(
                xs, [*tops, tops[-1]], begin + size, color=colour, alpha=DECODE_ALPHA / 2, **style
            )


@figure("m3_paged-memory_use", ("result",))
def memory_use(given: FigureInput) -> Any:
    """Draw what a sequence wastes, and the share that holds tokens, over the block size."""
    from matplotlib import pyplot as plt

    result = given.results.get(given.option("result"))
    unused = _by_block_size(result, "unused_per_sequence")
    share = _by_block_size(result, "stored_of_allocated")
    (slots,) = select(result.rows, "metric=stored_of_allocated,engine=m2_batching")
    drawn, (left, right) = plt.subplots(1, 2, figsize=(8.2, 3.3), layout="constrained")
    ax = axes(left, 0, 0)
    ax.plot(unused.keys(), unused.values(), "o", color=hue(0), label="counted")
    ax.plot(unused.keys(), [(s - 1) / 2 for s in unused], "--", color=INK, label="(bs − 1) / 2")
    ax.set_yscale("log", base=2)
    label(ax, None, "block size (tokens)", "empty places per sequence")
    legend(ax)
    other = axes(right, 0, 0)
    other.plot(share.keys(), [100 * v for v in share.values()], "o-", color=hue(0), label="blocks")
    other.axhline(100 * slots["median"], color=hue(1), ls="--", label="M2's slots")
    other.set_ylim(0, 104)
    label(other, None, "block size (tokens)", "allocated places with a token (%)")
    legend(other)
    for panel in (ax, other):
        panel.set_xscale("log", base=2)
        panel.set_xticks(list(unused), [str(size) for size in unused])
        panel.minorticks_off()
    ax.set_yticks([4, 16, 64], ["4", "16", "64"])
    return drawn


def _by_block_size(result: Result, metric: str) -> dict[int, float]:
    rows = select(result.rows, f"metric={metric},engine=m3_paged")
    if not rows:
        raise DocsError(f"{result.name} has no {metric!r} of m3_paged")
    return {row["block_size"]: row["median"] for row in rows}


@figure("m3_paged-swap_or_recompute", ("result",))
def swap_or_recompute(given: FigureInput) -> Any:
    """Draw the time to bring a sequence back, by a copy to the host and back or by computing."""
    result = given.results.get(given.option("result"))
    names = {"swap_out": "swap: copy out", "swap_in": "swap: copy in", "recompute": "recompute"}
    times = [row for row in result.rows if row["metric"] in names]
    if not times:
        raise DocsError(f"{result.name} has no times of swap or recompute")
    factor, unit = scale(max(row["median"] for row in times), "s")
    scaled = [{**row, **{k: row[k] * factor for k in ("median", "min", "max")}} for row in times]
    lines = grouped(scaled, "context", "metric")
    return line_with_floor(
        {text: lines[name] for name, text in names.items()},
        xlabel="tokens of the preempted sequence",
        ylabel=f"time ({unit})",
        log_x=True,
        log_y=True,
    )


@figure("m3-block-tables")
def block_tables(_: FigureInput) -> str:
    """Draw two sequences, their block tables, and the pool that holds both out of order."""
    tables = (("A", 0, (7, 2, 9), 41), ("B", 1, (3, 5), 23))
    parts: list[str] = []
    y = 34
    for name, number, table, tokens in tables:
        parts.append(_text(0, y + 19, f"{name}: {tokens} tokens", bold=True))
        for place, block in enumerate(table):
            x = 118 + place * 74
            end = min(tokens, 16 * (place + 1)) - 1
            parts.append(_text(x + 33, y - 6, f"{16 * place}…{end}", anchor="middle", size=11))
            parts.append(_rect(x, y, 66, 28, hue(number), 0.3))
            parts.append(_text(x + 33, y + 19, str(block), anchor="middle"))
        y += 78
    parts.append(_text(118, y - 34, "block tables: one entry per 16 tokens", size=11))
    owner = {block: (n, i, t) for _, n, tab, t in tables for i, block in enumerate(tab)}
    for block in range(12):
        x, top = 366 + (block % 4) * 68, 28 + (block // 4) * 48
        if block in owner:
            number, place, tokens = owner[block]
            share = min(16, tokens - 16 * place) / 16
            parts.append(_rect(x, top, 60 * share, 40, hue(number), 0.3, edge=False))
            parts.append(_rect(x, top, 60, 40, hue(number), 0.0))
        else:
            parts.append(_rect(x, top, 60, 40, INK, 0.0))
        parts.append(_text(x + 30, top + 25, str(block), anchor="middle"))
    parts.append(_text(366, 18, "pool of 12 blocks, all layers, K and V", size=11))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" width="640" viewBox="0 0 640 180">'
        + "\n".join(parts)
        + "</svg>"
    )


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", bold: bool = False, size: int = 13
) -> str:
    weight = "; font-weight: bold" if bold else ""
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="currentColor" '
        f'style="font-size: {size}px{weight}">{text}</text>'
    )


def _rect(
    x: float, y: float, width: float, height: float, colour: str, opacity: float, edge: bool = True
) -> str:
    stroke = f'stroke="{colour}" stroke-width="1.4"' if edge else ""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{colour}" '
        f'fill-opacity="{opacity:g}" {stroke}/>'
    )
