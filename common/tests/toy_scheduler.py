"""A paged scheduler without a model, which records traces of every kind for the tests.

FCFS with a token budget, chunked prefill, preemption by recomputation and an LRU prefix index
over whole blocks. Sampled ids are a function of (sequence, position), so a trace depends on the
arguments alone. It shares no code with the trace's replay.
"""

from collections.abc import Sequence as Many
from dataclasses import dataclass, field

from common.request import Request, SamplingParams, Sequence
from common.step_record import Admission, BlockEvent, Finish, ScheduledSlice
from common.trace import Trace, TraceInfo


@dataclass
class Job:
    """A request: prompts of one group share their tokens."""

    prompt_len: int
    output_len: int
    group: int = 0
    arrival_step: int = 0


@dataclass
class Toy:
    """One run: ``Toy(jobs, …).run()`` returns the trace."""

    jobs: Many[Job]
    num_blocks: int = 8
    block_size: int = 4
    budget: int = 16
    prefix_caching: bool = False
    trace: Trace = field(init=False)

    def __post_init__(self) -> None:
        info = TraceInfo("m6_prefix", self.block_size, self.num_blocks)
        info.config["max_num_batched_tokens"] = self.budget
        self.trace = Trace(info)
        self.free = list(range(self.num_blocks))  # least recently freed first
        self.tables: dict[int, list[int]] = {}
        self.refs: dict[int, int] = {}
        self.index: dict[tuple[int, ...], int] = {}
        self.key_of: dict[int, tuple[int, ...]] = {}
        self.events: list[BlockEvent] = []
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []

    def run(self) -> Trace:
        arrivals = sorted(enumerate(self.jobs), key=lambda item: item[1].arrival_step)
        while arrivals or self.waiting or self.running:
            while arrivals and arrivals[0][1].arrival_step <= len(self.trace):
                self.arrive(*arrivals.pop(0))
            self.step()
        return self.trace

    def arrive(self, seq_id: int, job: Job) -> None:
        prompt = tuple(100 * job.group + i for i in range(job.prompt_len))
        params = SamplingParams(temperature=0.0, max_tokens=job.output_len)
        seq = Sequence(seq_id, Request(f"r{seq_id}", prompt, params))
        self.trace.add_sequence(seq)
        self.waiting.append(seq)

    def step(self) -> None:
        waiting = tuple(seq.seq_id for seq in self.waiting)
        running = tuple(seq.seq_id for seq in self.running)
        plan: list[tuple[Sequence, int]] = []
        preempted: list[Sequence] = []
        admitted: list[Admission] = []
        budget = self.budget
        for seq in list(self.running):
            if seq not in self.running:  # it was the victim of an earlier one
                continue
            count = min(budget, seq.num_tokens - seq.num_computed_tokens)
            while not self.grow(seq, count):
                victim = self.running.pop()
                self.preempt(victim)
                preempted.append(victim)
                if victim is seq:
                    break
            if seq in self.running and count:
                plan.append((seq, count))
                budget -= count
        while self.waiting and budget and not preempted:
            seq = self.waiting[0]
            hit = self.match(seq)
            count = min(budget, seq.num_tokens - seq.num_computed_tokens)
            if not self.grow(seq, count):
                self.release(seq)
                break
            admitted.append(Admission(self.waiting.pop(0).seq_id, hit))
            self.running.append(seq)
            plan.append((seq, count))
            budget -= count
        slices, finished = [], []
        for seq, count in plan:
            part, end = self.compute(seq, count)
            slices.append(part)
            finished += end
        self.trace.record(
            waiting=waiting,
            running=running,
            admitted=tuple(admitted),
            preempted=tuple(seq.seq_id for seq in preempted),
            slices=tuple(slices),
            finished=tuple(finished),
            block_events=tuple(self.events),
            elapsed_ms=1.0 + len(slices),
        )
        self.events = []

    def compute(self, seq: Sequence, count: int) -> tuple[ScheduledSlice, list[Finish]]:
        start, known = seq.num_computed_tokens, seq.num_tokens
        seq.num_computed_tokens += count
        self.remember(seq)
        ids = ((seq.seq_id * 31 + known) % 97,) if start + count == known else ()
        part = ScheduledSlice.of(
            seq, start=start, num_tokens=count, num_known_tokens=known, token_ids=ids
        )
        for token in ids:
            seq.append(token, 0.0)
        if ids and seq.num_output_tokens == seq.sampling_params.max_tokens:
            self.running.remove(seq)
            self.release(seq)
            return part, [Finish(seq.seq_id, "length")]
        return part, []

    def grow(self, seq: Sequence, count: int) -> bool:
        table = self.tables.setdefault(seq.seq_id, [])
        need = -(-(seq.num_computed_tokens + count) // self.block_size) - len(table)
        if need > len(self.free):
            return False
        for _ in range(need):
            block = self.free.pop(0)
            if block in self.key_of:
                del self.index[self.key_of.pop(block)]
                self.events.append(BlockEvent("evict", block))
            self.refs[block] = 1
            table.append(block)
            self.events.append(BlockEvent("alloc", block, seq.seq_id))
        return True

    def match(self, seq: Sequence) -> int:
        for end in range(self.block_size, seq.num_tokens, self.block_size):
            block = self.index.get(tuple(seq.token_ids[:end])) if self.prefix_caching else None
            if block is None:
                break
            if block in self.free:
                self.free.remove(block)
            self.refs[block] = self.refs.get(block, 0) + 1
            self.tables.setdefault(seq.seq_id, []).append(block)
            self.events.append(BlockEvent("hit", block, seq.seq_id))
            seq.num_computed_tokens = end
        return seq.num_computed_tokens

    def remember(self, seq: Sequence) -> None:
        if not self.prefix_caching:
            return
        for number, block in enumerate(self.tables[seq.seq_id]):
            end = (number + 1) * self.block_size
            key = tuple(seq.token_ids[:end])
            if end <= seq.num_computed_tokens and key not in self.index:
                self.index[key] = block
                self.key_of[block] = key
                self.events.append(BlockEvent("cache", block, seq.seq_id))

    def preempt(self, seq: Sequence) -> None:
        self.release(seq)
        self.waiting.insert(0, seq)

    def release(self, seq: Sequence) -> None:
        seq.num_computed_tokens = 0
        for block in reversed(self.tables.pop(seq.seq_id, [])):
            self.events.append(BlockEvent("free", block, seq.seq_id))
            self.refs[block] -= 1
            if not self.refs[block]:
                self.free.append(block)
