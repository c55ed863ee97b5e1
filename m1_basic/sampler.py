"""The reference sampler: logits to token ids, row by row parameters, one vectorised pass.

The order is vLLM's (``v1/sample/sampler.py`` at 0.33.0)::

    raw logprobs → min_tokens → penalties → argmax for greedy rows
                 → temperature → min_p → top-k → top-p → draw

Later stages reuse this sampler on the CPU; M4 adds one for the GPU with the same meaning.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from common.outputs import Logprob
from common.request import SamplingParams, Sequence
from common.seeds import sequence_seed

NEVER = float("-inf")


@dataclass(frozen=True)
class SamplerOutput:
    """One sampled id per row.

    Attributes:
        token_ids: The ids.
        logprobs: Per row, candidates by token id, or None where the request asked for none.
    """

    token_ids: list[int]
    logprobs: list[dict[int, Logprob] | None]


class Sampler:
    """Draws one token for each of a batch of sequences, each with its own parameters and seed."""

    def __init__(
        self,
        engine_seed: int,
        eos_token_ids: tuple[int, ...],
        token_text: Callable[[int], str] | None = None,
    ) -> None:
        """Start without generators; a sequence gets its own at its first draw.

        Args:
            engine_seed: Seed of requests that carry none.
            eos_token_ids: Ids that ``min_tokens`` holds back.
            token_text: Text of one id, for logprobs; None leaves it out.
        """
        self.engine_seed, self.eos_token_ids = engine_seed, eos_token_ids
        self.token_text = token_text
        self._generators: dict[int, torch.Generator] = {}

    def __call__(self, logits: Tensor, sequences: Seq[Sequence]) -> SamplerOutput:
        """Sample one token per row.

        Args:
            logits: ``[rows, vocab_size]``, any float dtype.
            sequences: The sequence of each row; only its ids and parameters are read.
        """
        raw = logits.float()
        scores = self._hold_back_stops(raw, sequences)
        scores = apply_penalties(scores, sequences)
        token_ids = scores.argmax(dim=-1)
        drawn = [i for i, s in enumerate(sequences) if not s.sampling_params.is_greedy]
        if drawn:
            rows = [sequences[i] for i in drawn]
            index = torch.tensor(drawn, device=logits.device)
            probabilities = sampling_distribution(scores[index], [s.sampling_params for s in rows])
            token_ids[index] = self._draw(probabilities, rows)
        ids: list[int] = token_ids.tolist()
        return SamplerOutput(ids, self._logprobs(raw, ids, sequences))

    def release(self, sequence: Sequence) -> None:
        """Forget a finished sequence's generator."""
        self._generators.pop(sequence.seq_id, None)

    def _draw(self, probabilities: Tensor, sequences: Seq[Sequence]) -> Tensor:
        """``argmax(p / Exp(1))`` per row: the exponential race.

        Of independent exponential clocks with rates p_i, clock i rings first with probability p_i,
        and ``Exp(1) / p_i`` has rate p_i. It needs no cumulative sum, no sort and no transfer to
        the host, and equals ``torch.multinomial(p, 1)`` draw for draw, which does the same.

        Args:
            probabilities: ``[rows, vocab_size]`` float32.
            sequences: Whose generator draws each row.

        Returns:
            ``[rows]`` int64.
        """
        noise = torch.empty_like(probabilities)
        for row, sequence in zip(noise, sequences, strict=True):
            row.exponential_(generator=self._generator(sequence, probabilities.device))
        return (probabilities / noise).argmax(dim=-1)

    def _generator(self, sequence: Sequence, device: torch.device) -> torch.Generator:
        generator = self._generators.get(sequence.seq_id)
        if generator is None:
            generator = torch.Generator(device)
            generator.manual_seed(sequence_seed(self.engine_seed, sequence))
            self._generators[sequence.seq_id] = generator
        return generator

    def _hold_back_stops(self, scores: Tensor, sequences: Seq[Sequence]) -> Tensor:
        """Rows that have not reached ``min_tokens`` cannot draw EOS or a stop id."""
        rows: list[int] = []
        columns: list[int] = []
        for row, sequence in enumerate(sequences):
            params = sequence.sampling_params
            if sequence.num_output_tokens < params.min_tokens:
                eos = () if params.ignore_eos else self.eos_token_ids
                held = {*eos, *params.stop_token_ids}
                rows += [row] * len(held)
                columns += held
        if not rows:
            return scores
        scores = scores.clone()
        scores[rows, columns] = NEVER
        return scores

    def _logprobs(
        self, raw: Tensor, token_ids: Seq[int], sequences: Seq[Sequence]
    ) -> list[dict[int, Logprob] | None]:
        """The sampled token and the top ones, under the raw logits, for rows that ask."""
        result: list[dict[int, Logprob] | None] = [None] * len(sequences)
        for row, (token, sequence) in enumerate(zip(token_ids, sequences, strict=True)):
            count = sequence.sampling_params.logprobs
            if count is None:
                continue
            values = torch.log_softmax(raw[row], dim=-1)
            rank = int((values > values[token]).sum()) + 1
            entries = {token: self._entry(token, float(values[token]), rank)}
            top = values.topk(min(count, values.numel()))
            best = zip(top.indices.tolist(), top.values.tolist(), strict=True)
            for place, (candidate, value) in enumerate(best, start=1):
                entries.setdefault(candidate, self._entry(candidate, value, place))
            result[row] = entries
        return result

    def _entry(self, token: int, value: float, rank: int) -> Logprob:
        return Logprob(value, rank, self.token_text(token) if self.token_text else None)


