"""How a step samples: on the host with the reference sampler, or on the device as it runs.

Both write the ids behind their sequences' rows, so that the next step finds them on the device.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from common.request import Sequence
from m1_basic.sampler import Sampler
from m2_batching.plan import ScheduledSequence, StepResult
from m2_batching.step_interfaces import StepFlight
from m4_flash.flight import DeviceFlight, HostFlight
from m4_flash.input_batch import InputBatch, StepTensors
from m4_flash.sampler import DeviceSampler, FilteredRow, asks_for_more


@dataclass(frozen=True)
class StepOutput:
    """What one pass leaves on the device.

    Attributes:
        step: The step that ran.
        logits: ``[num_seqs, vocab_size]`` after each sequence's last token; no rows where nobody
            samples.
        sampled: ``[num_seqs]`` int64, or None where the host samples.
    """

    step: StepTensors
    logits: Tensor
    sampled: Tensor | None


class Draw(Protocol):
    """One way to sample a step."""

    def in_pass(self, step: StepTensors, logits: Tensor) -> Tensor | None:
        """What is the same for all rows; may be recorded in a graph. Returns the ids, if any."""
        ...

    def after_pass(
        self, items: Seq[ScheduledSequence], output: StepOutput, num_padding_tokens: int
    ) -> StepFlight:
        """What depends on the rows' parameters, and the way of the ids to the host."""
        ...


class HostDraw:
    """The reference sampler: it knows each sequence's generator, and waits for the device."""

    def __init__(self, sampler: Sampler, batch: InputBatch) -> None:
        """Bind the sampler and the rows."""
        self.sampler, self.batch = sampler, batch

    def in_pass(self, step: StepTensors, logits: Tensor) -> Tensor | None:
        """Nothing."""
        return None

    def after_pass(
        self, items: Seq[ScheduledSequence], output: StepOutput, num_padding_tokens: int
    ) -> StepFlight:
        """Sample the rows that draw, and write their ids."""
        picked = [index for index, item in enumerate(items) if item.num_sampled]
        if not picked:
            return HostFlight(StepResult({}, {}, num_padding_tokens))
        sequences = [self._as_planned(items[i]) for i in picked]
        sampled = self.sampler(output.logits[picked], sequences)
        seq_ids = [items[i].seq_id for i in picked]
        ids = torch.zeros(len(output.logits), dtype=torch.int64)
        ids[picked] = torch.tensor(sampled.token_ids)
        self.batch.append(output.step, ids.to(output.logits.device))
        logprobs = {
            seq_id: entries
            for seq_id, entries in zip(seq_ids, sampled.logprobs, strict=True)
            if entries is not None
        }
        token_ids = dict(zip(seq_ids, sampled.token_ids, strict=True))
        return HostFlight(StepResult(token_ids, logprobs, num_padding_tokens))

    def _as_planned(self, item: ScheduledSequence) -> Sequence:
        """The sequence with the ids that the step was planned with.

        Where a step is planned before the one ahead of it was read (M5), the last id is in the
        sequence's row already, and not yet in the sequence.
        """
        sequence, known = item.sequence, item.num_known_tokens
        if known == sequence.num_tokens:
            return sequence
        ids = self.batch.sampling.token_ids[self.batch.row(item.seq_id), :known].tolist()
        return Sequence(sequence.seq_id, sequence.request, sequence.index, ids)


class DeviceDraw:  # gpu-only: m4_flash/tests/test_gpu.py::test_greedy_ids_equal_those_of_the_cpu
    """The device's sampler: every row in one pass, then again the rows that filter."""

    def __init__(self, sampler: DeviceSampler, batch: InputBatch) -> None:
        """Bind the sampler and the rows."""
        self.sampler, self.batch = sampler, batch

    def in_pass(self, step: StepTensors, logits: Tensor) -> Tensor | None:
        """Greedy and temperature rows; the others are drawn too, and corrected afterwards."""
        ids = torch.empty(len(step.rows), dtype=torch.int64, device=logits.device)
        if len(logits):
            self.sampler.draw(logits, step.rows, step.attention.seq_lens, ids)
            self.batch.append(step, ids)
        return ids

    def after_pass(
        self, items: Seq[ScheduledSequence], output: StepOutput, num_padding_tokens: int
    ) -> StepFlight:
        """Filtered rows, logprobs, and the copy to the host."""
        ids = output.sampled
        assert ids is not None
        rows = [
            self._row(index, item)
            for index, item in enumerate(items)
            if item.num_sampled and asks_for_more(item.sequence.sampling_params)
        ]
        filtered = [row for row in rows if self.sampler.needs_filtering(row)]
        if filtered:
            self.sampler.draw_filtered(output.logits, filtered, ids)
            self.batch.append(output.step, ids)
        logprobs = self.sampler.logprobs(output.logits, ids, rows)
        return DeviceFlight(list(items), ids, logprobs, num_padding_tokens)

    def _row(self, index: int, item: ScheduledSequence) -> FilteredRow:
        return FilteredRow(
            index=index,
            row=self.batch.row(item.seq_id),
            seq_id=item.seq_id,
            params=item.sequence.sampling_params,
            num_tokens=item.num_known_tokens,
            num_prompt_tokens=item.sequence.num_prompt_tokens,
        )
