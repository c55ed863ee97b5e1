"""Figures of note 02: seats of a batch over time, a padded batch, throughput and its roofline.

The seats are drawn from traces that the real scheduler writes when the site is built, with a stub
in the runner's place: every sequence gets a token per scheduled step until it has all of its own.
"""

from __future__ import annotations

from typing import Any

from common.charts import grouped, line_with_floor
from common.devices import DEVICES
from common.model_costs import decode_bytes, linear_flops_per_token, lm_head_flops_per_row
from common.plot_parts import box, hue_of, sequence_name, write
from common.plot_style import DECODE_ALPHA, INK, Axes, axes, hue, label, legend, text_on
from common.qwen3 import QWEN3_0_6B
from common.request import Request, SamplingParams, Sequence
from common.stopping import check_stop
from common.trace import Trace, TraceInfo
from m2_batching.plan import StepResult
from m2_batching.request_queue import FCFSQueue
from m2_batching.scheduler import Scheduler
from m2_batching.step_trace import StepTracer
from tools.docs_build.errors import DocsError
from tools.docs_build.results import select
from tools.figures.registry import FigureInput, figure

EXAMPLE = ((12, 4), (5, 20), (20, 7), (9, 11), (7, 5), (16, 16), (6, 3), (11, 9))
"""(prompt, output) tokens of the eight requests of note 02."""

SEATS = 4


def record(requests: tuple[tuple[int, int], ...], seats: int, group: int | None = None) -> Trace:
    """Serve requests with M2's scheduler and no model.

    Args:
        requests: (prompt, output) tokens of each.
        seats: Slots.
        group: Requests that are handed in at a time, each group when the one before has ended:
            static batching. None hands in all at the start: continuous batching.

    Returns:
        The trace that an engine would have written.
    """
    longest = max(prompt + output for prompt, output in requests)
    scheduler = Scheduler(FCFSQueue(), seats, 2048, lambda s: check_stop(s, (), longest + 1))
    tracer = StepTracer(TraceInfo("m2_batching", block_size=longest, num_blocks=seats))
    size = group or len(requests)
    for first in range(0, len(requests), size):
        for number, (prompt, output) in enumerate(requests[first : first + size], first):
            params = SamplingParams(max_tokens=output)
            sequence = Sequence(number, Request(f"r{number}", (0,) * prompt, params))
            tracer.on_add(sequence)
            scheduler.add([sequence])
        while scheduler.has_unfinished():
            tracer.before(scheduler)
            plan = scheduler.schedule()
            width = max(item.num_tokens for item in plan.scheduled)
            padding = width * len(plan.scheduled) - plan.num_tokens
            ids = {item.seq_id: 0 for item in plan.scheduled}
            result = StepResult(ids, num_padding_tokens=padding)
            tracer.after(scheduler, plan, result, scheduler.update(plan, result, 0.0), 0.0)
    tracer.trace.validate()
    return tracer.trace


@figure("batching-seats")
def seats(_: FigureInput) -> Any:
    """Draw who sits in each of four slots, step by step, static above continuous."""
    from matplotlib import pyplot as plt

    traces = {"static": record(EXAMPLE, SEATS, SEATS), "continuous": record(EXAMPLE, SEATS)}
    steps = max(len(trace) for trace in traces.values())
    drawn, panels = plt.subplots(2, 1, figsize=(9, 4.6), sharex=True, layout="constrained")
    for panel, (name, trace) in zip(panels, traces.items(), strict=True):
        ax = axes(panel, 0, 0)
        useful = sum(output for _, output in EXAMPLE) / (len(trace) * SEATS)
        _draw_seats(ax, trace)
        ax.set(xlim=(0, steps), ylim=(SEATS - 0.4, -0.6))
        title = f"{name}: {len(trace)} steps, {useful:.0%} of the seats yield a token"
        label(ax, title, "engine step" if panel is panels[-1] else None, "slot")
    legend(panels[-1], _seat_key())
    return drawn


def _draw_seats(ax: Axes, trace: Trace) -> None:
    """Fill each slot of each step: prefill, decode, pause, or nobody."""
    from matplotlib.patches import Rectangle

    holder: dict[int, int] = {}
    for step in trace:
        for event in step.block_events:
            if event.kind == "alloc" and event.seq_id is not None:
                holder[event.block] = event.seq_id
        parts = {part.seq_id: part for part in step.slices}
        for slot in range(SEATS):
            seq_id, x = holder.get(slot), step.index + 0.04
            if seq_id is None:
                look: dict[str, Any] = {
                    "facecolor": "none",
                    "edgecolor": INK,
                    "ls": ":",
                    "lw": 0.7,
                    "alpha": 0.6,
                }
                ax.add_patch(Rectangle((x, slot - 0.36), 0.92, 0.72, **look))
                continue
            colour = hue_of(trace, seq_id)
            if seq_id not in parts:
                ax.plot([x, x + 0.92], [slot, slot], color=colour, ls=":", lw=2.2)
                continue
            phase = parts[seq_id].phase
            ax.add_patch(box(x, slot - 0.36, 0.92, 0.72, colour, phase))
            if phase == "prefill":
                name = sequence_name(trace, seq_id)
                write(ax, step.index + 0.5, slot, name, text_on(colour))
        for event in step.block_events:
            if event.kind == "free":
                holder.pop(event.block, None)
    ax.set_yticks(range(SEATS), [str(slot) for slot in range(SEATS)])


