"""What prefix caching did, in exact counts.

A sequence *queries* when it gets its first blocks, for all the tokens it then has; what it is
spared are *hits*. An attempt that finds no room counts nothing, so a request that waits a
thousand steps has still queried once. A sequence that comes back after a preemption is counted
apart, as in vLLM 0.33.0 (``v1/metrics/stats.py``, ``PrefixCacheStats``): it mostly hits its own
blocks, and would flatter the rate.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class PrefixCounts:
    """Counts of one sequence, or of all.

    Attributes:
        num_queries: Sequences that got their first blocks.
        queried_tokens: Tokens they had then.
        hit_tokens: Those whose K and V were found.
        num_resumed: Sequences that got blocks again after a preemption.
        resumed_queried_tokens: Tokens they had then.
        resumed_hit_tokens: Those whose K and V were found.
        evicted_blocks: Blocks that lost their content: to this sequence, or to anybody.
    """

    num_queries: int = 0
    queried_tokens: int = 0
    hit_tokens: int = 0
    num_resumed: int = 0
    resumed_queried_tokens: int = 0
    resumed_hit_tokens: int = 0
    evicted_blocks: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of the queried tokens that were hits, resumed sequences left out; 0 before any."""
        return self.hit_tokens / self.queried_tokens if self.queried_tokens else 0.0

    def add_query(self, queried: int, hit: int, *, resumed: bool) -> None:
        """Count one admission.

        Args:
            queried: Tokens the sequence has.
            hit: Leading ones that need no computing.
            resumed: Whether it had blocks before.
        """
        if resumed:
            self.num_resumed += 1
            self.resumed_queried_tokens += queried
            self.resumed_hit_tokens += hit
        else:
            self.num_queries += 1
            self.queried_tokens += queried
            self.hit_tokens += hit
