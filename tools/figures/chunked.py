"""Figures of note 05: a prompt beside decodes, pauses by budget, a chunk's mask, a chunk's price.

Steps are planned by the real schedulers of M4 (which is M3's) and M5 when the site is built, with a
stub in the runner's place. Pauses are counted in tokens that the engine computes, so they are exact
and belong to no device.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

from common.charts import line_with_floor
from common.devices import DEVICES, DeviceSpec, prefill_floor_seconds
from common.model_costs import (
    attention_flops_per_token,
    kv_bytes,
    linear_flops_per_token,
    num_chunks,
    weight_bytes,
)
from common.plot_style import DECODE_ALPHA, INK, axes, hue, label, legend, point
from common.plots import token_bars
from common.qwen3 import QWEN3_0_6B
from common.request import Request, SamplingParams, Sequence
from common.stopping import check_stop
from common.trace import Trace, TraceInfo
from m2_batching.plan import StepResult
from m2_batching.request_queue import FCFSQueue
from m2_batching.step_trace import StepTracer
from m3_paged.kv_cache_manager import KVCacheManager
from m3_paged.scheduler import Scheduler as WholePrompts
from m5_chunked.scheduler import Scheduler as Chunks
from tools.docs_build.errors import DocsError
from tools.docs_build.results import select
from tools.figures.registry import FigureInput, figure

EXAMPLE = ((0, 6, 12), (0, 9, 12), (0, 5, 12), (4, 72, 3))
"""(step of arrival, prompt, output) of the four requests of note 05."""

LONG, CHATS, SETTLED = 8192, 4, 2
BUDGETS = (None, 2048, 512, 128)
_BLOCK = 16


def record(requests: Seq[tuple[int, int, int]], budget: int | None) -> Trace:
    """Serve requests with no model.

    Args:
        requests: (step of arrival, prompt, output) of each; steps never run dry in between.
        budget: Of M5's scheduler; None for M4's, which computes each prompt whole.

    Returns:
        The trace that an engine would have written.
    """
    blocks = sum(-(-(prompt + output) // _BLOCK) for _, prompt, output in requests)
    manager, longest = KVCacheManager(blocks, _BLOCK), blocks * _BLOCK
    limits: dict[str, Any] = {
        "max_num_seqs": len(requests),
        "max_num_batched_tokens": budget or longest,
        "on_token": lambda sequence: check_stop(sequence, (), longest + 1),
    }
    scheduler = (Chunks if budget else WholePrompts)(FCFSQueue(), manager, **limits)
    stage, config = "m4_flash", {}
    if budget:
        stage, config = "m5_chunked", {"max_num_batched_tokens": budget}
    tracer = StepTracer(TraceInfo(stage, _BLOCK, blocks, config=config))
    pending = list(enumerate(requests))
    while pending or scheduler.has_unfinished():
        while pending and pending[0][1][0] <= len(tracer.trace):
            number, (_, prompt, output) = pending.pop(0)
            params = SamplingParams(max_tokens=output)
            sequence = Sequence(number, Request(f"r{number}", (0,) * prompt, params))
            tracer.on_add(sequence)
            scheduler.add([sequence])
        tracer.before(scheduler)
        plan = scheduler.schedule()
        result = StepResult({item.seq_id: 0 for item in plan.scheduled if item.num_sampled})
        tracer.after(scheduler, plan, result, scheduler.update(plan, result, 0.0), 0.0)
    tracer.trace.validate()
    return tracer.trace


def pauses(trace: Trace, seq_id: int) -> list[int]:
    """Tokens that the engine computed from each token of a sequence to its next one.

    The step that yields the next one counts whole, so two tokens of neighbouring steps are as far
    apart as the second step is long.
    """
    found: list[int] = []
    since: int | None = None
    for step in trace:
        if since is not None:
            since += step.num_tokens
        if any(part.seq_id == seq_id and part.num_sampled for part in step.slices):
            if since is not None:
                found.append(since)
            since = 0
    return found


@figure("m5-token-bars")
def bars(_: FigureInput) -> Any:
    """Draw the tokens of every step of the four requests, M4 above M5, on one scale."""
    from matplotlib import pyplot as plt

    traces = {"M4: a step is prefill or decode": record(EXAMPLE, None)}
    traces["M5: one budget of 16 tokens"] = record(EXAMPLE, 16)
    drawn, panels = plt.subplots(2, 1, figsize=(7.4, 5.6), layout="constrained")
    top = 1.05 * max(step.num_tokens for trace in traces.values() for step in trace)
    for panel, (name, trace) in zip(panels, traces.items(), strict=True):
        worst = max(max(pauses(trace, chat)) for chat in range(3))
        token_bars(trace, panel, f"{name}; longest pause of a chat: {worst} tokens")
        panel.set_ylim(0, top)
        if panel is panels[0]:
            panel.set_xlabel("")
            panel.get_legend().remove()
    return drawn


@figure("m5-pauses")
def pause_lines(_: FigureInput) -> Any:
    """Draw when four chats get tokens while 8,192 tokens land, in tokens computed."""
    ax = axes(None, 8.2, 3.6)
    ax.set(xlim=(-150, LONG + 600), ylim=(len(BUDGETS) - 0.4, -0.7))
    for row, budget in enumerate(BUDGETS):
        landing = land(budget)
        ax.hlines(row, 0, landing.at[-1], color=INK, lw=0.6, ls=":")
        ax.plot(landing.at, [row] * len(landing.at), "|", color=hue(row), markersize=15, mew=1.4)
        ax.plot(landing.first, row - 0.36, "v", color=INK, markersize=6)
        steps = f"{landing.steps} step{'s' if landing.steps > 1 else ''}"
        text = f"longest pause {landing.pause:,} tokens, first token after {steps}"
        ax.text(60, row - 0.36, text, color=INK, fontsize=8.5, va="center")
    names = [f"M5, {budget:,}" if budget else "M4, whole" for budget in BUDGETS]
    ax.set_yticks(range(len(BUDGETS)), names)
    ax.axvline(0, color=INK, lw=1.0)
    text = "tokens that the engine has computed since the long prompt arrived"
    label(ax, None, text, "budget")
    from matplotlib.lines import Line2D

    key: dict[str, Any] = {"color": INK, "ls": ""}
    legend(ax, [
        Line2D([], [], marker="|", markersize=11, label="each chat gets a token", **key),
        Line2D([], [], marker="v", label="the long prompt's first token", **key),
    ])  # fmt: skip
    return ax


@dataclass(frozen=True)
class LandingSteps:
    """What chats see while a long prompt is computed beside them or before them.

    Attributes:
        at: Tokens computed since its arrival, at each token of the chats.
        first: The same, at its own first token.
        steps: Steps up to its own first token.
        pause: Longest pause of a chat from then on, in tokens computed.
    """

    at: tuple[int, ...]
    first: int
    steps: int
    pause: int


def land(budget: int | None) -> LandingSteps:
    """Let four chats settle and a prompt of 8,192 tokens arrive; stop once both have gone on."""
    slices = num_chunks(LONG, budget - CHATS) if budget else 1
    chat = (0, 16, SETTLED + slices + 2)
    trace = record([chat] * CHATS + [(SETTLED, LONG, 1)], budget)
    computed, at, first = 0, [0], None
    for step in trace.steps[SETTLED:]:
        computed += step.num_tokens
        sampled = {part.seq_id for part in step.slices if part.num_sampled}
        if 0 in sampled:
            at.append(computed)
        if CHATS in sampled:
            first = (computed, step.index - SETTLED + 1)
        if first is not None and 0 in sampled:
            break
    assert first is not None, "the long prompt is computed"
    longest = max(end - begin for begin, end in itertools.pairwise(at))
    return LandingSteps(tuple(at), *first, longest)


@figure("m5-chunk-mask")
def mask(_: FigureInput) -> Any:
    """Draw which keys each chunk of a prompt of 12 sees, in chunks of 4."""
    from matplotlib.patches import Patch, Rectangle

    length, chunk = 12, 4
    ax = axes(None, 5.4, 4.4)
    ax.set(xlim=(-0.2, length + 0.2), ylim=(length + 0.2, -0.2), aspect="equal")
    for query in range(length):
        start = query // chunk * chunk
        for key in range(length):
            look: dict[str, Any] = {"facecolor": hue(0), "edgecolor": "none"}
            if key < start:
                look = {"facecolor": (hue(0), DECODE_ALPHA), "edgecolor": hue(0), "lw": 0.5}
            elif key > query:
                look = {"facecolor": "none", "edgecolor": INK, "ls": ":", "lw": 0.6}
                if key >= start + chunk:
                    continue
            ax.add_patch(Rectangle((key + 0.05, query + 0.05), 0.9, 0.9, **look))
    for number in range(length // chunk):
        top = number * chunk
        outline: dict[str, Any] = {"facecolor": "none", "edgecolor": INK, "lw": 1.6}
        ax.add_patch(Rectangle((0, top), top + chunk, chunk, **outline))
        text = f"step {number}: {chunk} × {top + chunk}"
        ax.text(length + 0.3, top + chunk / 2, text, va="center", color=INK, fontsize=9)
    ticks = range(0, length, chunk)
    ax.set_xticks([tick + 0.5 for tick in ticks], [str(tick) for tick in ticks])
    ax.set_yticks([tick + 0.5 for tick in ticks], [str(tick) for tick in ticks])
    label(ax, None, "key, by position", "query, by position")
    legend(ax, [
        Patch(facecolor=hue(0), label="key of this chunk"),
        Patch(facecolor=(hue(0), DECODE_ALPHA), edgecolor=hue(0), label="key from the cache"),
        Patch(facecolor="none", edgecolor=INK, ls=":", label="masked"),
    ])  # fmt: skip
    return ax


def chunk_floors(device: DeviceSpec, length: int, chunk: int) -> list[float]:
    """Least seconds of each step of a prompt by itself: bytes or FLOPs, whichever take longer.

    A step reads all weights and the K and V up to its last token, and computes projections and
    attention of its own tokens. Logits are left out.
    """
    model, floors = QWEN3_0_6B, []
    for start in range(0, length, chunk):
        count = min(chunk, length - start)
        moved = weight_bytes(model) + kv_bytes(model, start + count)
        pairs = count * start + count * count // 2
        flops = count * linear_flops_per_token(model) + attention_flops_per_token(model, pairs)
        floors.append(max(moved / device.spec_bandwidth, flops / device.spec_flops))
    return floors


@figure("m5-chunk-price")
def price(_: FigureInput) -> Any:
    """Draw the floors of an 8,192-token prompt by chunk: its first token, and its longest step."""
    device, chunks = DEVICES["h100"], [2**power for power in range(5, 14)]
    floors = {chunk: chunk_floors(device, LONG, chunk) for chunk in chunks}
    whole = 1e3 * prefill_floor_seconds(QWEN3_0_6B, device.spec_flops, LONG)
    return line_with_floor(
        {
            "first token of the prompt": {float(c): 1e3 * sum(f) for c, f in floors.items()},
            "longest step": {float(c): 1e3 * max(f) for c, f in floors.items()},
        },
        whole,
        xlabel="tokens in a chunk",
        ylabel="ms on an H100, at least",
        floor_label="all FLOPs at peak",
        log_x=True,
        log_y=True,
    )


@figure("m5_chunked-chunk_size", ("result",))
def pareto(given: FigureInput) -> Any:
    """Draw TTFT of the long prompt against the largest gap of the streams, a point a budget."""
    result = given.results.get(given.option("result"))
    gaps, waits = (
        {
            (row["engine"], row.get("budget")): row  # M4 has neither budget nor threshold
            for row in select(result.rows, f"metric={name}")
            if not row.get("threshold")
        }
        for name in ("largest_gap", "long_ttft")
    )
    own = sorted((key for key in gaps if key[0] == "m5_chunked"), key=lambda key: key[1])
    below = [key for key in gaps if key[0] == "m4_flash"]
    if not own or not below or gaps.keys() != waits.keys():
        raise DocsError(f"{result.name} needs largest_gap and long_ttft of m4_flash and m5_chunked")
    ax = axes(None, 6.4, 3.8)
    for number, (name, keys) in enumerate({"M5, by budget": own, "M4": below}.items()):
        xs, ys = ([1e3 * point(rows[key])[0] for key in keys] for rows in (gaps, waits))
        ax.plot(xs, ys, "os"[number] + "-", color=hue(number), markersize=6, label=name)
        for (_, budget), x, y in zip(keys, xs, ys, strict=True):
            text, at = f"{budget:,}" if budget else "whole", (x, y)
            look: dict[str, Any] = {"color": INK, "fontsize": 8, "textcoords": "offset points"}
            ax.annotate(text, at, (5, 5), **look)
    ax.set(xscale="log", yscale="log")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:,g}")
        axis.set_minor_formatter("{x:,g}")
    ax.tick_params(which="minor", labelsize=7)
    label(ax, None, "largest gap of the streams (ms)", "TTFT of the long prompt (ms)")
    legend(ax)
    return ax
