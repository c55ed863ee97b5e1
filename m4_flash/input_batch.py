"""Persistent rows on the device, one per running sequence, changed by deltas.

M3 built every step's tensors from Python lists: all block tables, all ids, again and again. Here
a sequence gets a row when it begins to run and keeps it for life; a step is an index list into
the rows, and what travels to the device is only what changed::

    rows       token_ids      block_tables   prompt_len  seed  temperature
      0      [ 9 4 7 . . ]    [ 3 8 . . ]        3         7       0.6      sequence 12
      1      [ 5 5 1 2 . ]    [ 0 . . . ]        2         9       0.0      sequence 15
      2        (free)
      n      [ . . . . . ]                                                  takes what nobody reads

    step       rows [1, 0]   starts [3, 2]   counts [1, 1]   draws [1, 1]

Everything else of a step (token ids, positions, slots, lengths) is arithmetic on the device, in
:func:`expand`. A sampled id is written into its row there, so the next step needs nothing from
the host but counts. As in vLLM 0.33.0, ``v1/worker/gpu_input_batch.py``.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from common.seeds import sequence_seed
from m2_batching.plan import ScheduledSequence, SchedulerOutput
from m4_flash.backends.base import AttentionMetadata, HostLengths
from m4_flash.sampler import SamplingRows
from m4_flash.staging import Sent, Staging

HEADER = ("rows", "starts", "counts", "draws")


@dataclass(frozen=True)
class StepTensors:
    """One step on the device, padding included.

    Attributes:
        token_ids: ``[num_tokens]`` int64, the tokens to compute.
        positions: ``[num_tokens]`` int64, each one's place in its sequence.
        last: ``[num_seqs]`` int64, index of each sequence's last token in the flat batch.
        rows: ``[num_seqs]`` int64, each sequence's device row.
        draws: ``[num_seqs]`` int64, 1 where a token is sampled after the last one.
        attention: What the backend reads.
    """

    token_ids: Tensor
    positions: Tensor
    last: Tensor
    rows: Tensor
    draws: Tensor
    attention: AttentionMetadata


@dataclass
class _Deltas:
    """What changed since the last step; places count through the flattened tensors.

    Ids are one array per new sequence: a prompt is long, and numbers one by one are slow to handle.
    """

    rows: list[int] = field(default_factory=list)
    prompt_lens: list[int] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    token_places: list[np.ndarray] = field(default_factory=list)
    token_ids: list[np.ndarray] = field(default_factory=list)
    block_places: list[int] = field(default_factory=list)
    block_ids: list[int] = field(default_factory=list)
    temperatures: list[float] = field(default_factory=list)

    @property
    def integers(self) -> tuple[list[int] | np.ndarray, ...]:
        """All numbers but the temperatures, in order."""
        return (
            self.rows,
            self.prompt_lens,
            self.seeds,
            np.concatenate(self.token_places) if self.rows else [],
            np.concatenate(self.token_ids) if self.rows else [],
            self.block_places,
            self.block_ids,
        )


class InputBatch:
    """The rows, and the way from a plan to a step's tensors.

    Attributes:
        sampling: Ids and sampling parameters by row; the device's sampler reads them.
        block_tables: ``[num_rows, max_blocks]`` int32.
        header: ``[4, num_rows]`` int64, the step's index list, see :data:`HEADER`. It never moves:
            captured graphs read it.
    """

    def __init__(
        self,
        num_rows: int,
        max_model_len: int,
        block_size: int,
        device: torch.device,
        engine_seed: int = 0,
        *,
        use_kernel: bool = False,
        pdl: bool = False,
    ) -> None:
        """Reserve the rows.

        Args:
            num_rows: Sequences that can run at the same time.
            max_model_len: Longest sequence.
            block_size: Tokens per KV block.
            device: The model's device.
            engine_seed: Seed of requests that carry none.
            use_kernel: Expand a step with :mod:`m4_flash.kernels.expand`, not with PyTorch.
            pdl: Launch it programmatically, see :mod:`m4_flash.kernels.launch`.
        """
        self.use_kernel, self.pdl = use_kernel, pdl
        self.num_rows, self.max_model_len = num_rows, max_model_len
        self.block_size, self.device, self.engine_seed = block_size, device, engine_seed

        def rows(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.sampling = SamplingRows(
            # One row more takes what padding would write, one column more the very last id.
            token_ids=rows(num_rows + 1, max_model_len + 1, dtype=torch.int32),
            prompt_lens=rows(num_rows, dtype=torch.int32),
            temperature=rows(num_rows, dtype=torch.float32),
            seeds=rows(num_rows, dtype=torch.int64),
        )
        width = -(-max_model_len // block_size)
        self.block_tables = rows(num_rows, width, dtype=torch.int32)
        self.header = rows(len(HEADER), num_rows, dtype=torch.int64)
        self._staging = Staging(device)
        self._row_of: dict[int, int] = {}
        self._free = list(range(num_rows))
        self._deltas = _Deltas()

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        parts = (*vars(self.sampling).values(), self.block_tables, self.header)
        return sum(part.nbytes for part in parts)

    def row(self, seq_id: int) -> int:
        """The device row of a running sequence."""
        return self._row_of[seq_id]

    def apply(self, plan: SchedulerOutput) -> None:
        """Give rows back, hand rows out, and note what the device must be told."""
        for seq_id in (*plan.preempted, *plan.finished):
            row = self._row_of.pop(seq_id, None)
            if row is not None:
                heapq.heappush(self._free, row)
        for item in plan.new:
            assert item.seq_id not in self._row_of, f"sequence {item.seq_id} has a row"
            self._row_of[item.seq_id] = heapq.heappop(self._free)
            self._note_row(item)
        width = self.block_tables.shape[1]
        for item in (*plan.advanced, *plan.new):
            if item.new_block_ids:  # most sequences have none
                first = self._row_of[item.seq_id] * width + item.table_start
                self._deltas.block_places += range(first, first + len(item.new_block_ids))
                self._deltas.block_ids += item.new_block_ids

    def _note_row(self, item: ScheduledSequence) -> None:
        """All known ids and the parameters of a sequence that begins to run."""
        sequence, params, deltas = item.sequence, item.sequence.sampling_params, self._deltas
        row = self._row_of[item.seq_id]
        known = np.array(sequence.token_ids[: item.num_known_tokens], dtype=np.int64)
        first = row * self.sampling.token_ids.shape[1]
        deltas.rows.append(row)
        deltas.prompt_lens.append(sequence.num_prompt_tokens)
        deltas.seeds.append(sequence_seed(self.engine_seed, sequence))
        deltas.temperatures.append(0.0 if params.is_greedy else params.temperature)
        deltas.token_places.append(np.arange(first, first + len(known)))
        deltas.token_ids.append(known)

    def send(self, items: list[ScheduledSequence], num_seqs: int) -> None:
        """Send the step's index list and all that was noted, in one copy.

        Args:
            items: The sequences of the step, in order.
            num_seqs: Entries of the index list; those behind ``items`` compute nothing.
        """
        padding = [0] * (num_seqs - len(items))
        header = [self._row_of[item.seq_id] for item in items] + padding
        header += [item.start for item in items] + padding
        header += [item.num_tokens for item in items] + padding
        header += [item.num_sampled for item in items] + padding
        deltas, self._deltas = self._deltas, _Deltas()
        sent = self._staging.send((header, *deltas.integers), (deltas.temperatures,))
        self.header[:, :num_seqs] = sent.integers[0].view(len(HEADER), num_seqs)
        self._scatter(deltas, sent)

    def _scatter(self, deltas: _Deltas, sent: Sent) -> None:
        """Put what arrived into its rows."""
        rows, lens, seeds, token_places, ids, block_places, blocks = sent.integers[1:]
        if deltas.rows:
            self.sampling.prompt_lens[rows] = lens.int()
            self.sampling.seeds[rows] = seeds
            self.sampling.temperature[rows] = sent.floats[0].float()
            self.sampling.token_ids.view(-1)[token_places] = ids.int()
        if deltas.block_places:
            self.block_tables.view(-1)[block_places] = blocks.int()

    def expand(
        self,
        num_tokens: int,
        num_seqs: int,
        *,
        max_query_len: int,
        host: HostLengths | None,
    ) -> StepTensors:
        """Turn the header into a step's tensors, on the device and without waiting for it.

        Args:
            num_tokens: Tokens of the step or of its bucket.
            num_seqs: Sequences of the step or of its bucket.
            max_query_len: No slice is longer.
            host: The lengths, where Python may know them.
        """
        if self.use_kernel:
            return self._expand_in_one_launch(num_tokens, num_seqs, max_query_len, host)
        rows, starts, counts, draws = self.header[:, :num_seqs]
        ends = counts.cumsum(0)
        token = torch.arange(num_tokens, device=self.device)
        owner = torch.searchsorted(ends, token, right=True)
        is_real = owner < num_seqs
        owner = owner.clamp_(max=num_seqs - 1)
        position = torch.where(is_real, starts[owner] + token - (ends - counts)[owner], 0)
        row = rows[owner]
        block = self.block_tables[row, position // self.block_size].long()
        slot = block * self.block_size + position % self.block_size
        zero = torch.zeros(1, dtype=torch.int64, device=self.device)
        lens = torch.where(counts > 0, starts + counts, 0)
        attention = AttentionMetadata(
            slot_mapping=torch.where(is_real, slot, -1),
            cu_seqlens_q=torch.cat((zero, ends)).int(),
            seq_lens=lens.int(),
            block_tables=self.block_tables[rows],
            max_query_len=max_query_len,
            max_seq_len=self._longest(host),
            host=host,
        )
        ids = self.sampling.token_ids[row, position].long()
        last = (ends - 1).clamp_(min=0)
        return StepTensors(ids, position, last, rows, draws, attention)

    def _expand_in_one_launch(
        self, num_tokens: int, num_seqs: int, max_query_len: int, host: HostLengths | None
    ) -> StepTensors:
        from m4_flash.kernels.expand import expand_step

        known, tables = self.sampling.token_ids, self.block_tables
        step = expand_step(
            self.header, known, tables, num_tokens, num_seqs, self.block_size, pdl=self.pdl
        )
        attention = AttentionMetadata(
            slot_mapping=step.slot_mapping,
            cu_seqlens_q=step.cu_seqlens_q,
            seq_lens=step.seq_lens,
            block_tables=step.block_tables,
            max_query_len=max_query_len,
            max_seq_len=self._longest(host),
            host=host,
        )
        rows, _, _, draws = self.header[:, :num_seqs]
        return StepTensors(step.token_ids, step.positions, step.last, rows, draws, attention)

    def _longest(self, host: HostLengths | None) -> int:
        """A bound on every context, from the host where it may know."""
        return max(host.context_lens) if host is not None else self.max_model_len

    def append(self, step: StepTensors, sampled: Tensor) -> None:
        """Write sampled ids behind their sequences; those of rows that do not draw are dropped.

        Args:
            step: The step that sampled them.
            sampled: ``[num_seqs]`` int64.
        """
        if self.use_kernel:
            from m4_flash.kernels.expand import append_ids

            lens, known = step.attention.seq_lens, self.sampling.token_ids
            append_ids(self.header, lens, sampled, known, pdl=self.pdl)
            return
        row = torch.where(step.draws > 0, step.rows, self.num_rows)
        column = torch.where(step.draws > 0, step.attention.seq_lens.long(), 0)
        self.sampling.token_ids[row, column] = sampled.int()
