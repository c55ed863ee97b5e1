"""The figures drawn from a trace, shared by notebooks and site.

Every function draws on ``ax`` or on a new figure, and returns the axes. Matplotlib is imported
when the first figure is made. The grammar is :mod:`common.plot_style`'s; save with
:func:`common.plot_style.save_svg`. Charts of measurements are in :mod:`common.charts`.
"""

from __future__ import annotations

from common.block_state import BlockState
from common.plot_parts import (
    block_key,
    border,
    box,
    hatch,
    hue_of,
    sequence_name,
    step_key,
    write,
)
from common.plot_style import INK, Axes, axes, inches_per_unit, label, legend, text_on
from common.step_record import Phase, ScheduledSlice
from common.trace import Trace, TraceError
from common.trace_replay import state_after

DETAILED_STEPS = 40
DETAILED_BLOCKS = 512


def _width(num_steps: int) -> float:
    """Inches: a page column at most."""
    return min(9.0, max(6.0, 0.32 * num_steps))


def step_timeline(trace: Trace, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Gantt chart: one row per sequence, one column per engine step.

    Prefill is solid and decode light in the request's hue; a dotted line is a wait, a cross a
    preemption, a hatched left part the share of a prompt that was cached. Up to 40 steps
    prefill cells say how many tokens they computed; beyond, equal neighbours are one bar.

    Args:
        trace: Recorded steps.
        ax: Axes to draw on.
        title: Shown above.

    Raises:
        TraceError: The trace has no step.
    """
    if not trace.steps:
        raise TraceError("a timeline needs at least one step")
    rows = {seq_id: row for row, seq_id in enumerate(trace.sequences)}
    ax = axes(ax, _width(len(trace)), 1.2 + 0.34 * len(rows))
    ax.set(xlim=(0, len(trace)), ylim=(len(rows) - 0.4, -0.6))
    phases: set[str] = set()
    cached = waiting = preempted = False
    detailed = len(trace) <= DETAILED_STEPS
    gap, room = (0.04, 72 * inches_per_unit(ax)) if detailed else (0.0, 0.0)
    for seq_id, row in rows.items():
        colour = hue_of(trace, seq_id)
        for begin, end, phase, tokens in _runs(trace, seq_id, merge=not detailed):
            width = end - begin - 2 * gap
            ax.add_patch(box(begin + gap, row - 0.36, width, 0.72, colour, phase))
            phases.add(phase)
            # The usual decode of one token needs no number, nor has a narrow cell room for one.
            if (phase == "prefill" or tokens > 1) and 5 * len(str(tokens)) < room:
                solid = phase == "prefill"
                ink = text_on(colour) if solid else INK
                behind = colour if solid else None
                write(ax, (begin + end) / 2, row, str(tokens), ink, behind)
        for begin, end in _waits(trace, seq_id):
            waiting = True
            ax.plot([begin, end], [row, row], color=INK, ls=":", lw=1.2)
    for step in trace:
        admitted = {item.seq_id: item.num_cached_tokens for item in step.admitted}
        tokens_of = {part.seq_id: part.num_tokens for part in step.slices}
        for seq_id in step.preempted:
            preempted = True
            ax.plot(step.index + 0.5, rows[seq_id], color=INK, marker="X", markersize=9, ls="")
        for seq_id, count in admitted.items():
            total = count + tokens_of.get(seq_id, 0)
            if count and total:
                cached = True
                hatch(
                    ax, step.index + gap, rows[seq_id] - 0.36, (1 - 2 * gap) * count / total, 0.72,
                    text_on(hue_of(trace, seq_id)),
                )  # fmt: skip
    ax.set_yticks(list(rows.values()), [sequence_name(trace, seq_id) for seq_id in rows])
    label(ax, title, "engine step", "request")
    legend(ax, step_key(phases, cached, waiting, preempted, padding=False))
    return ax


def _waits(trace: Trace, seq_id: int) -> list[tuple[int, int]]:
    """(begin, end) of the stretches of steps that ``seq_id`` spent in the waiting queue."""
    waits: list[tuple[int, int]] = []
    for step in trace:
        if seq_id not in step.waiting_after:
            continue
        if waits and waits[-1][1] == step.index:
            waits[-1] = (waits[-1][0], step.index + 1)
        else:
            waits.append((step.index, step.index + 1))
    return waits


def _runs(trace: Trace, seq_id: int, merge: bool) -> list[tuple[int, int, Phase, int]]:
    """(begin, end, phase, tokens) of the steps that computed ``seq_id``, as one where merged."""
    runs: list[tuple[int, int, Phase, int]] = []
    for step in trace:
        for part in step.slices:
            if part.seq_id != seq_id:
                continue
            last = runs[-1] if runs else None
            if merge and last and last[1] == step.index and last[2] == part.phase:
                runs[-1] = (last[0], step.index + 1, part.phase, last[3] + part.num_tokens)
            else:
                runs.append((step.index, step.index + 1, part.phase, part.num_tokens))
    return runs


def token_bars(trace: Trace, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Tokens computed in each step, stacked by sequence; padding is outlined on top.

    A dashed line is the step's budget, where the trace's config has ``max_num_batched_tokens``
    and some step comes near it.

    Args:
        trace: Recorded steps.
        ax: Axes to draw on.
        title: Shown above.

    Raises:
        TraceError: The trace has no step.
    """
    from matplotlib.patches import Rectangle

    if not trace.steps:
        raise TraceError("token bars need at least one step")
    ax = axes(ax, _width(len(trace)), 3.2)
    ax.set(xlim=(0, len(trace)))
    detailed = len(trace) <= DETAILED_STEPS
    gap = 0.07 if detailed else 0.0
    for begin, end, y, part in _stack(trace, merge=not detailed):
        colour, width = hue_of(trace, part.seq_id), end - begin - 2 * gap
        ax.add_patch(box(begin + gap, y, width, part.num_tokens, colour, part.phase, edge=detailed))
    for step in trace:
        if step.num_padding_tokens:
            at, size = (step.index + gap, step.num_tokens), (1 - 2 * gap, step.num_padding_tokens)
            ax.add_patch(Rectangle(at, *size, facecolor="none", edgecolor=INK, ls="--"))
    top = max(step.num_tokens + step.num_padding_tokens for step in trace)
    budget = trace.info.config.get("max_num_batched_tokens")
    phases = {part.phase for step in trace for part in step.slices}
    padded = any(step.num_padding_tokens for step in trace)
    entries = step_key({*phases}, cached=False, waiting=False, preempted=False, padding=padded)
    if budget is not None and budget <= 2 * top:
        top = max(top, budget)
        entries.append(ax.axhline(budget, color=INK, ls="--", lw=1.0, label=f"budget {budget}"))
    ax.set_ylim(0, 1.05 * max(top, 1))
    label(ax, title, "engine step", "tokens in the step")
    legend(ax, entries)
    return ax


def _stack(trace: Trace, merge: bool) -> list[tuple[int, int, int, ScheduledSlice]]:
    """(begin, end, bottom, slice) of every box; equal boxes of neighbouring steps merged."""
    boxes: list[tuple[int, int, int, ScheduledSlice]] = []
    open_boxes: dict[tuple[int, int, int, Phase], int] = {}
    for step in trace:
        bottom = 0
        still_open: dict[tuple[int, int, int, Phase], int] = {}
        # Decodes below: their height is the number of running streams.
        for part in sorted(step.slices, key=lambda item: item.phase):
            key = (part.seq_id, bottom, part.num_tokens, part.phase)
            at = open_boxes.get(key) if merge else None
            if at is None:
                at = len(boxes)
                boxes.append((step.index, step.index + 1, bottom, part))
            else:
                boxes[at] = (boxes[at][0], step.index + 1, bottom, part)
            still_open[key] = at
            bottom += part.num_tokens
        open_boxes = still_open
    return boxes


def block_map(
    trace: Trace,
    step: int = -1,
    ax: Axes | None = None,
    title: str | None = None,
    columns: int = 16,
) -> Axes:
    """The block pool after one step: who owns each block and how full it is.

    An owned block is filled with its request's hue up to its last token; a double border means
    that several sequences share it, hatching that the prefix index holds its content, an empty
    outline that it is free. A cross marks a block whose cached content the step threw out. Pools
    of more than 512 blocks are shown up to the last block that the trace ever names.

    Args:
        trace: Recorded steps with block events.
        step: Index of the step; negative counts from the end.
        ax: Axes to draw on.
        title: Shown above; by default the step and the pool's occupancy.
        columns: Blocks per row.

    Raises:
        TraceError: The trace has no block events, no such step, or contradicts itself.
    """
    blocks, block_size = trace.info.num_blocks, trace.info.block_size
    if blocks is None or block_size is None:
        raise TraceError(f"{trace.info.stage} records no KV blocks; a block map needs m3_paged on")
    state = state_after(trace, step)
    named = [event.block for record in trace for event in record.block_events]
    shown = blocks if blocks <= DETAILED_BLOCKS else max(named, default=columns - 1) + 1
    rows = -(-shown // columns)
    ax = axes(ax, 0.5 + 0.5 * columns, 1.0 + 0.5 * rows)
    evicted = {e.block for e in trace[state.step].block_events if e.kind == "evict"}
    fill = _filled(state.blocks, state.num_computed, block_size)
    for block in range(shown):
        at = (block % columns, block // columns)
        _draw_block(ax, trace, state.blocks, block, at, fill.get(block, 0.0), block in evicted)
    ax.set(xlim=(-0.1, columns + 0.1), ylim=(rows + 0.1, -0.1), aspect="equal")
    ax.set_xticks([])
    ax.set_yticks([y + 0.5 for y in range(rows)], [str(y * columns) for y in range(rows)])
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.tick_params(length=0)
    used, kept = len(state.blocks.owners), len(state.blocks.cached - set(state.blocks.owners))
    text = f"after step {state.step}: {used} of {blocks} blocks owned"
    if shown < blocks:
        text += f", the first {shown} shown"
    label(ax, title or text + (f", {kept} free but cached" if kept else ""), None, "block")
    legend(ax, block_key(state.blocks, used < blocks, bool(evicted)), inches=0.12)
    return ax


def _filled(blocks: BlockState, computed: dict[int, int], block_size: int) -> dict[int, float]:
    """Share of each owned block's slots that hold a token."""
    fill: dict[int, float] = {}
    for seq_id, table in blocks.tables.items():
        for number, block in enumerate(table):
            tokens = min(max(computed.get(seq_id, 0) - number * block_size, 0), block_size)
            fill[block] = max(fill.get(block, 0.0), tokens / block_size)
    return fill


def _draw_block(
    ax: Axes,
    trace: Trace,
    state: BlockState,
    block: int,
    at: tuple[int, int],
    fill: float,
    evicted: bool,
) -> None:
    """One cell of the block map."""
    (x, y), gap, owners = at, 0.06, state.owners.get(block, [])
    side = 1 - 2 * gap
    colour = hue_of(trace, owners[0]) if owners else INK
    if fill:
        # y grows downwards: the cell fills from its bottom edge up.
        top = y + 1 - gap - side * fill
        ax.add_patch(box(x + gap, top, side, side * fill, colour, "prefill", False))
    border(ax, x, y, gap, colour)
    if len(owners) > 1:
        border(ax, x, y, gap + 0.1, text_on(colour) if fill > 0.5 else colour)
    cached = block in state.cached
    if cached:
        hatch(ax, x + gap, y + gap, side, side, text_on(colour) if owners else INK)
    if evicted:
        ax.plot(x + 0.5, y + 0.5, color=INK, marker="x", markersize=14, ls="")
    if owners:
        # Two names fit into a cell; of more owners, their number.
        named = [sequence_name(trace, seq_id) for seq_id in owners]
        names = ",".join(named) if len(named) < 3 else f"×{len(named)}"
        full = fill >= 0.5  # the name goes where there is more room
        middle = 1 - gap - side * fill / 2 if full else gap + side * (1 - fill) / 2
        behind = colour if cached and full else None
        write(ax, x + 0.5, y + middle, names, text_on(colour) if full else INK, behind)
