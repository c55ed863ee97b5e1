"""Replay a trace step by step, checking that it conserves tokens, sequences and blocks.

``replay`` yields the state after each step. The checks are the engine's promises, written down
once for all stages: a counter only moves by what was computed, cached or lost to a preemption; a
sequence is in one place at a time; a block has exactly the owners its events say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn

from common.block_state import BlockState, BlockStateError
from common.step_record import ScheduledSlice, StepRecord, phase_of
from common.trace import Trace, TraceError


@dataclass
class ReplayState:
    """Where every sequence and block stands after a step.

    Attributes:
        step: Index of the step, -1 before the first.
        waiting: Waiting sequences.
        running: Running sequences.
        finished_at: Step at which a sequence ended.
        num_computed: ``num_computed_tokens`` by sequence.
        num_output: Sampled ids so far by sequence.
        blocks: Block ownership.
    """

    step: int = -1
    waiting: set[int] = field(default_factory=set)
    running: set[int] = field(default_factory=set)
    finished_at: dict[int, int] = field(default_factory=dict)
    num_computed: dict[int, int] = field(default_factory=dict)
    num_output: dict[int, int] = field(default_factory=dict)
    blocks: BlockState = field(default_factory=BlockState)


def replay(trace: Trace) -> Iterator[ReplayState]:
    """Yield the state after each step (the same object, updated).

    Raises:
        TraceError: At the first step that contradicts those before it.
    """
    state = ReplayState(blocks=BlockState(trace.info.num_blocks))
    for step in trace.steps:
        _Step(trace, state, step).apply()
        yield state


def state_after(trace: Trace, index: int) -> ReplayState:
    """The state after step ``index`` (negative counts from the end).

    Raises:
        TraceError: There is no such step, or one up to it contradicts those before it.
    """
    last = index + len(trace) if index < 0 else index
    if not 0 <= last < len(trace):
        raise TraceError(f"step must be in [0, {len(trace) - 1}], got {index}")
    for state in replay(trace):
        if state.step == last:
            return state
    raise AssertionError("replay yields every step")


@dataclass
class _Step:
    """One step of a replay: what it says against the state before it."""

    trace: Trace
    state: ReplayState
    step: StepRecord

    def apply(self) -> None:
        """Check the step and move the state past it."""
        if self.step.index != self.state.step + 1:
            self._fail(f"expected index {self.state.step + 1}")
        self._check_ids()
        self._queues()
        self._admit_and_preempt()
        widest = self._blocks()
        for part in self.step.slices:
            self._check_slice(part, widest.get(part.seq_id, 0))
        for part in self.step.slices:
            self._count(part)
        self._check_forks()
        self._finish()
        self.state.step = self.step.index

    def _fail(self, message: str) -> NoReturn:
        raise TraceError(f"step {self.step.index}: {message}")

    def _check_ids(self) -> None:
        """Every id is known, and in one list at most once."""
        step = self.step
        lists = {
            "waiting and running": (*step.waiting, *step.running),
            "admitted": tuple(item.seq_id for item in step.admitted),
            "preempted": step.preempted,
            "slices": tuple(part.seq_id for part in step.slices),
            "finished": tuple(done.seq_id for done in step.finished),
        }
        for name, ids in lists.items():
            for seq_id in ids:
                if seq_id not in self.trace.sequences:
                    self._fail(f"{name} names unknown sequence {seq_id}")
            if len(set(ids)) != len(ids):
                self._fail(f"{name} names a sequence twice: {list(ids)}")

    def _queues(self) -> None:
        """The queues are what the step before left, plus arrivals, less aborts."""
        state, step = self.state, self.step
        aborted = {done.seq_id for done in step.finished if done.reason == "abort"}
        # An overlapped loop schedules before the last results are in: it may still list those.
        late = {
            seq_id
            for seq_id, at in state.finished_at.items()
            if step.index - at <= self.trace.info.lookahead
        }
        ended = set(state.finished_at)
        known = state.waiting | state.running | ended
        for name, now, before in (
            ("waiting", set(step.waiting), state.waiting - ended),
            ("running", set(step.running), state.running - ended),
        ):
            if lost := before - now - aborted:
                self._fail(f"{name} lost sequence {min(lost)}")
            extra = now - before - late
            if name == "waiting":
                extra &= known
            if extra:
                self._fail(f"{name} has sequence {min(extra)}, which was not {name} before")
        state.waiting, state.running = set(step.waiting), set(step.running)

    def _admit_and_preempt(self) -> None:
        state = self.state
        for seq_id in self.step.preempted:
            if seq_id not in state.running:
                self._fail(f"sequence {seq_id} is preempted but was not running")
            state.running.remove(seq_id)
            state.waiting.add(seq_id)
            state.num_computed[seq_id] = 0
        for item in self.step.admitted:
            if item.seq_id in self.step.preempted:
                self._fail(f"sequence {item.seq_id} is preempted and admitted")
            if item.seq_id not in state.waiting and item.forked_from is None:
                self._fail(f"sequence {item.seq_id} is admitted but was not waiting")
            state.waiting.discard(item.seq_id)
            state.running.add(item.seq_id)
            state.num_computed[item.seq_id] = item.num_cached_tokens

    def _blocks(self) -> dict[int, int]:
        """Apply the block events; returns the longest table each sequence had in the step."""
        blocks = self.state.blocks
        widest = {seq_id: len(table) for seq_id, table in blocks.tables.items()}
        for event in self.step.block_events:
            if event.seq_id is not None and event.seq_id not in self.trace.sequences:
                self._fail(f"{event.kind} names unknown sequence {event.seq_id}")
            try:
                blocks.apply(event)
            except BlockStateError as error:
                raise TraceError(f"step {self.step.index}: {error}") from error
            if event.seq_id is not None:
                length = len(blocks.tables.get(event.seq_id, ()))
                widest[event.seq_id] = max(widest.get(event.seq_id, 0), length)
        return widest

    def _check_slice(self, part: ScheduledSlice, table_length: int) -> None:
        state, info = self.state, self.trace.info
        name = f"sequence {part.seq_id}"
        request = self.trace.request_of(part.seq_id)
        if part.request_id != request.request_id:
            self._fail(f"{name} answers {request.request_id!r}, not {part.request_id!r}")
        if part.seq_id not in state.running:
            ended = state.finished_at.get(part.seq_id)
            self._fail(f"{name} computes but " + ("is not running" if ended is None else "ended"))
        forked = any(
            item.seq_id == part.seq_id and item.forked_from is not None
            for item in self.step.admitted
        )
        if part.num_tokens < (0 if forked else 1):
            self._fail(f"{name} computes {part.num_tokens} tokens")
        known = request.num_prompt_tokens + state.num_output.get(part.seq_id, 0)
        if part.num_known_tokens != known and part.seq_id not in state.finished_at:
            self._fail(f"{name} has {known} known tokens, the slice says {part.num_known_tokens}")
        start = state.num_computed.get(part.seq_id, 0) if info.kv_cache else 0
        if part.start != start:
            self._fail(f"{name} has {start} computed tokens, the slice starts at {part.start}")
        end = part.start + part.num_tokens
        if end > part.num_known_tokens:
            self._fail(f"{name} computes up to {end} of {part.num_known_tokens} known tokens")
        phase = phase_of(part.start, part.num_known_tokens, request.num_prompt_tokens)
        if part.phase != phase:
            self._fail(f"{name} is in {phase}, the slice says {part.phase}")
        if end < part.num_known_tokens and part.num_sampled:
            self._fail(f"{name} samples after a partial prefill")
        slots = table_length * (info.block_size or 0)
        # A sequence that ended while this step was in flight has given its blocks up already.
        if info.block_size and slots < end and part.seq_id not in state.finished_at:
            self._fail(f"{name} computes up to {end} tokens with {slots} slots")

    def _count(self, part: ScheduledSlice) -> None:
        """Move both counters of the slice's sequence."""
        state = self.state
        if len(part.token_ids) > part.num_sampled:
            self._fail(
                f"sequence {part.seq_id} got {len(part.token_ids)} ids for {part.num_sampled} rows"
            )
        if part.num_sampled and not part.token_ids and not self._was_dropped(part.seq_id):
            self._fail(f"sequence {part.seq_id} was sampled but got no id")
        state.num_computed[part.seq_id] = part.start + part.num_tokens
        state.num_output[part.seq_id] = state.num_output.get(part.seq_id, 0) + len(part.token_ids)
        limit = self.trace.request_of(part.seq_id).max_tokens
        if state.num_output[part.seq_id] > limit:
            self._fail(
                f"sequence {part.seq_id} has {state.num_output[part.seq_id]} of {limit} tokens"
            )

    def _was_dropped(self, seq_id: int) -> bool:
        """Whether an overlapped loop had a reason to drop what it sampled for ``seq_id``."""
        lookahead, index = self.trace.info.lookahead, self.step.index
        if not lookahead:
            return False
        if seq_id in self.state.finished_at:
            return True
        following = self.trace.steps[index : index + lookahead + 1]
        for step in following:
            if seq_id in step.preempted or any(done.seq_id == seq_id for done in step.finished):
                return True
        return len(following) <= lookahead  # the step that says why is not recorded yet

    def _check_forks(self) -> None:
        computed = self.state.num_computed
        for item in self.step.admitted:
            if item.forked_from is None:
                continue
            has = computed.get(item.forked_from, 0)
            if item.num_cached_tokens > has:
                self._fail(
                    f"sequence {item.seq_id} starts with {item.num_cached_tokens} tokens of "
                    f"sequence {item.forked_from}, which has {has}"
                )

    def _finish(self) -> None:
        state, tables = self.state, self.state.blocks.tables
        for done in self.step.finished:
            if done.seq_id in state.finished_at:
                self._fail(f"sequence {done.seq_id} finishes twice")
            state.finished_at[done.seq_id] = self.step.index
            state.waiting.discard(done.seq_id)
            state.running.discard(done.seq_id)
        for seq_id in self.step.preempted:
            if seq_id in tables:
                self._fail(f"preempted sequence {seq_id} still owns blocks {tables[seq_id]}")
        for seq_id, table in tables.items():
            at = state.finished_at.get(seq_id)
            if at is not None and self.step.index - at >= self.trace.info.lookahead:
                self._fail(f"finished sequence {seq_id} still owns blocks {table}")
