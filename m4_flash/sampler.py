"""The GPU's sampler: one pass for most rows, filters only for the rows that ask for them.

M1's sampler builds a distribution for every row and sorts all of them if one asks for top-p. Here
a step is split::

    every row       draw            greedy or temperature: one pass over the logits, in the graph
    some rows       draw_filtered   penalties, min_p, top-k, top-p, min_tokens: overwrites their ids
    some rows       logprobs        of the raw logits, read by the host later

Nothing waits for the device: what the host knows travels through pinned memory, token counts are
taken from the ids that the device has, and no shape depends on a value. Meaning and order are
those of ``m1_basic.sampler``; the noise is another one (``kernels.noise``), so that a seeded
request draws the same ids in any batch, after a preemption and in a padded graph.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from common.request import SamplingParams
from m1_basic.sampler import NEVER, apply_min_p, apply_top_k_top_p
from m4_flash.logprobs import PendingLogprobs, copy_logprobs

MAX_FILTERED_ROWS = 64  # at once: sorting one row of 151,936 takes about 3 MB


@dataclass(frozen=True)
class SamplingRows:
    """What sampling needs of each running sequence, on the device, by device row.

    Attributes:
        token_ids: ``[rows, max_model_len or more]`` int32, the ids known so far, prompt and output;
            what stands behind them is never read.
        prompt_lens: ``[num_rows]`` int32.
        temperature: ``[num_rows]`` float32; 0 is greedy.
        seeds: ``[num_rows]`` int64, :func:`common.seeds.sequence_seed`.
    """

    token_ids: Tensor
    prompt_lens: Tensor
    temperature: Tensor
    seeds: Tensor

    def __post_init__(self) -> None:
        """Every row has all parameters; ids may have spare rows."""
        num_rows = len(self.seeds)
        assert self.prompt_lens.shape == self.temperature.shape == self.seeds.shape == (num_rows,)
        assert self.token_ids.dim() == 2, self.token_ids.shape
        assert len(self.token_ids) >= num_rows, (self.token_ids.shape, num_rows)
        dtypes = (self.prompt_lens.dtype, self.temperature.dtype, self.seeds.dtype)
        assert dtypes == (torch.int32, torch.float32, torch.int64), dtypes


@dataclass(frozen=True)
class FilteredRow:
    """A row of the batch that wants more than the fast path, as the host knows it.

    Attributes:
        index: Its place in the batch's logits.
        row: Its device row in :class:`SamplingRows`.
        seq_id: Its sequence.
        params: The request's parameters.
        num_tokens: Known ids, those in flight included: the device has them all.
        num_prompt_tokens: How many of them came with the request.
    """

    index: int
    row: int
    seq_id: int
    params: SamplingParams
    num_tokens: int
    num_prompt_tokens: int

    @property
    def num_output_tokens(self) -> int:
        """Ids generated so far, which is also the output index of the next one."""
        return self.num_tokens - self.num_prompt_tokens


class DeviceSampler:
    """Draws the ids of one step on the device; it keeps no state per sequence."""

    def __init__(
        self,
        rows: SamplingRows,
        eos_token_ids: tuple[int, ...],
        token_text: Callable[[int], str] | None = None,
    ) -> None:
        """Keep the rows.

        Args:
            rows: The persistent rows; only read.
            eos_token_ids: Ids that ``min_tokens`` holds back.
            token_text: Text of one id, for logprobs; None leaves it out.
        """
        self.rows, self.eos_token_ids, self.token_text = rows, eos_token_ids, token_text
        self.device = rows.seeds.device

    def draw(self, logits: Tensor, row_index: Tensor, seq_lens: Tensor, out: Tensor) -> None:
        """Greedy or temperature sampling for every row; can be captured in a graph.

        Args:
            logits: ``[num_seqs, vocab_size]``, any float dtype.
            row_index: ``[num_seqs]`` int, each one's device row.
            seq_lens: ``[num_seqs]`` int32, known ids, the step's included; 0 for padding, which
                gets some valid id.
            out: ``[num_seqs]`` int64, written.
        """
        from m4_flash.kernels.sample import sample

        rows = self.rows
        sample(logits, row_index, seq_lens, rows.prompt_lens, rows.temperature, rows.seeds, out)

    def needs_filtering(self, pick: FilteredRow) -> bool:
        """Whether the fast path is not enough for a row; ``min_tokens`` counts until reached."""
        params = pick.params
        if pick.num_output_tokens < params.min_tokens or _has_penalty(params):
            return True
        return not params.is_greedy and (_is_sorted(params) or params.min_p > 0)

    def draw_filtered(self, logits: Tensor, picks: Seq[FilteredRow], out: Tensor) -> None:
        """Sample the rows that ask for filters again, and overwrite their ids.

        Args:
            logits: ``[num_seqs, vocab_size]``, the raw logits of the whole batch; not modified.
            picks: The rows that ask.
            out: ``[num_seqs]`` int64, as :meth:`draw` left it.
        """
        for start in range(0, len(picks), MAX_FILTERED_ROWS):
            self._draw_some(logits, picks[start : start + MAX_FILTERED_ROWS], out)

    def logprobs(
        self, logits: Tensor, token_ids: Tensor, picks: Seq[FilteredRow]
    ) -> PendingLogprobs | None:
        """Logprobs of the rows that ask, under the raw logits.

        Args:
            logits: ``[num_seqs, vocab_size]``, the raw logits of the whole batch.
            token_ids: ``[num_seqs]`` int64, the sampled ids.
            picks: Any rows; those whose ``params.logprobs`` is None are left out.

        Returns:
            Numbers on their way to the host, or None if no row asks.
        """
        asking = [(p, p.params.logprobs) for p in picks if p.params.logprobs is not None]
        if not asking:
            return None
        (index,) = self._integers([pick.index for pick, _ in asking])
        wanted = [(pick.seq_id, count) for pick, count in asking]
        return copy_logprobs(logits[index], token_ids[index], wanted, self.token_text)

    def _draw_some(self, logits: Tensor, picks: Seq[FilteredRow], out: Tensor) -> None:
        index, row, num_tokens = self._integers(
            [p.index for p in picks], [p.row for p in picks], [p.num_tokens for p in picks]
        )
        scores = logits[index].float()
        self._hold_back_stops(scores, picks)
        self._penalise(scores, picks)
        self._filter(scores, picks)
        ids = torch.empty_like(index)
        self.draw(scores, row, num_tokens.int(), ids)
        out[index] = ids

    def _hold_back_stops(self, scores: Tensor, picks: Seq[FilteredRow]) -> None:
        """Rows that have not reached ``min_tokens`` cannot draw EOS or a stop id."""
        rows, columns = list[int](), list[int]()
        for i, pick in enumerate(picks):
            params = pick.params
            if pick.num_output_tokens < params.min_tokens:
                eos = () if params.ignore_eos else self.eos_token_ids
                # An id behind the vocabulary cannot be drawn anyway.
                held = [id_ for id_ in {*eos, *params.stop_token_ids} if id_ < scores.shape[-1]]
                rows += [i] * len(held)
                columns += held
        if rows:
            row, column = self._integers(rows, columns)
            scores.index_put_((row, column), torch.full((), NEVER, device=scores.device))

    def _penalise(self, scores: Tensor, picks: Seq[FilteredRow]) -> None:
        """Penalties, counted from the device's own ids; see ``m1_basic.sampler``."""
        asking = [(i, pick) for i, pick in enumerate(picks) if _has_penalty(pick.params)]
        if not asking:
            return
        chosen = [pick for _, pick in asking]
        index, row, num_tokens, num_prompt = self._integers(
            [i for i, _ in asking],
            [p.row for p in chosen],
            [p.num_tokens for p in chosen],
            [p.num_prompt_tokens for p in chosen],
        )
        params = [p.params for p in chosen]
        repetition, frequency, presence = self._floats(
            [p.repetition_penalty for p in params],
            [p.frequency_penalty for p in params],
            [p.presence_penalty for p in params],
        )[..., None]
        known = self.rows.token_ids[:, : max(p.num_tokens for p in chosen)].index_select(0, row)
        position = torch.arange(known.shape[1], device=known.device)
        is_known = position < num_tokens[:, None]
        is_output = is_known & (position >= num_prompt[:, None])
        ids = known.masked_fill(~is_known, 0).long()
        values = scores[index]
        seen = torch.zeros_like(values).scatter_add_(1, ids, is_known.float()) > 0
        counts = torch.zeros_like(values).scatter_add_(1, ids, is_output.float())
        repeated = torch.where(values > 0, values / repetition, values * repetition)
        values = torch.where(seen, repeated, values)
        values -= frequency * counts
        values -= presence * (counts > 0)
        scores[index] = values

    def _filter(self, scores: Tensor, picks: Seq[FilteredRow]) -> None:
        """Set to −inf what min_p, top-k and top-p remove; what stays is left as it is.

        Filters judge ``scores / temperature``, but the draw divides by itself, so a filter that
        removes nothing changes no bit of the draw.
        """
        vocab = scores.shape[-1]
        drawn = [(i, p.params) for i, p in enumerate(picks) if not p.params.is_greedy]
        narrowed = [(i, params) for i, params in drawn if params.min_p > 0]
        if narrowed:
            (index,) = self._integers([i for i, _ in narrowed])
            temperature, min_p = self._floats(
                [p.temperature for _, p in narrowed], [p.min_p for _, p in narrowed]
            )
            kept = apply_min_p(scores[index] / temperature[:, None], min_p)
            scores[index] = scores[index].masked_fill_(kept == NEVER, NEVER)
        ordered = [(i, params) for i, params in drawn if _is_sorted(params)]
        if ordered:
            top_k = [min(p.top_k, vocab) if p.top_k > 0 else vocab for _, p in ordered]
            index, k = self._integers([i for i, _ in ordered], top_k)
            temperature, rest = self._floats(
                [p.temperature for _, p in ordered], [1.0 - p.top_p for _, p in ordered]
            )
            kept = apply_top_k_top_p(scores[index] / temperature[:, None], k, rest)
            scores[index] = scores[index].masked_fill_(kept == NEVER, NEVER)

    def _integers(self, *columns: Seq[int]) -> Tensor:
        """``[columns, n]`` int64 on the device."""
        return self._send(columns, torch.int64)

    def _floats(self, *columns: Seq[float]) -> Tensor:
        """``[columns, n]`` float32 on the device."""
        return self._send(columns, torch.float32)

    def _send(self, columns: Seq[Seq[float]], dtype: torch.dtype) -> Tensor:
        """One copy that nobody waits for.

        PyTorch's pinned allocator hands a block out again only when the copy from it is done, so
        any number of copies may be under way behind a running step.
        """
        pinned = self.device.type == "cuda"
        return torch.tensor(columns, dtype=dtype, pin_memory=pinned).to(
            self.device, non_blocking=True
        )


def asks_for_more(params: SamplingParams) -> bool:
    """Whether a row may ever need filters or logprobs; the others are done after the pass."""
    return (
        params.logprobs is not None
        or params.min_tokens > 0
        or params.min_p > 0
        or _is_sorted(params)
        or _has_penalty(params)
    )


def _has_penalty(params: SamplingParams) -> bool:
    has_repetition = params.repetition_penalty != 1.0
    return has_repetition or bool(params.frequency_penalty or params.presence_penalty)


def _is_sorted(params: SamplingParams) -> bool:
    return params.top_k > 0 or params.top_p < 1.0
