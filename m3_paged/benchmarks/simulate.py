"""The real schedulers without a model: who gets memory when, in exact counts.

With ``ignore_eos`` the schedule depends on lengths alone, so a stub may name the tokens. What is
counted here is what the engine does on any device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from common.request import Request, Sequence
from common.stopping import check_stop
from common.workload import Workload
from m2_batching.plan import StepResult
from m2_batching.request_queue import FCFSQueue
from m2_batching.scheduler import Scheduler as SlotScheduler
from m3_paged.kv_cache_manager import KVCacheManager
from m3_paged.scheduler import Scheduler as BlockScheduler

AnyScheduler = SlotScheduler | BlockScheduler


@dataclass(frozen=True)
class Usage:
    """KV memory after one step, when those who finished in it have left.

    Attributes:
        running: Sequences that hold memory.
        waiting: Sequences that wait for some.
        stored: Tokens whose K and V are stored.
        allocated: Places that belong to a sequence.
        total: Places of the whole cache.
    """

    running: int
    waiting: int
    stored: int
    allocated: int
    total: int


def slot_scheduler(num_slots: int, max_model_len: int, budget: int) -> SlotScheduler:
    """M2's scheduler; sequences end by length."""
    return SlotScheduler(FCFSQueue(), num_slots, budget, _by_length(max_model_len))


def block_scheduler(
    num_blocks: int, block_size: int, max_model_len: int, budget: int, max_num_seqs: int
) -> BlockScheduler:
    """M3's scheduler; sequences end by length."""
    return BlockScheduler(
        FCFSQueue(),
        KVCacheManager(num_blocks, block_size),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        on_token=_by_length(max_model_len),
    )


def add_all(scheduler: AnyScheduler, workload: Workload) -> list[Sequence]:
    """Queue every request of a workload, one sequence each."""
    sequences = []
    for number, item in enumerate(workload.requests):
        request = Request(str(number), item.prompt_token_ids, item.sampling_params)
        sequences.append(Sequence(number, request))
        scheduler.add(sequences[-1:])
    return sequences


def run(
    scheduler: AnyScheduler, places_of: Callable[[Sequence], int], total: int
) -> Iterator[Usage]:
    """Step until everybody has finished; yields the memory's state in every step.

    Args:
        scheduler: With requests waiting.
        places_of: Places that a running sequence owns.
        total: Places of the whole cache.
    """
    while scheduler.has_unfinished():
        step(scheduler)
        running = scheduler.running
        yield Usage(
            len(running),
            len(scheduler.waiting),
            sum(sequence.num_computed_tokens for sequence in running),
            sum(places_of(sequence) for sequence in running),
            total,
        )


def step(scheduler: AnyScheduler) -> int:
    """One step with a stub for the model: every sampled token is 0. Returns its sequences."""
    plan = scheduler.schedule()
    tokens = {item.seq_id: 0 for item in plan.scheduled if item.num_sampled}
    scheduler.update(plan, StepResult(tokens), 0.0)
    return len(plan.scheduled)


def _by_length(max_model_len: int) -> Callable[[Sequence], None]:
    return lambda sequence: check_stop(sequence, (), max_model_len)
