"""M5's scheduler with a runner that has no model, and with one that has."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from common.request import Sequence
from common.stopping import check_stop
from common.testing.fixtures import TinyModel
from common.trace import TraceInfo
from m0_init.loader import LoadedModel
from m2_batching.plan import BlockCopy, SchedulerOutput
from m2_batching.request_queue import FCFSQueue, RequestQueue, make_queue
from m2_batching.step_engine import StepEngine
from m3_paged.block_pool import KVCacheBlock
from m3_paged.kv_cache import PagedKVCache
from m3_paged.kv_cache_manager import KVCacheManager
from m3_paged.runner import FlatRunner
from m3_paged.tests.fake_runner import FakeRunner
from m5_chunked.scheduler import Scheduler

Row = tuple[int, int, int, int]


def rows(plan: SchedulerOutput) -> list[Row]:
    """Who computes what: (seq_id, first position, tokens, rows sampled), by ``seq_id``."""
    items = (
        (item.seq_id, item.start, item.num_tokens, item.num_sampled) for item in plan.scheduled
    )
    return sorted(items)


class Published:
    """Stands for a prefix cache without hits, and notes what it is told."""

    def __init__(self) -> None:
        self.notes: list[tuple[int, int]] = []

    def hit_ids(self, sequence: Sequence) -> Collection[int]:
        return ()

    def publish(self, sequence: Sequence, num_tokens: int) -> None:
        self.notes.append((sequence.seq_id, num_tokens))

    def take(self) -> list[tuple[int, int]]:
        """(seq_id, tokens) since the last call, in order."""
        notes, self.notes = self.notes, []
        return notes


class HitManager(KVCacheManager):
    """A manager with one cached prefix, as M6's will behave towards the scheduler.

    Attributes:
        hits: Blocks that every waiting sequence begins with.
        calls: The calls of admissions, in order, with what could be seen at the time.
    """

    def __init__(self, num_blocks: int, block_size: int, hits: tuple[int, ...]) -> None:
        super().__init__(num_blocks, block_size)
        self.hits = hits
        self.calls: list[tuple[Any, ...]] = []

    def match_prefix(self, sequence: Sequence) -> int:
        self.calls.append(("match", sequence.seq_id))
        return len(self.hits) * self.block_size

    def hit_ids(self, sequence: Sequence) -> Collection[int]:
        return self.hits

    def allocate_slots(self, sequence: Sequence, num_new_tokens: int) -> list[BlockCopy] | None:
        if sequence.seq_id in self._tables:
            return super().allocate_slots(sequence, num_new_tokens)
        self.calls.append(
            ("allocate", sequence.seq_id, sequence.num_computed_tokens, num_new_tokens)
        )
        blocks: list[KVCacheBlock] = [self.pool.blocks[i] for i in self.hits]
        for block in blocks:
            self.pool.share(block)
            self._log.add("hit", [block.block_id], sequence.seq_id)
        self._tables[sequence.seq_id] = blocks
        return super().allocate_slots(sequence, num_new_tokens)

    def free(self, sequence: Sequence) -> None:
        self.calls.append(("free", sequence.seq_id))
        super().free(sequence)

    def publish(self, sequence: Sequence, num_tokens: int) -> None:
        self.calls.append(("publish", sequence.seq_id, num_tokens))


class Bench:
    """Scheduler, manager and fake runner, stepped together."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int = 4,
        *,
        seqs: int = 8,
        budget: int = 1000,
        threshold: int = 0,
        queue: RequestQueue | None = None,
        hits: tuple[int, ...] | None = None,
    ) -> None:
        """Start idle; ``on_token`` ends a sequence by length, or where ``stop_now`` names it.

        Args:
            num_blocks: Blocks of the pool.
            block_size: Tokens per block.
            seqs: ``max_num_seqs``.
            budget: ``max_num_batched_tokens``.
            threshold: ``long_prefill_token_threshold``.
            queue: FCFS where None.
            hits: Blocks of a cached prefix; None for M3's manager.
        """
        self.published = Published()
        shared = HitManager(num_blocks, block_size, hits) if hits is not None else None
        self.manager = shared or KVCacheManager(num_blocks, block_size)
        self.scheduler = Scheduler(
            FCFSQueue() if queue is None else queue,
            self.manager,
            max_num_seqs=seqs,
            max_num_batched_tokens=budget,
            on_token=self.on_token,
            long_prefill_token_threshold=threshold,
            prefix_cache=shared or self.published,
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

    def steps(self, count: int) -> list[list[Row]]:
        """The rows of the next steps."""
        return [rows(self.step()) for _ in range(count)]

    def run(self, limit: int = 10_000) -> int:
        """Step to the end; returns the number of steps."""
        steps = 0
        while self.scheduler.has_unfinished():
            assert steps < limit, f"still at work after {limit} steps"
            assert self.step().scheduled, "a step in which nobody advances"
            steps += 1
        return steps

    @property
    def num_free(self) -> int:
        """Free blocks."""
        return self.manager.pool.num_free


class Engine(StepEngine):
    """M5's scheduler over M3's blocks and flat runner, for small models on the CPU."""

    stage = "m5_chunked"

    scheduler: Scheduler
    runner: FlatRunner

    def build(self, loaded: LoadedModel) -> TraceInfo:
        """The pool has the size asked for, and one sequence may fill it."""
        options, limits = self.config.cache, self.config.scheduler
        assert options.num_blocks is not None
        assert options.block_size != "auto"
        self.cache = PagedKVCache(
            loaded.model.kv_spec(), options.num_blocks, options.block_size, loaded.device
        )
        self.max_model_len = min(self.max_model_len, options.num_blocks * options.block_size)
        self.inputs.max_model_len = self.max_model_len
        self.manager = KVCacheManager(options.num_blocks, options.block_size)
        self.published = Published()
        self.scheduler = Scheduler(
            make_queue(limits.policy),
            self.manager,
            max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
            on_token=self.on_token,
            long_prefill_token_threshold=limits.long_prefill_token_threshold,
            prefix_cache=self.published,
        )
        self.runner = FlatRunner(loaded.model, self.cache, self.sampler, use_kernel=False)
        return TraceInfo(self.stage, block_size=options.block_size, num_blocks=options.num_blocks)


def make_engine(model: TinyModel, **options: Any) -> Engine:
    """An engine on a tiny model in float32, traced."""
    defaults = {"num_blocks": 64, "block_size": 4, "trace": True}
    fixed = {"device": "cpu", "dtype": "float32"}
    return Engine(str(model.folder), **{**defaults, **fixed, **options})
