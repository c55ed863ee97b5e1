"""Chosen tokens, weak and counting hashers, and M5's scheduler over a fake runner."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any

from common.request import Request, SamplingParams, Sequence
from common.trace import Trace, TraceInfo
from m2_batching.plan import BlockCopy, SchedulerOutput
from m2_batching.request_queue import FCFSQueue, RequestQueue
from m2_batching.step_trace import StepTracer
from m2_batching.tests.helpers import stop_by_length
from m3_paged.tests.fake_runner import FakeRunner
from m5_chunked.scheduler import Scheduler
from m6_prefix.block_hash import ID_BYTES, BlockHashes, blake2b_hash
from m6_prefix.hash_index import HashIndex
from m6_prefix.kv_cache_manager import KVCacheManager
from m6_prefix.prefix_index import PrefixIndex
from m6_prefix.tree_index import TreeIndex

SIZE = 4
INDEXES: list[Callable[[], PrefixIndex]] = [HashIndex, TreeIndex]


def constant_hash(parent: bytes, packed_ids: bytes, extra_keys: tuple[str, ...]) -> bytes:
    """The weakest hash there is: everything collides."""
    return b"same"


def parity_hash(parent: bytes, packed_ids: bytes, extra_keys: tuple[str, ...]) -> bytes:
    """A hash of one bit: half of everything collides."""
    return bytes([(sum(parent) + sum(packed_ids)) % 2])


class CountingHasher:
    """The default hasher, and how many tokens it was given.

    Attributes:
        num_tokens: Tokens hashed so far.
    """

    def __init__(self) -> None:
        self.num_tokens = 0

    def __call__(self, parent: bytes, packed_ids: bytes, extra_keys: tuple[str, ...]) -> bytes:
        self.num_tokens += len(packed_ids) // ID_BYTES
        return blake2b_hash(parent, packed_ids, extra_keys)


def sequence_of(
    seq_id: int,
    tokens: Seq[int],
    *,
    salt: str | None = None,
    n: int = 1,
    index: int = 0,
    max_tokens: int = 100,
    priority: int = 0,
) -> Sequence:
    """A waiting sequence of its own request."""
    request = Request(
        f"r{seq_id - index}",
        tuple(tokens),
        SamplingParams(n=n, max_tokens=max_tokens),
        priority=priority,
        cache_salt=salt,
    )
    return Sequence(seq_id, request, index)


def prefix_of(tokens: Seq[int], *keys: str, size: int = SIZE) -> BlockHashes:
    """The full blocks of some tokens."""
    prefix = BlockHashes(size, keys)
    prefix.extend(list(tokens))
    return prefix


def admit(manager: KVCacheManager, sequence: Sequence, count: int | None = None) -> int:
    """Match, allocate, publish and compute ``count`` tokens (default: all); returns the hit."""
    hit = manager.match_prefix(sequence)
    sequence.num_computed_tokens = hit
    count = sequence.num_tokens - hit if count is None else count
    assert manager.allocate_slots(sequence, count) == []
    manager.publish(sequence, hit + count)
    sequence.num_computed_tokens = hit + count
    return hit


def advance(manager: KVCacheManager, sequence: Sequence, *tokens: int) -> list[BlockCopy]:
    """Append tokens one by one, as a decode does, and compute each."""
    copies: list[BlockCopy] = []
    for token in tokens:
        sequence.append(token, 0.0)
        made = manager.allocate_slots(sequence, 1)
        assert made is not None
        copies += made
        manager.publish(sequence, sequence.num_computed_tokens + 1)
        sequence.num_computed_tokens += 1
    return copies


def leave(manager: KVCacheManager, sequence: Sequence) -> None:
    """Free a sequence, as its end or a preemption does."""
    manager.free(sequence)
    sequence.num_computed_tokens = 0


class Bench:
    """M5's scheduler, a manager, the fake runner and a trace, stepped together.

    The fake runner fails if a sequence reads anything but its own prefix at any position.
    """

    def __init__(
        self,
        manager: Any,
        *,
        seqs: int = 8,
        budget: int = 1000,
        queue: RequestQueue | None = None,
    ) -> None:
        """Start idle; ``manager`` is this stage's, or M3's to compare with."""
        self.manager = manager
        self.scheduler = Scheduler(
            FCFSQueue() if queue is None else queue,
            manager,
            max_num_seqs=seqs,
            max_num_batched_tokens=budget,
            on_token=stop_by_length,
            prefix_cache=manager if isinstance(manager, KVCacheManager) else None,
        )
        num_blocks = manager.pool.num_blocks
        self.runner = FakeRunner(num_blocks, manager.block_size)
        info = TraceInfo("m6_prefix", block_size=manager.block_size, num_blocks=num_blocks)
        self._tracer = StepTracer(info)

    @property
    def trace(self) -> Trace:
        """The steps so far."""
        return self._tracer.trace

    def add(self, *sequences: Sequence) -> None:
        """One request's sequences."""
        for sequence in sequences:
            self._tracer.on_add(sequence)
        self.scheduler.add(list(sequences))

    def abort(self, *sequences: Sequence) -> None:
        """End a request's sequences."""
        for sequence in sequences:
            if not sequence.is_finished:
                self.scheduler.abort(sequence)
                self._tracer.on_abort(sequence)

    def step(self) -> SchedulerOutput:
        """Schedule, run, update, record, and check the books."""
        self._tracer.before(self.scheduler)
        plan = self.scheduler.schedule()
        result = self.runner.run(plan)
        touched = self.scheduler.update(plan, result, 0.0)
        self._tracer.after(self.scheduler, plan, result, touched, 0.0)
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
