"""What the player asks before a marked step, and the answer, both computed from the trace.

``questions.js`` of the player computes the same in the reader's browser. ``make site-test``
compares the two for every mark of the catalogue, so neither can drift.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.plot_parts import sequence_name
from common.step_record import StepRecord
from common.trace import Trace
from common.trace_replay import ReplayState, replay
from tools.docs_build.errors import DocsError
from tools.scenarios.catalogue import Mark

NOBODY = "none"


@dataclass(frozen=True)
class Question:
    """A question about the step that comes next.

    Attributes:
        ask: The question.
        choices: What can be chosen; empty where a number is wanted.
        answer: One of the choices, or the number in digits.
        rule: The kind of event whose code decides it.
    """

    ask: str
    choices: tuple[str, ...]
    answer: str
    rule: str


def question(trace: Trace, mark: Mark) -> Question:
    """Compute question and answer of a mark.

    Raises:
        DocsError: There is no such step, the kind needs a sequence or has none there, or more than
            one choice is right.
    """
    if not 1 <= mark.step < len(trace):
        raise DocsError(f"a mark at step {mark.step} of {len(trace)}: nothing comes before it")
    step = trace[mark.step]
    match mark.kind:
        case "admitted":
            ask = "How many sequences begin to run in the next step?"
            return Question(ask, (), str(len(step.admitted)), "admit")
        case "step-tokens":
            ask = "How many tokens does the next step compute?"
            return Question(ask, (), str(step.num_tokens), "compute")
        case "copies":
            copies = sum(event.kind == "copy" for event in step.block_events)
            return Question("How many blocks does the next step copy?", (), str(copies), "copy")
        case "owned-blocks":
            owned = len(_state(trace, mark.step).blocks.owners)
            ask = "How many blocks have an owner after the next step?"
            return Question(ask, (), str(owned), "alloc")
        case "preempted":
            return _preempted(trace, step)
        case "evicted":
            return _evicted(trace, step, mark)
        case "tokens":
            return _tokens(trace, step, mark)
        case "hits":
            return _hits(trace, step, mark)


def _state(trace: Trace, step: int) -> ReplayState:
    """The state after a step; as a replay goes no further, it stays what it is."""
    return next(state for state in replay(trace) if state.step == step)


def _name(trace: Trace, mark: Mark) -> str:
    if mark.about not in trace.sequences:
        raise DocsError(f"a mark of kind {mark.kind!r} at step {mark.step} needs about = seq_id")
    return sequence_name(trace, mark.about)


def _tokens(trace: Trace, step: StepRecord, mark: Mark) -> Question:
    count = sum(part.num_tokens for part in step.slices if part.seq_id == mark.about)
    ask = f"How many tokens of request {_name(trace, mark)} does the next step compute?"
    return Question(ask, (), str(count), "compute")


def _hits(trace: Trace, step: StepRecord, mark: Mark) -> Question:
    name = _name(trace, mark)
    found = [item.num_cached_tokens for item in step.admitted if item.seq_id == mark.about]
    known = [part.num_known_tokens for part in step.slices if part.seq_id == mark.about]
    if not (found and known):
        raise DocsError(f"request {name} does not begin in step {mark.step}")
    ask = (
        f"Request {name} begins in the next step, with {known[0]} known tokens. "
        "How many of them are found in the cache?"
    )
    return Question(ask, (), str(found[0]), "hit")


def _preempted(trace: Trace, step: StepRecord) -> Question:
    choices = (*(sequence_name(trace, seq_id) for seq_id in step.running), NOBODY)
    if len(step.preempted) > 1:
        raise DocsError(f"step {step.index} preempts more than one sequence")
    gone = [sequence_name(trace, seq_id) for seq_id in step.preempted]
    return Question(
        "Which request is preempted in the next step?", choices, (*gone, NOBODY)[0], "preempt"
    )


def _evicted(trace: Trace, step: StepRecord, mark: Mark) -> Question:
    before = _state(trace, mark.step - 1).blocks
    free = sorted(before.cached - set(before.owners))
    gone = [event.block for event in step.block_events if event.kind == "evict"]
    if len(gone) > 1:
        raise DocsError(f"step {step.index} evicts more than one block")
    answer = str(gone[0]) if gone else NOBODY
    choices = (*map(str, free), NOBODY)
    return Question("Which block loses its content in the next step?", choices, answer, "evict")
