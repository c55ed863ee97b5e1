"""The pieces that figures of traces are built of: boxes, borders, hatching, legends."""

from __future__ import annotations

from typing import Any

from common.block_state import BlockState
from common.plot_style import CACHED_HATCH, DECODE_ALPHA, INK, Axes, hue
from common.step_record import Phase
from common.trace import Trace


def hue_of(trace: Trace, seq_id: int) -> str:
    """Colour of the request that ``seq_id`` answers."""
    return hue(list(trace.requests).index(trace.sequences[seq_id].request_id))


def sequence_name(trace: Trace, seq_id: int) -> str:
    """``r0``, or ``r0/1`` for one of several completions."""
    info = trace.sequences[seq_id]
    several = sum(item.request_id == info.request_id for item in trace.sequences.values()) > 1
    return f"{info.request_id}/{info.index}" if several else info.request_id


def box(
    x: float, y: float, width: float, height: float, colour: str, phase: Phase, edge: bool = True
) -> Any:
    """A rectangle of work: solid for prefill, light for decode."""
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    alpha = 1.0 if phase == "prefill" else DECODE_ALPHA
    return Rectangle(
        (x, y), width, height, facecolor=to_rgba(colour, alpha), edgecolor=colour, lw=0.8 * edge
    )


def hatch(ax: Axes, x: float, y: float, width: float, height: float, ink: str) -> None:
    """Mark a box as cached."""
    from matplotlib.patches import Rectangle

    ax.add_patch(
        Rectangle(
            (x, y), width, height, facecolor="none", edgecolor=ink, hatch=CACHED_HATCH, lw=0.0,
            alpha=0.6,
        )
    )  # fmt: skip


def border(ax: Axes, x: float, y: float, inset: float, colour: str) -> None:
    """Outline a unit cell at (x, y), ``inset`` within it."""
    from matplotlib.patches import Rectangle

    side = 1 - 2 * inset
    ax.add_patch(
        Rectangle((x + inset, y + inset), side, side, facecolor="none", edgecolor=colour, lw=1.2)
    )


def write(ax: Axes, x: float, y: float, text: str, ink: str, behind: str | None = None) -> None:
    """Small text in the middle of a cell; ``behind`` clears the hatching under it."""
    clear = {"facecolor": behind, "edgecolor": "none", "pad": 0.8} if behind else None
    ax.text(x, y, text, ha="center", va="center", color=ink, fontsize=7.5, bbox=clear)


def step_key(
    phases: set[str], cached: bool, waiting: bool, preempted: bool, padding: bool
) -> list[Any]:
    """Legend entries for what a figure shows, in neutral ink."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[Any] = []
    if "prefill" in phases:
        entries.append(Patch(facecolor=INK, edgecolor=INK, label="prefill"))
    if "decode" in phases:
        entries.append(Patch(facecolor=(INK, DECODE_ALPHA), edgecolor=INK, label="decode"))
    if cached:
        entries.append(Patch(facecolor="none", edgecolor=INK, hatch=CACHED_HATCH, label="cached"))
    if waiting:
        entries.append(Line2D([], [], color=INK, ls=":", label="waiting"))
    if preempted:
        entries.append(
            Line2D([], [], color=INK, ls="", marker="X", markersize=8, label="preempted")
        )
    if padding:
        entries.append(Patch(facecolor="none", edgecolor=INK, ls="--", label="padding"))
    return entries


def block_key(state: BlockState, some_free: bool, some_evicted: bool) -> list[Any]:
    """Legend of a block map, only what it shows."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[Any] = []
    if state.owners:
        entries.append(Patch(facecolor=INK, edgecolor=INK, label="holds tokens"))
    if some_free:
        entries.append(Patch(facecolor="none", edgecolor=INK, label="free"))
    if any(len(owners) > 1 for owners in state.owners.values()):
        double = Patch(facecolor="none", edgecolor=INK, lw=3.0, label="shared (double border)")
        entries.append(double)
    if state.cached:
        entries.append(Patch(facecolor="none", edgecolor=INK, hatch=CACHED_HATCH, label="cached"))
    if some_evicted:
        entries.append(Line2D([], [], color=INK, ls="", marker="x", label="evicted in this step"))
    return entries
