"""What an engine did, one record per step.

A trace is the project's lab notebook: figures are drawn from it and tests compare it. One schema
fits every stage: M1 has no blocks and runs one request at a time, M2 adds preemption, M3 block
events, M5 partial prefills and an overlapped loop, M6 prefix hits. Times are optional and never
part of the canonical form, so two runs that decided alike have equal traces.

    trace = Trace(TraceInfo(stage="m3_paged", block_size=16, num_blocks=64))
    trace.add_sequence(seq)
    trace.record(running=(0,), slices=(ScheduledSlice.of(seq, ...),))
    trace.validate()
    trace.write("trace.json")
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import FoloError
from common.records import RecordError, dump, from_plain, load, non_default, to_plain, without_paths
from common.request import Sequence
from common.step_record import Admission, BlockEvent, Finish, ScheduledSlice, StepRecord

SCHEMA = "folovllm.trace"
VERSION = 1


class TraceError(FoloError, ValueError):
    """A trace file that cannot be read, or a trace that contradicts itself."""


@dataclass(frozen=True)
class TraceInfo:
    """What holds for the whole trace.

    Attributes:
        stage: Folder name of the stage that made it.
        block_size: Tokens per KV block; None where KV is not divided.
        num_blocks: Blocks in the pool; None where KV is not divided.
        kv_cache: False for M1 without its cache: every step computes from position 0 again.
        lookahead: Steps that may be scheduled before an earlier step's ids are known: 0 for the
            plain loop, 1 for the overlapped one.
        config: Engine options worth showing, JSON scalars only.
    """

    stage: str
    block_size: int | None = None
    num_blocks: int | None = None
    kv_cache: bool = True
    lookahead: int = 0
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RequestInfo:
    """A request as the trace knows it.

    Attributes:
        request_id: Its name.
        num_prompt_tokens: Length of the prompt.
        max_tokens: Output tokens at most, per completion.
        sampling: The other sampling parameters that differ from their defaults.
        priority: Smaller is served first under the priority policy.
    """

    request_id: str
    num_prompt_tokens: int
    max_tokens: int
    sampling: dict[str, Any] = field(default_factory=dict)
    priority: int = 0


@dataclass(frozen=True)
class SequenceInfo:
    """A sequence as the trace knows it.

    Attributes:
        seq_id: Its number.
        request_id: The request it answers.
        index: Which of the request's completions it is.
    """

    seq_id: int
    request_id: str
    index: int = 0


class Trace:
    """The steps of one engine, with the requests they served.

    Attributes:
        info: What holds for the whole trace. Absolute paths in its config are cut to their names.
        requests: Requests by id, in order of arrival.
        sequences: Sequences by id, in order of arrival.
        steps: One record per step.
    """

    def __init__(self, info: TraceInfo) -> None:
        self.info = dataclasses.replace(info, config=without_paths(to_plain(info.config)))
        self.requests: dict[str, RequestInfo] = {}
        self.sequences: dict[int, SequenceInfo] = {}
        self.steps: list[StepRecord] = []

    def add_sequence(self, seq: Sequence) -> None:
        """Register ``seq`` and its request. Must precede the first step that names it."""
        request = seq.request
        sampling = non_default(request.sampling_params)
        sampling.pop("max_tokens", None)
        self.requests[request.request_id] = RequestInfo(
            request.request_id,
            len(request.prompt_token_ids),
            request.sampling_params.max_tokens,
            sampling,
            request.priority,
        )
        self.sequences[seq.seq_id] = SequenceInfo(seq.seq_id, request.request_id, seq.index)

    def record(
        self,
        *,
        waiting: tuple[int, ...] = (),
        running: tuple[int, ...] = (),
        admitted: tuple[Admission, ...] = (),
        preempted: tuple[int, ...] = (),
        slices: tuple[ScheduledSlice, ...] = (),
        finished: tuple[Finish, ...] = (),
        block_events: tuple[BlockEvent, ...] = (),
        num_padding_tokens: int = 0,
        elapsed_ms: float | None = None,
    ) -> StepRecord:
        """Append one step; its index is the number of steps before it.

        The arguments are the fields of :class:`~common.step_record.StepRecord`. An overlapped
        loop calls this when the step's ids have arrived, in the order of the steps.
        """
        step = StepRecord(
            index=len(self.steps),
            waiting=tuple(waiting),
            running=tuple(running),
            admitted=tuple(admitted),
            preempted=tuple(preempted),
            slices=tuple(slices),
            finished=tuple(finished),
            block_events=tuple(block_events),
            num_padding_tokens=num_padding_tokens,
            elapsed_ms=elapsed_ms,
        )
        self.steps.append(step)
        return step

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> StepRecord:
        return self.steps[index]

    def __iter__(self) -> Iterator[StepRecord]:
        return iter(self.steps)

    def __eq__(self, other: object) -> bool:
        """Equal decisions; wall times do not count."""
        if not isinstance(other, Trace):
            return NotImplemented
        return self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]  # a trace grows

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical form, in hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def request_of(self, seq_id: int) -> RequestInfo:
        """The request that sequence ``seq_id`` answers.

        Raises:
            TraceError: The trace does not know the sequence.
        """
        if seq_id not in self.sequences:
            raise TraceError(f"the trace has no sequence {seq_id}")
        return self.requests[self.sequences[seq_id].request_id]

    def output_token_ids(self, seq_id: int) -> tuple[int, ...]:
        """All ids sampled for ``seq_id``, in order."""
        return tuple(token for step in self.steps for token in step.sampled.get(seq_id, ()))

    def to_json(self, timings: bool = False) -> str:
        """The trace as JSON text, one step a line.

        Args:
            timings: Add wall times. Without them equal decisions give equal text.
        """
        steps = []
        for step in self.steps:
            plain = to_plain(step)
            if not timings:
                del plain["elapsed_ms"]
            steps.append(plain)
        return dump(
            {"schema": SCHEMA, "version": VERSION, "info": self.info},
            requests=self.requests.values(),
            sequences=self.sequences.values(),
            steps=steps,
        )

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """Read what :meth:`to_json` wrote, with or without times.

        Raises:
            TraceError: Not such a text; the message names the place.
        """
        try:
            data = load(text, SCHEMA, VERSION)
            parts = from_plain(_File, data, "trace")
        except RecordError as error:
            raise TraceError(str(error)) from error
        trace = cls(parts.info)
        trace.requests = {item.request_id: item for item in parts.requests}
        trace.sequences = {item.seq_id: item for item in parts.sequences}
        trace.steps = list(parts.steps)
        for item in parts.sequences:
            if item.request_id not in trace.requests:
                raise TraceError(f"sequence {item.seq_id} names no request: {item.request_id!r}")
        return trace

    def write(self, path: str | Path, timings: bool = False) -> Path:
        """Write :meth:`to_json` to ``path``, making its folder."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.to_json(timings), encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: str | Path) -> Trace:
        """Read a file that :meth:`write` made.

        Raises:
            TraceError: The file is missing, unreadable or no trace.
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise TraceError(f"cannot read trace {path}: {error}") from error
        except TraceError as error:
            raise TraceError(f"{path}: {error}") from error

    def validate(self) -> None:
        """Replay the steps and check that nothing appears, vanishes or runs twice.

        Raises:
            TraceError: The first contradiction, with its step and sequence or block.
        """
        from common.trace_replay import replay  # it imports this module

        for _ in replay(self):
            pass


@dataclass(frozen=True)
class _File:
    """The keys of a trace file after ``schema`` and ``version``."""

    info: TraceInfo
    requests: tuple[RequestInfo, ...]
    sequences: tuple[SequenceInfo, ...]
    steps: tuple[StepRecord, ...]