def _seat_key() -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return [
        Patch(facecolor=INK, edgecolor=INK, label="prefill"),
        Patch(facecolor=(INK, DECODE_ALPHA), edgecolor=INK, label="decode"),
        Line2D([], [], color=INK, ls=":", lw=2.2, label="pauses for a prefill"),
        Patch(facecolor="none", edgecolor=INK, ls=":", label="empty"),
    ]


@figure("padded-batch")
def padded_batch(_: FigureInput) -> Any:
    """Draw the rectangle of three prompts, and the slots that a decode step of them reads."""
    from matplotlib import pyplot as plt

    lengths, generated = (5, 2, 4), (2, 2, 2)
    drawn, panels = plt.subplots(
        1, 2, figsize=(8.4, 2.5), width_ratios=(5, 10), sharey=True, layout="constrained"
    )
    width, longest = max(lengths), max(map(sum, zip(lengths, generated, strict=True)))
    places = longest + 3
    for panel in panels:
        axes(panel, 0, 0)
        panel.set_yticks(range(4), ["slot 0", "slot 1", "slot 2", "slot 3"])
        panel.tick_params(length=0)
        for spine in panel.spines.values():
            spine.set_visible(False)
    prefill, decode = panels
    for row, (prompt, more) in enumerate(zip(lengths, generated, strict=True)):
        for at in range(width):
            _place(prefill, at, row, hue(row) if at < prompt else None, "prefill")
        for at in range(places):
            known = at < prompt + more
            _place(decode, at, row, hue(row) if known else None, "prefill", solid=at < prompt)
            if at == prompt + more - 1:
                write(decode, at + 0.5, row, "new", INK)
    for at in range(places):
        _place(decode, at, 3, None, "prefill")
    decode.axvline(longest, color=INK, ls="--", lw=1.2)
    decode.text(longest + 0.1, -0.62, "longest context", color=INK, fontsize=8, va="bottom")
    prefill.set(xlim=(-0.1, width + 0.1), ylim=(3.6, -0.9))
    decode.set(xlim=(-0.1, places + 0.1))
    label(prefill, "prefill: a rectangle", "position", None)
    label(decode, "decode: one query a slot, keys in place", "place in the slot", None)
    for panel, count in ((prefill, width), (decode, places)):
        panel.set_xticks([at + 0.5 for at in range(count)], [str(at) for at in range(count)])
    return drawn


def _place(
    ax: Axes, at: int, row: int, colour: str | None, phase: Any, *, solid: bool = True
) -> None:
    """One token position: filled in a hue, or outlined as padding or reserve."""
    from matplotlib.patches import Rectangle

    if colour is None:
        look: dict[str, Any] = {
            "facecolor": "none",
            "edgecolor": INK,
            "ls": ":",
            "lw": 0.8,
            "alpha": 0.7,
        }
        ax.add_patch(Rectangle((at + 0.05, row - 0.36), 0.9, 0.72, **look))
    else:
        ax.add_patch(box(at + 0.05, row - 0.36, 0.9, 0.72, colour, phase if solid else "decode"))


@figure("batch-roofline")
def batch_roofline(_: FigureInput) -> Any:
    """Draw the most tokens per second of a decode step against its batch, on an H100."""
    device, batches = DEVICES["h100"], [2**power for power in range(11)]
    flops = linear_flops_per_token(QWEN3_0_6B) + lm_head_flops_per_row(QWEN3_0_6B)

    def most(batch: int, context: int) -> float:
        moved = decode_bytes(QWEN3_0_6B, batch, context) / device.spec_bandwidth
        return batch / max(moved, batch * flops / device.spec_flops)

    series = {
        f"context {context:,}": {float(batch): most(batch, context) for batch in batches}
        for context in (128, 1024, 4096)
    }
    return line_with_floor(
        series,
        {float(batch): most(1, 0) * batch for batch in batches if batch <= 128},
        xlabel="sequences in the batch",
        ylabel="output tokens per second",
        floor_label="weights alone",
        log_x=True,
        log_y=True,
    )


@figure("m2_batching-throughput", ("result",))
def throughput(given: FigureInput) -> Any:
    """Draw the measured tokens per second against the batch, below the roofline."""
    result = given.results.get(given.option("result"))
    measured = grouped(select(result.rows, "metric=output_throughput"), "batch")
    if not {"m1_basic", "m2_batching"} <= measured.keys():
        raise DocsError(f"{result.name} needs output_throughput of m1_basic and m2_batching")
    names = {"m2_batching": "M2, together", "m1_basic": "M1, one by one"}
    roof = {row["batch"]: row["median"] for row in select(result.rows, "metric=roofline")}
    return line_with_floor(
        {name: measured[engine] for engine, name in names.items()},
        roof,
        xlabel="requests",
        ylabel="output tokens per second",
        floor_label="roofline of a decode step",
        log_x=True,
        log_y=True,
    )
