"""Prompts through M5's scheduler without a model, over blocks that are found again and not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from common.request import Request, SamplingParams, Sequence
from common.stopping import check_stop
from m2_batching.plan import StepResult
from m2_batching.request_queue import FCFSQueue
from m3_paged.kv_cache_manager import KVCacheManager as PagedManager
from m5_chunked.scheduler import Scheduler
from m6_prefix.kv_cache_manager import KVCacheManager

_SYSTEM, _QUESTION, _ANSWER, _TURNS = 600, 40, 120, 6


@dataclass(frozen=True)
class Turn:
    """What one request of a chat cost.

    Attributes:
        prompt: Its tokens, all earlier turns included.
        hit: Those that were found.
        computed: Those that were computed before its first token.
    """

    prompt: int
    hit: int
    computed: int


def scheduler_over(manager: PagedManager | KVCacheManager, seqs: int = 8) -> Scheduler:
    """M5's scheduler; sequences end by length."""
    return Scheduler(
        FCFSQueue(),
        manager,
        max_num_seqs=seqs,
        max_num_batched_tokens=8192,
        on_token=lambda sequence: check_stop(sequence, (), 10**9),
        prefix_cache=manager if isinstance(manager, KVCacheManager) else None,
    )


def sequence_of(seq_id: int, prompt: Iterable[int], max_tokens: int) -> Sequence:
    """A waiting sequence of its own request."""
    return Sequence(
        seq_id, Request(str(seq_id), tuple(prompt), SamplingParams(max_tokens=max_tokens))
    )


def _run(scheduler: Scheduler) -> list[dict[int, int]]:
    """Run to the end with a stub for the model; tokens computed by sequence, for each step."""
    steps = []
    while scheduler.has_unfinished():
        plan = scheduler.schedule()
        steps.append({item.seq_id: item.end - item.start for item in plan.scheduled})
        tokens = {item.seq_id: 7 for item in plan.scheduled if item.num_sampled}
        scheduler.update(plan, StepResult(tokens), 0.0)
    return steps


def chat(manager: PagedManager | KVCacheManager, turns: int = _TURNS) -> list[Turn]:
    """Let M5's scheduler serve a chat turn by turn; every prompt holds all turns before it."""
    scheduler = scheduler_over(manager)
    history, rows = list(range(_SYSTEM)), []
    for number in range(turns):
        history += [10_000 + number] * _QUESTION
        sequence = sequence_of(number, history, _ANSWER)
        scheduler.add([sequence])
        computed = _run(scheduler)[0][number]
        rows.append(Turn(len(history), len(history) - computed, computed))
        history = sequence.token_ids
    return rows


def chat_lines() -> list[str]:
    """The chat as text, without and with prefix caching."""
    pairs = zip(chat(PagedManager(128, 16)), chat(KVCacheManager(128, 16)), strict=True)
    lines = ["         prompt   M5 computes   M6 finds   M6 computes"]
    for number, (paged, cached) in enumerate(pairs, 1):
        lines.append(
            f"turn {number}   {cached.prompt:6}   {paged.computed:11}   {cached.hit:8}   "
            f"{cached.computed:11}"
        )
    return lines


def same_step_lines() -> list[str]:
    """Two equal prompts of 40 tokens in one step: what the scheduler plans, what blocks do."""
    manager = KVCacheManager(8, 16)
    scheduler = scheduler_over(manager)
    scheduler.add([sequence_of(0, range(40), 2)])
    scheduler.add([sequence_of(1, range(40), 2)])
    plan = scheduler.schedule()
    lines = [f"sequence {p.seq_id}: tokens {p.start} to {p.end - 1}" for p in plan.scheduled]
    events = manager.drain_events()
    for number in (0, 1):
        mine = ", ".join(f"{e.kind} {e.block}" for e in events if e.seq_id == number)
        lines.append(f"blocks of {number}: {mine}")
    return lines
