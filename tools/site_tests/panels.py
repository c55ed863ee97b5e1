"""What a panel of the trace player shows, read from the page, and what it must show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from common.plot_parts import sequence_name
from common.trace import Trace
from common.trace_replay import ReplayState, replay

# Steps one player from its first step to its last and reads what each panel shows, in one go.
READ = """player => {
  const panel = (side) => {
  const ids = (list) => [...list].map((item) => Number(item.dataset.seq));
  const queues = {};
  for (const list of side.querySelectorAll("[data-queue]"))
    queues[list.dataset.queue] = ids(list.querySelectorAll("[data-seq]"));
  const names = [...side.querySelectorAll(".tp-chip b")].map((item) => item.textContent);
  const slices = [...side.querySelectorAll(".tp-slice")].map((item) => [
    Number(item.dataset.seq), Number(item.dataset.tokens), item.dataset.phase]);
  const blocks = [...side.querySelectorAll("[data-block]")].map((item) => ({
    owners: item.dataset.owners.split(" ").filter(Boolean).map(Number),
    fill: Number(item.dataset.fill),
    shared: item.classList.contains("tp-shared"),
    cached: item.classList.contains("tp-cached"),
    evicted: item.classList.contains("tp-evicted"),
  }));
  const heights = [...side.querySelectorAll(".tp-bar")].map((bar) =>
    [...bar.children].map((part) => parseFloat(part.style.height)));
  const links = [...side.querySelectorAll(".tp-events li")].map((item) => [
    item.dataset.rule, item.querySelector("a")?.getAttribute("href") ?? null]);
  return { queues, names, slices, blocks, heights, links };
  };
  const shown = [], next = player.querySelector(".tp-next");
  player.querySelector(".tp-first").click();
  for (;;) {
    const sides = [...player.querySelectorAll(".tp-side")].map(panel);
    shown.push({ step: Number(player.dataset.step), sides });
    if (next.disabled) return shown;
    next.click();
  }
}"""


@dataclass(frozen=True)
class Expected:
    """What a panel must show after a step, computed from the trace by ``common.trace_replay``."""

    queues: dict[str, list[int]]
    slices: list[list[Any]]
    blocks: list[dict[str, Any]]


def expected(trace: Trace) -> list[Expected]:
    frames, lost, ended = [], set[int](), list[int]()
    for state in replay(trace):
        step = trace[state.step]
        lost |= set(step.preempted)
        lost -= {item.seq_id for item in step.admitted} | {item.seq_id for item in step.finished}
        ended += [item.seq_id for item in step.finished]
        waiting = step.waiting_after
        queues = {
            "waiting": [seq for seq in waiting if seq not in lost],
            "running": list(step.running_after),
            "preempted": [seq for seq in waiting if seq in lost],
            "finished": list(ended),
        }
        slices = [[part.seq_id, part.num_tokens, part.phase] for part in step.slices]
        frames.append(Expected(queues, slices, _blocks(trace, state.step, state)))
    return frames


def _blocks(trace: Trace, step: int, state: ReplayState) -> list[dict[str, Any]]:
    size = trace.info.block_size
    if size is None or trace.info.num_blocks is None:
        return []
    fill: dict[int, float] = {}
    for seq_id, table in state.blocks.tables.items():
        for at, block in enumerate(table):
            tokens = min(max(state.num_computed.get(seq_id, 0) - at * size, 0), size)
            fill[block] = max(fill.get(block, 0.0), tokens / size)
    evicted = {event.block for event in trace[step].block_events if event.kind == "evict"}
    return [
        {
            "owners": list(state.blocks.owners.get(block, [])),
            "fill": fill.get(block, 0.0),
            "shared": len(state.blocks.owners.get(block, [])) > 1,
            "cached": block in state.blocks.cached,
            "evicted": block in evicted,
        }
        for block in range(trace.info.num_blocks)
    ]


def check_panel(got: dict[str, Any], want: Expected, trace: Trace, at: int, where: str) -> None:
    assert got["queues"] == want.queues, where
    assert got["slices"] == want.slices, where
    assert got["blocks"] == want.blocks, where
    order = [seq for queue in want.queues.values() for seq in queue]
    assert got["names"] == [sequence_name(trace, seq) for seq in order], where
    drawn = [len(bar) > 0 for bar in got["heights"]]
    assert drawn[: at + 1] == [bool(step.slices) for step in trace.steps[: at + 1]], where
    assert not any(drawn[at + 1 :]), f"{where}: a bar of a step that is still to come"
    assert all(link for _, link in got["links"]), (where, got["links"])
