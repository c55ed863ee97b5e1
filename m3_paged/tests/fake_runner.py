"""A runner without a model: it keeps tables as FlatRunner does, and checks what would be read.

Instead of K and V a place holds which token prefix it was computed from. After storing a step's
places, every scheduled sequence reads its whole context through its table; a place that holds
anything but that sequence's own prefix is a corrupted cache.
"""

from __future__ import annotations

from common.request import Sequence
from common.stopping import check_stop
from m2_batching.plan import ScheduledSequence, SchedulerOutput, StepResult
from m2_batching.request_queue import FCFSQueue, RequestQueue
from m2_batching.tests.helpers import make_request, make_sequence
from m3_paged.kv_cache_manager import KVCacheManager
from m3_paged.scheduler import Scheduler


class FakeRunner:
    """Executes plans on a pool of places."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        """All places hold nothing."""
        self.block_size = block_size
        self.places: list[list[int | None]] = [[None] * block_size for _ in range(num_blocks)]
        self.tables: dict[int, list[int]] = {}

    def run(self, plan: SchedulerOutput) -> StepResult:
        """Copy, store, read back, and sample a token that depends on the sequence alone."""
        for seq_id in (*plan.preempted, *plan.finished):
            self.tables.pop(seq_id, None)
        for item in plan.new:
            assert item.seq_id not in self.tables, "a new sequence that the runner knows"
            self.tables[item.seq_id] = list(item.new_block_ids)
        for item in plan.advanced:
            self.tables[item.seq_id][item.table_start :] = item.new_block_ids
        held = [list(self.places[copy.source]) for copy in plan.copies]
        for copy, content in zip(plan.copies, held, strict=True):
            self.places[copy.target] = content
        for item in plan.scheduled:
            self._store(item)
        for item in plan.scheduled:
            self._read(item)
        return StepResult(
            {i.seq_id: token_for(i.sequence) for i in plan.scheduled if i.num_sampled}
        )

    def _store(self, item: ScheduledSequence) -> None:
        table = self.tables[item.seq_id]
        for position in range(item.start, item.end):
            block = table[position // self.block_size]
            self.places[block][position % self.block_size] = prefix(item.sequence, position)

    def _read(self, item: ScheduledSequence) -> None:
        table = self.tables[item.seq_id]
        for position in range(item.end):
            found = self.places[table[position // self.block_size]][position % self.block_size]
            assert found == prefix(item.sequence, position), (
                f"sequence {item.seq_id} reads another's K and V at position {position}"
            )


def prefix(sequence: Sequence, position: int) -> int:
    """What K and V at ``position`` depend on: the ids up to it."""
    return hash(tuple(sequence.token_ids[: position + 1]))


def token_for(sequence: Sequence) -> int:
    """A sampled id: different for every completion of a request, the same after a preemption."""
    return hash((sequence.request.request_id, sequence.index, sequence.num_tokens)) % 1_000_003


class Bench:
    """Scheduler, manager and fake runner, stepped together."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int = 4,
        *,
        seqs: int = 8,
        budget: int = 1000,
        queue: RequestQueue | None = None,
    ) -> None:
        """Start idle; ``on_token`` ends a sequence by length, or where ``stop_now`` names it."""
        self.manager = KVCacheManager(num_blocks, block_size)
        self.scheduler = Scheduler(
            FCFSQueue() if queue is None else queue,
            self.manager,
            max_num_seqs=seqs,
            max_num_batched_tokens=budget,
            on_token=self.on_token,
        )
        self.runner = FakeRunner(num_blocks, block_size)
        self.stop_now: set[int] = set()

    def on_token(self, sequence: Sequence) -> None:
        """End by length, or with the EOS that a test wished for."""
        eos = (sequence.token_ids[-1],) if sequence.seq_id in self.stop_now else ()
        check_stop(sequence, eos, 10**9)

    def add(self, *sequences: Sequence) -> None:
        """One request's sequences."""
        self.scheduler.add(list(sequences))

    def step(self) -> SchedulerOutput:
        """Schedule, run, update, and check the books."""
        plan = self.scheduler.schedule()
        self.scheduler.update(plan, self.runner.run(plan), 0.0)
        self.manager.check()
        return plan

    def run(self, limit: int = 10_000) -> int:
        """Step to the end; returns the number of steps."""
        steps = 0
        while self.scheduler.has_unfinished():
            assert steps < limit, f"still at work after {limit} steps"
            self.step()
            steps += 1
        return steps

    @property
    def num_free(self) -> int:
        """Free blocks."""
        return self.manager.pool.num_free


def samples(
    number: int, n: int, prompt_len: int, max_tokens: int = 100, **more: int
) -> list[Sequence]:
    """The ``n`` sequences of request ``number``, with ids from ``10 · number`` on."""
    request = make_request(number, prompt_len, more.get("priority", 0), max_tokens)
    return [make_sequence(10 * number + i, request=request, index=i) for i in range(n)]
