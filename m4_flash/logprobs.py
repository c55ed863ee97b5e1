"""Logprobs of one step: computed on the device, copied while the host goes on, read later."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from common.outputs import Logprob


@dataclass(frozen=True)
class PendingLogprobs:
    """Numbers of the rows that asked, in pinned memory, possibly still on their way there.

    Attributes:
        wanted: Per asking row, its ``seq_id`` and how many of the likeliest ids it wants.
        values: ``[rows, 1 + top]`` float32: the sampled id's logprob, then the largest ones.
        top_ids: ``[rows, top]`` int64, whose the largest ones are.
        ranks: ``[rows]`` int64, the sampled id's rank, from 1.
        token_text: Text of one id, or None.
    """

    wanted: tuple[tuple[int, int], ...]
    values: Tensor
    top_ids: Tensor
    ranks: Tensor
    token_text: Callable[[int], str] | None = None

    def to_host(self, token_ids: Mapping[int, int]) -> dict[int, dict[int, Logprob]]:
        """Candidates of each sequence by token id, the sampled one first.

        Args:
            token_ids: The sampled id by ``seq_id``. Their copy to the host was started behind this
                one's, so whoever has them need not wait again.
        """
        result: dict[int, dict[int, Logprob]] = {}
        numbers = (self.values.tolist(), self.top_ids.tolist(), self.ranks.tolist())
        for (seq_id, count), values, top, rank in zip(self.wanted, *numbers, strict=True):
            token = token_ids[seq_id]
            entries = {token: self._entry(token, values[0], rank)}
            best = zip(top[:count], values[1 : 1 + count], strict=True)
            for place, (candidate, value) in enumerate(best, start=1):
                entries.setdefault(candidate, self._entry(candidate, value, place))
            result[seq_id] = entries
        return result

    def _entry(self, token: int, value: float, rank: int) -> Logprob:
        return Logprob(value, rank, self.token_text(token) if self.token_text else None)


def copy_logprobs(
    logits: Tensor,
    token_ids: Tensor,
    wanted: Seq[tuple[int, int]],
    token_text: Callable[[int], str] | None,
) -> PendingLogprobs:
    """Compute logprobs and start their copy to the host, without waiting for either.

    Args:
        logits: ``[rows, vocab_size]``, the raw logits of the rows that ask, any float dtype.
        token_ids: ``[rows]`` int64, the sampled ids.
        wanted: Per row, its ``seq_id`` and how many of the likeliest ids it wants.
        token_text: Text of one id, or None.
    """
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    sampled = logprobs.gather(1, token_ids[:, None])
    ranks = (logprobs > sampled).sum(dim=-1) + 1
    top = logprobs.topk(min(max(count for _, count in wanted), logits.shape[-1]))
    values = torch.cat((sampled, top.values), dim=1)
    # To the CPU without blocking means to pinned memory.
    parts = (values, top.indices, ranks)
    values, top_ids, ranks = (part.to("cpu", non_blocking=True) for part in parts)
    return PendingLogprobs(tuple(wanted), values, top_ids, ranks, token_text)
