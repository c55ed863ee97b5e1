"""Turns a plan into one flat forward pass: any mix of prefills, chunks and decodes, no padding."""

from __future__ import annotations

import torch
from torch import Tensor

from common.model.transformer import Transformer
from m1_basic.sampler import Sampler
from m2_batching.plan import ScheduledSequence, SchedulerOutput
from m2_batching.runner import Flight
from m3_paged.kv_cache import PagedKVCache
from m3_paged.paged_attention import PagedAttend, PagedMetadata


class FlatRunner:
    """Keeps each sequence's block table, and runs a step as one list of tokens."""

    def __init__(
        self, model: Transformer, cache: PagedKVCache, sampler: Sampler, *, use_kernel: bool
    ) -> None:
        """Bind the parts.

        Args:
            model: The decoder.
            cache: KV blocks on the model's device.
            sampler: Draws the tokens.
            use_kernel: Decode with the Triton kernel.
        """
        self.model, self.cache, self.sampler = model, cache, sampler
        self.use_kernel = use_kernel
        self._tables: dict[int, list[int]] = {}

    @torch.inference_mode()
    def launch(self, plan: SchedulerOutput) -> Flight:
        """Run one step; logits only after the last token of sequences that sample."""
        for seq_id in (*plan.preempted, *plan.finished):
            self._tables.pop(seq_id, None)
        for item in plan.new:
            self._tables[item.seq_id] = list(item.new_block_ids)
        for item in plan.advanced:
            self._tables[item.seq_id][item.table_start :] = item.new_block_ids
        self.cache.copy_blocks(plan.copies)
        # Decodes first: they are one contiguous range of rows for the decode operator.
        items = sorted(plan.scheduled, key=lambda item: item.num_tokens != 1)
        token_ids, positions, metadata = self._tensors(items)
        attend = PagedAttend(self.cache, metadata, use_kernel=self.use_kernel)
        hidden = self.model(token_ids, positions, attend)
        ends = torch.tensor([item.num_tokens for item in items]).cumsum(0) - 1
        sampled = [row for row, item in enumerate(items) if item.num_sampled]
        rows = ends[sampled].to(self.model.device)
        chosen = tuple(items[row] for row in sampled)
        return Flight(self.model.logits(hidden[rows]), chosen, self.sampler, 0)

    def _tensors(self, items: list[ScheduledSequence]) -> tuple[Tensor, Tensor, PagedMetadata]:
        """Token ids ``[num_tokens]``, positions ``[num_tokens]`` and the metadata of a step."""
        device, size = self.model.device, self.cache.block_size
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        for item in items:
            table = self._tables[item.seq_id]
            assert len(table) * size >= item.end, f"sequence {item.seq_id} has too few blocks"
            ids += item.sequence.token_ids[item.start : item.end]
            positions += range(item.start, item.end)
            slots += (table[p // size] * size + p % size for p in range(item.start, item.end))
        tables = [self._tables[item.seq_id] for item in items]
        width = max(map(len, tables))
        padded = [table + [0] * (width - len(table)) for table in tables]
        lengths = tuple(item.end for item in items)
        metadata = PagedMetadata(
            slot_mapping=torch.tensor(slots, device=device),
            block_tables=torch.tensor(padded, dtype=torch.int32, device=device),
            seq_lens=torch.tensor(lengths, dtype=torch.int32, device=device),
            query_lens=tuple(item.num_tokens for item in items),
            context_lens=lengths,
            num_decodes=sum(item.num_tokens == 1 for item in items),
        )
        return torch.tensor(ids, device=device), torch.tensor(positions, device=device), metadata
