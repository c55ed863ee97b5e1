"""The real scheduler and the real cache without a model: which tokens hit, in exact counts.

With ``ignore_eos`` the schedule depends on lengths and on equal tokens alone, so a stub may name
the answers. What is counted here is what the engine does on any device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby

from common.request import Request, Sequence
from common.stopping import check_stop
from common.workload import Workload, WorkloadRequest
from m2_batching.plan import StepResult
from m2_batching.request_queue import FCFSQueue
from m5_chunked.scheduler import Scheduler
from m6_prefix.kv_cache_manager import KVCacheManager

Answer = Callable[[Sequence], int]
"""Names the next token of a sequence that a step samples for."""

MAX_MODEL_LEN = 1 << 20


@dataclass(frozen=True)
class Served:
    """What a cache did for a workload.

    Attributes:
        hits: Cached tokens of each request, in order.
        computed: Tokens that all steps computed.
        steps: How many steps that took.
    """

    hits: list[int]
    computed: int
    steps: int


def make_scheduler(manager: KVCacheManager, max_num_seqs: int, budget: int) -> Scheduler:
    """M5's scheduler over this stage's blocks; sequences end by length."""
    return Scheduler(
        FCFSQueue(),
        manager,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        on_token=lambda sequence: check_stop(sequence, (), MAX_MODEL_LEN),
        max_model_len=MAX_MODEL_LEN,
        prefix_cache=manager,
    )


def serve(
    workload: Workload,
    manager: KVCacheManager,
    answer: Answer,
    *,
    max_num_seqs: int = 16,
    budget: int = 8192,
) -> Served:
    """Serve a workload: who arrives at the same time together, later ones when those are done.

    Args:
        workload: The requests; ``arrival`` only orders them.
        manager: Blocks for the longest request at least.
        answer: The model's stub; it is asked about ``Sequence.seq_id``, the request's number.
        max_num_seqs: Sequences at a time.
        budget: Tokens of a step.
    """
    scheduler = make_scheduler(manager, max_num_seqs, budget)
    sequences, computed, steps = list[Sequence](), 0, 0
    for _, wave in groupby(workload.requests, key=lambda item: item.arrival):
        for sequence in _sequences(wave, len(sequences)):
            sequences.append(sequence)
            scheduler.add([sequence])
        while scheduler.has_unfinished():
            computed += step(scheduler, answer)
            steps += 1
    return Served([manager.stats_of(each).hit_tokens for each in sequences], computed, steps)


def step(scheduler: Scheduler, answer: Answer) -> int:
    """One step with a stub for the model. Returns the tokens that it computes."""
    plan = scheduler.schedule()
    tokens = {item.seq_id: answer(item.sequence) for item in plan.scheduled if item.num_sampled}
    scheduler.update(plan, StepResult(tokens), 0.0)
    return plan.num_tokens


def _sequences(requests: Iterable[WorkloadRequest], first: int) -> list[Sequence]:
    return [
        Sequence(number, Request(str(number), item.prompt_token_ids, item.sampling_params))
        for number, item in enumerate(requests, first)
    ]
