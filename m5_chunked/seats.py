"""Who may run at the same time: seats, and the parallel samples that have theirs reserved."""

from __future__ import annotations

from collections.abc import Iterable

from common.request import Sequence


class Seats:
    """Counts seats, and keeps the samples that will be forked from the one that runs first.

    Attributes:
        total: Sequences that may run at the same time: ``max_num_seqs``, but never more than the
            budget has tokens, so that each decode gets one in every step. (vLLM refuses a budget
            below ``max_num_seqs`` instead.)
    """

    def __init__(self, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        """All seats are free; both limits are at least 1."""
        self.total = min(max_num_seqs, max_num_batched_tokens)
        self._samples: dict[int, list[Sequence]] = {}  # by the seq_id of their parent

    def enter(self, sequences: list[Sequence]) -> list[Sequence]:
        """Take the samples of a new request; returns those that queue by themselves.

        The first does, and the others wait to be forked from it. But a prompt of one token has
        nothing to share, and samples beyond the seats could not run together with the first.
        """
        first, *others = sequences
        count = self.total - 1 if first.num_prompt_tokens > 1 else 0
        if others[:count]:
            self._samples[first.seq_id] = others[:count]
        return [first, *others[count:]]

    @property
    def has_parents(self) -> bool:
        """Whether samples wait to be forked from anybody."""
        return bool(self._samples)

    def is_parent(self, sequence: Sequence) -> bool:
        """Whether samples wait to be forked from it."""
        return sequence.seq_id in self._samples

    def samples_of(self, parent: Sequence) -> list[Sequence]:
        """Hand over the samples that wait for ``parent``, if any do; they wait no more."""
        return self._samples.pop(parent.seq_id, [])

    def needed_by(self, sequence: Sequence) -> int:
        """Its own, and those reserved for its samples while it runs."""
        return 1 + len(self._samples.get(sequence.seq_id, ()))

    def left(self, running: Iterable[Sequence]) -> int:
        """Seats that neither a running sequence has nor one of its samples will need."""
        return self.total - sum(map(self.needed_by, running))
