"""The M3 engine: its table of contents, and how many blocks the pool gets."""

from __future__ import annotations

import torch

from common.request import Request
from common.trace import TraceInfo
from m0_init.loader import LoadedModel
from m2_batching.request_queue import make_queue
from m2_batching.step_engine import StepEngine
from m3_paged.kv_cache_manager import KVCacheManager
from m3_paged.reserve import longest_sequence, reserve_cache
from m3_paged.runner import FlatRunner
from m3_paged.scheduler import Scheduler, check_seats

DEFAULT_BLOCK_SIZE = 16


class LLMEngine(StepEngine):
    """Continuous batching over a pool of KV blocks."""

    stage = "m3_paged"

    scheduler: Scheduler
    runner: FlatRunner

    def build(self, loaded: LoadedModel) -> TraceInfo:
        """A pool of blocks, a manager of tables, a scheduler over both, a flat runner."""
        size = self.config.cache.block_size
        block_size = DEFAULT_BLOCK_SIZE if size == "auto" else size
        cache = reserve_cache(self.config, loaded, self.max_model_len, block_size)
        self.max_model_len = self.inputs.max_model_len = longest_sequence(self.max_model_len, cache)
        limits = self.config.scheduler
        self.scheduler = Scheduler(
            make_queue(limits.policy),
            KVCacheManager(cache.num_blocks, cache.block_size, keep_events=self.config.trace),
            max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
            on_token=self.on_token,
        )
        head_dim = loaded.config.head_dim
        use_kernel = kernel_supports(loaded.device, head_dim, cache.block_size)
        self.runner = FlatRunner(loaded.model, cache, self.sampler, use_kernel=use_kernel)
        return TraceInfo(self.stage, block_size=cache.block_size, num_blocks=cache.num_blocks)

    def check_request(self, request: Request) -> None:
        """All parallel samples of a request must be able to run at the same time.

        Raises:
            InvalidRequestError: There are more than seats.
        """
        check_seats(request, self.config.scheduler.max_num_seqs)


def kernel_supports(device: torch.device, head_dim: int, block_size: int) -> bool:
    """Whether the Triton decode kernel can serve: a GPU, and powers of two."""
    gpu = device.type == "cuda"
    if gpu:  # gpu-only: m3_paged/tests/test_gpu.py::test_the_engine_uses_the_kernel
        from m3_paged.kernels import supports

        return supports(head_dim, block_size, device)
    return False
