"""Perplexity of a text under a model, by a sliding window.

``exp(−mean log p(token | tokens before it))``. A model sees at most ``window`` tokens at once. Cut
into separate windows, the first tokens of each would be predicted from nearly nothing; so windows
overlap, and each scores only the tokens that no earlier window has scored::

    tokens    0 1 2 3 4 5 6 7 8 9
    window 1 [· ✓ ✓ ✓ ✓ ✓]               window 6, stride 2: every token after the first window
    window 2     [· · · · ✓ ✓]           is predicted from at least window − stride others
    window 3         [· · · · ✓ ✓]

A smaller stride gives each token more context, costs ``window / stride`` forward passes per token,
and a lower number. Numbers compare only at equal window, stride and text. Token 0 is never scored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from common.errors import ConfigError
from common.model.transformer import Transformer
from m1_basic.attention import UncachedAttend

ROWS = 128
"""Rows of logits computed at a time: 128 × 49,152 float32 are 24 MiB."""


@dataclass(frozen=True)
class Perplexity:
    """What a text costs.

    Attributes:
        nll: Sum of ``−log p`` over the scored tokens, in nats.
        num_tokens: Tokens scored: all but the first.
    """

    nll: float
    num_tokens: int

    @property
    def value(self) -> float:
        """``exp(nll / num_tokens)``."""
        return math.exp(self.nll / self.num_tokens)


def perplexity(
    model: Transformer,
    token_ids: Sequence[int],
    *,
    window: int,
    stride: int,
    progress: bool = False,
) -> Perplexity:
    """Score a text.

    Args:
        model: In evaluation mode, any device.
        token_ids: The text, at least two tokens.
        window: Tokens that the model sees at once, at least 2.
        stride: Tokens by which the window moves on, at most ``window − 1``, so that every token
            has one before it.
        progress: Show a bar on stderr, where that is a terminal.

    Raises:
        ConfigError: A size is outside its range, or the text is too short.
    """
    most = model.cos_sin.shape[0]
    if not 2 <= window <= most:
        raise ConfigError(f"window must be in [2, {most}], got {window}")
    if not 1 <= stride < window:
        raise ConfigError(f"stride must be in [1, {window - 1}] (window − 1), got {stride}")
    if len(token_ids) < 2:
        raise ConfigError(f"a text of at least 2 tokens is needed, got {len(token_ids)}")
    ids = torch.tensor(list(token_ids), device=model.device)
    total, scored = 0.0, 1  # token 0 has nothing before it
    with tqdm(total=len(ids) - 1, unit="tok", disable=None if progress else True) as bar:
        for start in range(0, len(ids), stride):
            stop = min(start + window, len(ids))
            total += _nll(model, ids[start:stop], stop - scored)
            bar.update(stop - scored)
            scored = stop
            if stop == len(ids):
                break
    return Perplexity(total, len(ids) - 1)


@torch.inference_mode()
def _nll(model: Transformer, ids: Tensor, count: int) -> float:
    """Sum of ``−log p`` of the last ``count`` tokens of one window, each from those before it."""
    positions = torch.arange(len(ids), device=ids.device)
    hidden = model(ids, positions, UncachedAttend())
    before = hidden[-count - 1 : -1]
    total = 0.0
    for rows, targets in zip(
        torch.split(before, ROWS), torch.split(ids[-count:], ROWS), strict=True
    ):
        logits = model.logits(rows).float()
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        total += float(losses.double().sum())
    return total
