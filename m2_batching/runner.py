"""Turns a plan into one padded forward pass and one sampled token per sequence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.model.transformer import Transformer
from m1_basic.sampler import Sampler
from m2_batching.attention import DecodeAttend, PrefillAttend
from m2_batching.kv_cache import SlotKVCache
from m2_batching.plan import ScheduledSequence, SchedulerOutput, StepResult


@dataclass(frozen=True)
class Flight:
    """A step that was launched: logits on the device, ids not yet read.

    Attributes:
        logits: ``[rows, vocab_size]``, a row per scheduled sequence.
        scheduled: The sequence of each row.
        sampler: Draws the ids.
        num_padding_tokens: Positions computed for nothing.
    """

    logits: Tensor
    scheduled: tuple[ScheduledSequence, ...]
    sampler: Sampler
    num_padding_tokens: int

    def result(self) -> StepResult:
        """Sample and bring the ids to the host; waits for the device."""
        sampled = self.sampler(self.logits, [item.sequence for item in self.scheduled])
        seq_ids = [item.seq_id for item in self.scheduled]
        logprobs = {
            seq_id: entries
            for seq_id, entries in zip(seq_ids, sampled.logprobs, strict=True)
            if entries is not None
        }
        ids = dict(zip(seq_ids, sampled.token_ids, strict=True))
        return StepResult(ids, logprobs, self.num_padding_tokens)


class PaddedRunner:
    """Runs all prompts of a step as one rectangle, or all decodes as one column."""

    def __init__(self, model: Transformer, cache: SlotKVCache, sampler: Sampler) -> None:
        """Bind the parts.

        Args:
            model: The decoder.
            cache: KV slots on the model's device.
            sampler: Draws the tokens.
        """
        self.model, self.cache, self.sampler = model, cache, sampler
        self._slot_of: dict[int, int] = {}

    @torch.inference_mode()
    def launch(self, plan: SchedulerOutput) -> Flight:
        """Run one step: all new sequences, or all running ones (never both in this stage)."""
        assert not (plan.new and plan.advanced), "M2 plans prefills and decodes apart"
        for seq_id in (*plan.preempted, *plan.finished):
            self._slot_of.pop(seq_id, None)
        for item in plan.new:
            (self._slot_of[item.seq_id],) = item.new_block_ids
        logits, computed = self._prefill(plan.new) if plan.new else self._decode(plan.advanced)
        return Flight(logits, plan.scheduled, self.sampler, computed - plan.num_tokens)

    def _prefill(self, items: tuple[ScheduledSequence, ...]) -> tuple[Tensor, int]:
        """Prompts as rows, padded on the right to the longest.

        Returns:
            Logits after each row's last token, ``[rows, vocab_size]``, and positions computed.
        """
        device, rows = self.model.device, len(items)
        width = max(item.num_tokens for item in items)
        padded = [item.sequence.token_ids + [0] * (width - item.num_tokens) for item in items]
        ids = torch.tensor(padded, device=device)
        lengths = torch.tensor([item.num_tokens for item in items], device=device)
        slots = torch.tensor([self._slot_of[item.seq_id] for item in items], device=device)
        positions = torch.arange(width, device=device).expand(rows, width)
        attend = PrefillAttend(self.cache, slots, lengths, width)
        hidden = self.model(ids, positions, attend)
        last = hidden[torch.arange(rows, device=device), lengths - 1]
        return self.model.logits(last), rows * width

    def _decode(self, items: tuple[ScheduledSequence, ...]) -> tuple[Tensor, int]:
        """One token per slot, up to the highest slot in use; idle slots below it are padding.

        Returns:
            Logits of the scheduled sequences in order, ``[rows, vocab_size]``, and positions
            computed.
        """
        device = self.model.device
        slots = [self._slot_of[item.seq_id] for item in items]
        rows = max(slots) + 1
        ids, lengths = [0] * rows, [1] * rows
        for slot, item in zip(slots, items, strict=True):
            ids[slot], lengths[slot] = item.sequence.token_ids[item.start], item.end
        slot_tensor = torch.tensor(slots, device=device)
        length_tensor = torch.tensor(lengths, device=device)
        attend = DecodeAttend(self.cache, slot_tensor, length_tensor, max(lengths))
        column = torch.tensor(ids, device=device).unsqueeze(1)
        hidden = self.model(column, (length_tensor - 1).unsqueeze(1), attend)
        return self.model.logits(hidden[slot_tensor, 0]), rows
