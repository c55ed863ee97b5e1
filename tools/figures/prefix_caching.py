"""Figures of note 06: turns of a chat, names of blocks, the order of eviction, the time model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from common.plot_style import CACHED_HATCH, INK, axes, hue, label, legend, text_on
from common.request import Sequence
from m3_paged.kv_cache_manager import KVCacheManager as PagedManager
from m6_prefix.block_hash import BlockHashes
from m6_prefix.hash_index import HashIndex
from m6_prefix.kv_cache_manager import KVCacheManager
from tools.figures.prefix_turns import chat, sequence_of
from tools.figures.registry import FigureInput, figure

_FIXED = (0.0, 0.1, 0.5, 2.0)
"""Time that does not depend on the prompt, as a share of what the whole prompt takes."""


@figure("m6-chat")
def chat_tokens(_: FigureInput) -> Any:
    """Draw the tokens of each turn that are computed, and those that are found."""
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    drawn, panels = plt.subplots(1, 2, figsize=(8.0, 3.4), sharey=True, layout="constrained")
    runs = {"M5": chat(PagedManager(128, 16)), "M6": chat(KVCacheManager(128, 16))}
    for panel, (name, turns) in zip(panels, runs.items(), strict=True):
        ax = axes(panel, 0, 0)
        for at, turn in enumerate(turns, 1):
            ax.bar(at, turn.computed, 0.74, bottom=turn.hit, color=hue(0))
            ax.bar(
                at, turn.hit, 0.74, facecolor="none", edgecolor=hue(0), hatch=CACHED_HATCH, lw=1.0
            )
            ax.text(at, turn.prompt + 20, f"{turn.computed:,}", ha="center", color=INK, fontsize=9)
        total = sum(turn.computed for turn in turns)
        label(ax, f"{name}: {total:,} prompt tokens computed", "turn of the chat", None)
    panels[0].set_ylabel("tokens of the prompt", color=INK, fontsize=10)
    entries = [
        Patch(facecolor=hue(0), label="computed (number on top)"),
        Patch(facecolor="none", edgecolor=hue(0), hatch=CACHED_HATCH, label="found in the cache"),
    ]
    drawn.legend(
        handles=entries, loc="outside lower center", ncols=2, frameon=False, labelcolor=INK,
        fontsize=9,
    )  # fmt: skip
    return drawn


@dataclass(frozen=True)
class NamedBlock:
    """One block of a prompt in the figure of names.

    Attributes:
        name: First hex digits of its hash; empty where it is not full.
        size: Tokens in it.
        hit: Whether an earlier prompt has computed it.
    """

    name: str
    size: int
    hit: bool


def named_blocks(
    prompts: Iterable[tuple[list[int], tuple[str, ...]]], size: int = 16
) -> list[list[NamedBlock]]:
    """Cut prompts into blocks, name the full ones, and match each against those before it.

    Args:
        prompts: Ids and extra keys of each.
        size: Tokens per block.
    """
    index, rows, number = HashIndex(), [], 0
    for ids, keys in prompts:
        prefix = BlockHashes(size, keys)
        prefix.extend(ids)
        table = index.lookup(prefix, (len(ids) - 1) // size)
        hits = len(table)
        for place in range(hits, len(prefix)):
            index.insert(number, table[-1] if table else None, prefix, place)
            table.append(number)
            number += 1
        row = [NamedBlock(prefix.hash(i).hex()[:4], size, i < hits) for i in range(len(prefix))]
        rest = len(ids) % size
        rows.append([*row, NamedBlock("", rest, False)] if rest else row)
    return rows


def _prompts() -> dict[str, tuple[list[int], tuple[str, ...]]]:
    """Six prompts around one system prompt of 40 tokens, with eight different full blocks."""
    system, first, second = list(range(40)), list(range(100, 115)), list(range(200, 218))
    return {
        "A  system + question 1": ([*system, *first], ()),
        "B  system + question 2": ([*system, *second], ()),
        "C  A again": ([*system, *first], ()),
        "D  a date, then the system": ([300, 301, 302, *system], ()),
        "E  the system with a salt": (system, ("tenant",)),
        "F  32 tokens of the system": (system[:32], ()),
    }


@figure("m6-names")
def names(_: FigureInput) -> Any:
    """Draw prompts as rows of blocks coloured by hash, hits outlined."""
    from matplotlib.patches import Patch, Rectangle

    prompts = _prompts()
    rows = named_blocks(prompts.values())
    ax = axes(None, 8.0, 3.7)
    colours: dict[str, str] = {}
    for at, row in enumerate(rows):
        left = 0
        for block in row:
            here, width = (left + 0.25, at - 0.36), block.size - 0.5
            left += block.size
            if not block.name:
                ax.add_patch(
                    Rectangle(here, width, 0.72, facecolor="none", edgecolor=INK, ls=":", lw=1.0)
                )
                continue
            colour = colours.setdefault(block.name, hue(len(colours)))
            look: dict[str, Any] = {"edgecolor": INK, "lw": 2.6} if block.hit else {"lw": 0.0}
            ax.add_patch(Rectangle(here, width, 0.72, facecolor=colour, **look))
            text = block.name + (", hit" if block.hit else "")
            ax.text(
                left - block.size / 2, at, text, ha="center", va="center", color=text_on(colour),
                fontsize=9,
            )  # fmt: skip
    ax.set(xlim=(0, 60), ylim=(len(rows) - 0.5, -0.6), xticks=range(0, 61, 16))
    ax.set_yticks(range(len(rows)), list(prompts))
    label(ax, None, "token of the prompt", None)
    legend(
        ax,
        [
            Patch(facecolor=hue(0), label="full: name and hue are its hash"),
            Patch(facecolor=hue(0), edgecolor=INK, lw=2.6, label="hit"),
            Patch(facecolor="none", edgecolor=INK, ls=":", label="not full: no name"),
        ],
    )
    return ax


def eviction_states(num_blocks: int = 8, size: int = 4) -> list[tuple[str, list[str], list[str]]]:
    """A pool over time: what happened, its blank queue, its cached queue, as letters and ids.

    Two sequences of three full blocks come and go, one of them is hit, and a third needs room.
    """
    manager = KVCacheManager(num_blocks, size)
    owner: dict[int, str] = {}
    states = []

    def note(text: str) -> None:
        pool = manager.pool
        queues: tuple[list[str], list[str]] = ([], [])
        for block in pool.free_ids:
            kept = block in pool.index
            queues[kept].append(f"{owner[block]}·{block}" if kept else str(block))
        states.append((text, *queues))

    def come(sequence: Sequence, letter: str) -> None:
        hit = sequence.num_computed_tokens = manager.match_prefix(sequence)
        assert manager.allocate_slots(sequence, sequence.num_tokens - hit) == []
        manager.publish(sequence, sequence.num_tokens)
        sequence.num_computed_tokens = sequence.num_tokens
        for place, block in enumerate(manager.block_ids(sequence)):
            if place * size >= hit:
                owner[block] = f"{letter}{place}"

    a, b = sequence_of(0, range(12), 1), sequence_of(1, range(100, 112), 1)
    c, d = sequence_of(2, range(6), 1), sequence_of(3, range(200, 220), 1)
    come(a, "A")
    come(b, "B")
    note("A and B run")
    manager.free(a)
    note("A ends")
    manager.free(b)
    note("B ends")
    come(c, "C")
    note("C runs, hits A0")
    manager.free(c)
    note("C ends")
    come(d, "D")
    note("D takes 5 blocks")
    return states


@figure("m6-eviction")
def eviction(_: FigureInput) -> Any:
    """Draw the two queues of the pool, one behind the other, as sequences come and go."""
    from matplotlib.patches import Patch, Rectangle

    states = eviction_states()
    ax = axes(None, 7.6, 3.6)
    letters = {"A": 0, "B": 1, "C": 2, "D": 3}
    for at, (_text, blank, cached) in enumerate(states):
        for place, text in enumerate([*blank, *cached]):
            look: dict[str, Any] = {"facecolor": "none", "edgecolor": INK, "lw": 0.9}
            if place >= len(blank):
                colour = hue(letters[text[0]])
                look = {"facecolor": (colour, 0.35), "edgecolor": colour, "lw": 1.2}
            ax.add_patch(Rectangle((place + 0.05, at - 0.36), 0.9, 0.72, **look))
            ax.text(place + 0.5, at, text, ha="center", va="center", color=INK, fontsize=9)
    ax.set(xlim=(0, 8), ylim=(len(states) - 0.4, -0.6), xticks=[])
    ax.set_yticks(range(len(states)), [text for text, *_ in states])
    label(ax, None, "free blocks, the next one to be taken on the left", None)
    legend(
        ax,
        [
            Patch(facecolor="none", edgecolor=INK, label="blank (its id)"),
            Patch(facecolor=(hue(0), 0.35), edgecolor=hue(0), label="findable (content and id)"),
        ],
        inches=0.35,
    )
    return ax


def speedup(fixed: float, hit: float) -> float:
    """Cold time over the time with a hit, from T = T0 + t · (L − hit).

    Args:
        fixed: T0 / (t · L).
        hit: Share of the prompt that is found, below 1 where ``fixed`` is 0.
    """
    return (fixed + 1) / (fixed + 1 - hit)


@figure("m6-ttft-model")
def ttft_model(_: FigureInput) -> Any:
    """Draw what a hit is worth for several ratios of fixed time to the prompt's time."""
    ax = axes(None, 6.6, 3.6)
    shares = [number / 100 for number in range(100)]
    for number, fixed in enumerate(_FIXED):
        ys = [speedup(fixed, share) for share in shares]
        style = ("-", "--", "-.", ":")[number]
        name = f"T0 = {fixed:g} · tL" if fixed else "T0 = 0"
        ax.plot([100 * share for share in shares], ys, ls=style, color=hue(number), label=name)
    ax.set(xlim=(0, 100), ylim=(1, 12))
    label(ax, None, "tokens of the prompt that are found (%)", "cold time / time with the hit")
    legend(ax)
    return ax
