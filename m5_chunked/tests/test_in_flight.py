"""Ids in flight, counted by hand."""

from __future__ import annotations

import sys

from common.request import Sequence
from m2_batching.plan import ScheduledSequence
from m2_batching.tests.helpers import make_sequence
from m5_chunked.in_flight import InFlight


def part(sequence: Sequence, start: int, count: int, *, samples: bool) -> ScheduledSequence:
    return ScheduledSequence(sequence, start, count, start + count, num_sampled=int(samples))


def fly(flying: InFlight, item: ScheduledSequence) -> None:
    """Launch a step as the scheduler does: its tokens count as computed from then on."""
    flying.launch([item])
    item.sequence.num_computed_tokens = item.end


def test_an_id_is_known_from_the_launch_on_and_counted_once() -> None:
    flying, a = InFlight(sys.maxsize), make_sequence(0, 4)
    assert flying.known(a) == 4
    step = [part(a, 0, 4, samples=True)]
    flying.launch(step)
    assert flying.known(a) == 5
    a.append(7, 0.0)
    flying.land(step)
    assert flying.known(a) == 5


def test_two_steps_may_be_on_their_way() -> None:
    flying, a = InFlight(sys.maxsize), make_sequence(0, 4)
    first, second = [part(a, 0, 4, samples=True)], [part(a, 4, 1, samples=True)]
    flying.launch(first)
    flying.launch(second)
    assert flying.known(a) == 6
    flying.land(first)
    assert flying.known(a) == 5
    flying.land(second)
    assert flying.known(a) == 4


def test_a_chunk_samples_nothing_and_counts_nothing() -> None:
    flying, a = InFlight(sys.maxsize), make_sequence(0, 8)
    chunk = [part(a, 0, 4, samples=False)]
    flying.launch(chunk)
    assert flying.known(a) == 8
    flying.land(chunk)
    assert flying.known(a) == 8


def test_the_end_by_max_tokens_is_foreseen() -> None:
    flying, a = InFlight(sys.maxsize), make_sequence(0, 4, max_tokens=2)
    assert flying.missing(a) == 4
    fly(flying, part(a, 0, 4, samples=True))
    assert flying.missing(a) == 1  # one of two is in flight, and a step may compute it
    fly(flying, part(a, 4, 1, samples=True))
    assert flying.missing(a) == 0  # the second one too: no step need compute it


def test_the_end_of_the_context_is_foreseen() -> None:
    flying, a = InFlight(5), make_sequence(0, 4, max_tokens=9)
    assert flying.missing(a) == 4
    fly(flying, part(a, 0, 4, samples=True))
    assert flying.missing(a) == 0


def test_what_is_known_of_a_full_length_is_still_to_be_computed() -> None:
    """A sequence that was preempted computes again; with nothing in flight it is as if new."""
    flying, a = InFlight(5), make_sequence(0, 5)
    assert flying.missing(a) == 5
