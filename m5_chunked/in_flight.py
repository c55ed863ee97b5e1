"""Ids that have been sampled, or will be by a step that is on its way, and are not known yet.

The plain loop waits for each step, so there are none when it plans. The overlapped loop plans
while one is in flight: a sequence that decodes then has one more id than ``num_tokens`` says::

    | computed … | being computed | in flight |
                 known when planned ↑          ↑ known when this step is planned

vLLM 0.33.0 calls them ``num_output_placeholders``, ``v1/core/sched/async_scheduler.py``.
"""

from __future__ import annotations

from collections.abc import Iterable

from common.request import Sequence
from m2_batching.plan import ScheduledSequence


class InFlight:
    """How many ids of each sequence are in flight."""

    def __init__(self, max_model_len: int) -> None:
        """None are.

        Args:
            max_model_len: No sequence gets longer.
        """
        self.max_model_len = max_model_len
        self._count: dict[int, int] = {}

    def known(self, sequence: Sequence) -> int:
        """Its ids, those in flight included: a step may compute them."""
        return len(sequence.token_ids) + self._count.get(sequence.seq_id, 0)

    def missing(self, sequence: Sequence) -> int:
        """Its ids that no step has computed, those in flight included.

        None of one that is certain to end when what is in flight has arrived, because it is then as
        long as it may be. An EOS or a stop string cannot be foreseen; then a step more is computed
        for nothing. (Asked for each sequence in each step, hence one function with few calls.)
        """
        count = self._count.get(sequence.seq_id, 0)
        known = len(sequence.token_ids) + count
        if count:
            longest = sequence.num_prompt_tokens + sequence.request.sampling_params.max_tokens
            if known >= longest or known >= self.max_model_len:
                return 0
        return known - sequence.num_computed_tokens

    def launch(self, items: Iterable[ScheduledSequence]) -> None:
        """A step was planned that samples for ``items``."""
        for item in items:
            if item.num_sampled:
                self._count[item.seq_id] = self._count.get(item.seq_id, 0) + item.num_sampled

    def land(self, items: Iterable[ScheduledSequence]) -> None:
        """The step has run, and its ids are known."""
        for item in items:
            if item.num_sampled:
                left = self._count[item.seq_id] - item.num_sampled
                if left:
                    self._count[item.seq_id] = left
                else:
                    del self._count[item.seq_id]
