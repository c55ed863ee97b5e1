"""The M2 engine: its table of contents, and what it does when memory runs out."""

from __future__ import annotations

import gc
import logging
import traceback

import torch

from common.errors import OutOfMemoryError
from common.model_config import KVSpec
from common.trace import TraceInfo
from m0_init.device_memory import device_memory
from m0_init.loader import LoadedModel
from m2_batching.kv_cache import SlotKVCache
from m2_batching.request_queue import make_queue
from m2_batching.runner import PaddedRunner
from m2_batching.scheduler import Scheduler
from m2_batching.step_engine import StepEngine

logger = logging.getLogger(__name__)


class LLMEngine(StepEngine):
    """Continuous batching over fixed slots."""

    stage = "m2_batching"

    scheduler: Scheduler
    runner: PaddedRunner

    def build(self, loaded: LoadedModel) -> TraceInfo:
        """Slots as many as memory allows, a queue of the policy, a runner of padded batches."""
        cache = self._reserve(loaded.model.kv_spec())
        limits = self.config.scheduler
        self.scheduler = Scheduler(
            make_queue(limits.policy),
            cache.num_slots,
            limits.max_num_batched_tokens,
            self.on_token,
            keep_events=self.config.trace,
        )
        self.runner = PaddedRunner(loaded.model, cache, self.sampler)
        return TraceInfo(self.stage, block_size=self.max_model_len, num_blocks=cache.num_slots)

    def on_out_of_memory(self, error: Exception) -> None:
        """Go on with half the slots: everybody is preempted and comes back in order.

        Raises:
            OutOfMemoryError: There was only one slot left.
        """
        before = self.runner.cache.num_slots
        if before == 1:
            super().on_out_of_memory(error)
        # Before the smaller cache is taken, the old one goes, and with it what the failed pass
        # still holds: the error's frames have the activations and another name of the cache.
        del self.runner.cache
        traceback.clear_frames(error.__traceback__)
        release_unused(self.device)
        self.runner.cache = self._allocate(self.model.kv_spec(), before // 2)
        slots = self.runner.cache.num_slots
        logger.warning("out of memory in a step: %d slots instead of %d", slots, before)
        self.scheduler.shrink(slots)

    def _reserve(self, spec: KVSpec) -> SlotKVCache:
        """As many slots as were asked for and as the free memory holds.

        Raises:
            OutOfMemoryError: Not one slot of ``max_model_len`` tokens fits.
        """
        slot_bytes = spec.bytes_per_token * self.max_model_len
        share = self.config.cache.gpu_memory_utilization
        free = device_memory(str(self.device)).free_bytes
        slots = min(self.config.scheduler.max_num_seqs, int(free * share) // slot_bytes)
        if slots < 1:
            raise OutOfMemoryError(
                f"one slot of max_model_len {self.max_model_len} tokens needs "
                f"{slot_bytes / 2**30:.2f} GiB, and {share:.0%} of the free "
                f"{free / 2**30:.2f} GiB of {self.device} is less; pass a smaller max_model_len"
            )
        cache = self._allocate(spec, slots)
        logger.info(
            "%d KV slots of %d tokens, %.2f GiB (%.2f GiB were free)",
            cache.num_slots,
            self.max_model_len,
            cache.nbytes / 2**30,
            free / 2**30,
        )
        return cache

    def _allocate(self, spec: KVSpec, slots: int) -> SlotKVCache:
        """Reserve ``slots``, or half of them, or half of those, until the device agrees.

        Raises:
            OutOfMemoryError: Not even one is granted.
        """
        while slots:
            try:
                return SlotKVCache(spec, slots, self.max_model_len, self.device)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                logger.warning("no room for %d slots: %s", slots, error)
                slots //= 2
            release_unused(self.device)
        raise OutOfMemoryError(
            f"{self.device} refuses a single slot of {self.max_model_len} tokens; "
            f"pass a smaller max_model_len"
        )


def release_unused(device: torch.device) -> None:
    """Give memory that nobody uses any more back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
