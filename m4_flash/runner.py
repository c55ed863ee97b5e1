"""Turns a plan into one step on the device: apply deltas, then one graph or one eager pass."""

from __future__ import annotations

import torch

from common.model.transformer import Transformer
from m1_basic.sampler import Sampler
from m2_batching.plan import SchedulerOutput
from m2_batching.step_interfaces import StepFlight
from m3_paged.kv_cache import PagedKVCache
from m4_flash.backends.base import AttentionBackend, BackendAttend, HostLengths
from m4_flash.cuda_graph import MAX_MIXED_TOKENS, Bucket, Buckets, Capture, GraphPool
from m4_flash.draw import Draw, StepOutput
from m4_flash.input_batch import InputBatch


class FlashRunner:
    """Runs any mix of prefills, chunks and decodes over one attention backend.

    Attributes:
        model: The decoder.
        backend: Attention over the cache.
        batch: The sequences' device rows.
        graphs: Recorded steps; None where every step runs eagerly.
        sampler: The reference sampler, which the engine tells of finished sequences.
    """

    def __init__(
        self,
        model: Transformer,
        backend: AttentionBackend,
        batch: InputBatch,
        sampler: Sampler,
        draw: Draw,
    ) -> None:
        """Bind the parts; :meth:`record_graphs` is a step of its own.

        Args:
            model: The decoder.
            backend: Attention over the cache.
            batch: Device rows for as many sequences as may run.
            sampler: The reference sampler.
            draw: How a step samples.
        """
        self.model, self.backend, self.batch = model, backend, batch
        self.sampler, self.draw = sampler, draw
        self.graphs: GraphPool[StepOutput] | None = None

    @property
    def cache(self) -> PagedKVCache:
        """The KV blocks."""
        return self.backend.cache

    @torch.inference_mode()
    def record_graphs(self, buckets: Buckets, capture: Capture) -> None:
        """Record a step of every bucket, on rows that compute nothing."""
        assert self.backend.capturable, f"{self.backend.name} needs lengths on the host"
        self.batch.header.zero_()
        self.graphs = GraphPool(buckets, self._bucket_pass, capture)

    @torch.inference_mode()
    def warm_up(self, num_tokens: int = MAX_MIXED_TOKENS) -> None:
        """Run eager steps that compute nothing, so that no kernel compiles when requests wait.

        Kernels are compiled once per power of two of sequences, for a step of first chunks, and
        for decodes beside a chunk. That takes seconds the first time, and then they are on disk.

        Args:
            num_tokens: Padding tokens of each step, more than a recorded one has.
        """
        self.batch.header.zero_()
        last = self.batch.num_rows
        for seqs in [*(2**i for i in range(last.bit_length()) if 2**i < last), last]:
            tokens = num_tokens + seqs
            first = HostLengths((tokens,), (tokens,))
            mixed = HostLengths((1,) * (seqs - 1) + (2,), (3,) * seqs)
            for host in (first, mixed):
                self._pass(tokens, seqs, max(host.query_lens), host, samples=True)

    @torch.inference_mode()
    def launch(self, plan: SchedulerOutput) -> StepFlight:
        """Start one step; on a GPU this returns before it has run."""
        self.batch.apply(plan)
        self.cache.copy_blocks(plan.copies)
        # Decodes first, so that they are one range of rows; a longer slice is never split.
        items = sorted(plan.scheduled, key=lambda item: item.num_tokens != 1)
        tokens, seqs = plan.num_tokens, len(items)
        bucket = self.graphs.find(tokens, seqs) if self.graphs is not None else None
        if self.graphs is not None and bucket is not None:
            self.batch.send(items, bucket.num_seqs)
            output = self.graphs.replay(bucket)
            return self.draw.after_pass(items, output, bucket.num_tokens - tokens)
        self.batch.send(items, seqs)
        host = HostLengths(
            tuple(item.num_tokens for item in items), tuple(item.end for item in items)
        )
        samples = any(item.num_sampled for item in items)
        output = self._pass(tokens, seqs, max(host.query_lens), host, samples=samples)
        return self.draw.after_pass(items, output, 0)

    def _bucket_pass(self, bucket: Bucket) -> StepOutput:
        """A step of a bucket from the static header: nothing of it is known to Python."""
        tokens, seqs = bucket.num_tokens, bucket.num_seqs
        return self._pass(tokens, seqs, bucket.max_query_len, None, samples=True)

    def _pass(
        self,
        num_tokens: int,
        num_seqs: int,
        max_query_len: int,
        host: HostLengths | None,
        *,
        samples: bool,
    ) -> StepOutput:
        """Expand the header, run the model, score the last token of each sequence, sample."""
        step = self.batch.expand(num_tokens, num_seqs, max_query_len=max_query_len, host=host)
        attend = BackendAttend(self.backend, step.attention)
        hidden = self.model(step.token_ids, step.positions, attend)
        last = step.last if samples else step.last[:0]
        logits = self.model.logits(hidden[last])
        return StepOutput(step, logits, self.draw.in_pass(step, logits))