def apply_penalties(scores: Tensor, sequences: Seq[Sequence]) -> Tensor:
    """Repetition, frequency and presence penalties, for the rows that have any.

    Repetition (Keskar et al. 2019) divides a positive logit and multiplies a negative one, for
    tokens of prompt and output; frequency and presence are subtracted, for tokens of the output.

    Args:
        scores: ``[rows, vocab_size]`` float32; not modified.
        sequences: The sequence of each row.

    Returns:
        ``[rows, vocab_size]`` float32.
    """
    result = scores
    for row, sequence in enumerate(sequences):
        params = sequence.sampling_params
        repetition = params.repetition_penalty
        if repetition == 1.0 and not params.frequency_penalty and not params.presence_penalty:
            continue
        if result is scores:
            result = scores.clone()
        values = result[row]
        if repetition != 1.0:
            seen = torch.tensor(sorted(set(sequence.token_ids)), device=scores.device)
            old = values[seen]
            values[seen] = torch.where(old > 0, old / repetition, old * repetition)
        output = torch.tensor(sequence.output_token_ids, device=scores.device, dtype=torch.int64)
        counts = torch.bincount(output, minlength=values.numel())
        values -= params.frequency_penalty * counts
        values -= params.presence_penalty * (counts > 0)
    return result


def sampling_distribution(scores: Tensor, params: Seq[SamplingParams]) -> Tensor:
    """The filtered, renormalised distribution that each row is drawn from.

    Args:
        scores: ``[rows, vocab_size]`` float32 logits after penalties; every row has a temperature.
        params: The parameters of each row.

    Returns:
        ``[rows, vocab_size]`` float32, rows sum to one, zero where a filter removed the token.
    """
    device, vocab = scores.device, scores.shape[-1]
    temperature = torch.tensor([p.temperature for p in params], device=device)
    scores = scores / temperature.unsqueeze(-1)
    if any(p.min_p > 0 for p in params):
        scores = apply_min_p(scores, torch.tensor([p.min_p for p in params], device=device))
    filtered = [i for i, p in enumerate(params) if 0 < p.top_k < vocab or p.top_p < 1.0]
    if filtered:
        index = torch.tensor(filtered, device=device)
        ks = [params[i].top_k if params[i].top_k > 0 else vocab for i in filtered]
        top_k = torch.tensor(ks, device=device).clamp(max=vocab)
        # 1 − p in double precision, as a Python float: transformers compares with the same number.
        rest = torch.tensor([1.0 - params[i].top_p for i in filtered], device=device)
        scores[index] = apply_top_k_top_p(scores[index], top_k, rest)
    return torch.softmax(scores, dim=-1)


def apply_min_p(scores: Tensor, min_p: Tensor) -> Tensor:
    """Remove tokens less likely than ``min_p`` times the likeliest (Nguyen et al. 2024).

    Args:
        scores: ``[rows, vocab_size]``.
        min_p: ``[rows]`` in [0, 1].
    """
    probabilities = torch.softmax(scores, dim=-1)
    threshold = min_p.unsqueeze(-1) * probabilities.amax(dim=-1, keepdim=True)
    return scores.masked_fill(probabilities < threshold, NEVER)


def apply_top_k_top_p(scores: Tensor, top_k: Tensor, rest: Tensor) -> Tensor:
    """Keep the k largest, then of those the smallest set that reaches p (Holtzman et al. 2019).

    Both work on rows sorted upwards. Top-k removes what is smaller than the k-th largest, so ties
    with it survive. Top-p adds probabilities from the smallest upwards and removes those whose sum
    stays within ``1 − p``: the token that crosses p is kept, and the largest always is.

    Args:
        scores: ``[rows, vocab_size]``.
        top_k: ``[rows]`` int64 in [1, vocab_size].
        rest: ``[rows]``: ``1 − top_p``; 0 keeps every token of non-zero probability.

    Returns:
        ``[rows, vocab_size]`` with −inf for removed tokens.
    """
    ordered, places = scores.sort(dim=-1)
    kth = ordered.gather(-1, (ordered.shape[-1] - top_k).unsqueeze(-1))
    ordered = ordered.masked_fill(ordered < kth, NEVER)
    below = ordered.softmax(dim=-1).cumsum(dim=-1) <= rest.unsqueeze(-1)
    below[:, -1] = False
    return torch.empty_like(scores).scatter_(-1, places, ordered.masked_fill(below, NEVER))
