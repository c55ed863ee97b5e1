"""The M3 engine: its table of contents, and how many blocks the pool gets."""

from __future__ import annotations

import logging

import torch

from common.errors import ConfigError, InvalidRequestError, OutOfMemoryError
from common.request import Request
from common.trace import TraceInfo
from m0_init.loader import LoadedModel
from m2_batching.request_queue import make_queue
from m2_batching.step_engine import StepEngine
from m3_paged.kv_cache import PagedKVCache
from m3_paged.kv_cache_manager import KVCacheManager
from m3_paged.pool_size import measure_pool
from m3_paged.runner import FlatRunner
from m3_paged.scheduler import Scheduler

logger = logging.getLogger(__name__)

DEFAULT_BLOCK_SIZE = 16


class LLMEngine(StepEngine):
    """Continuous batching over a pool of KV blocks."""

    stage = "m3_paged"

    scheduler: Scheduler
    runner: FlatRunner

    def build(self, loaded: LoadedModel) -> TraceInfo:
        """A pool of blocks, a manager of tables, a scheduler over both, a flat runner."""
        cache = self._reserve(loaded)
        limits = self.config.scheduler
        self.scheduler = Scheduler(
            make_queue(limits.policy),
            KVCacheManager(cache.num_blocks, cache.block_size),
            max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
            on_token=self.on_token,
        )
        head_dim = loaded.config.head_dim
        use_kernel = kernel_supports(loaded.device, head_dim, cache.block_size)
        self.runner = FlatRunner(loaded.model, cache, self.sampler, use_kernel=use_kernel)
        return TraceInfo(self.stage, block_size=cache.block_size, num_blocks=cache.num_blocks)

    def kv_bytes(self) -> int:
        """Bytes of the whole pool."""
        return self.runner.cache.nbytes

    def check_request(self, request: Request) -> None:
        """All parallel samples of a request must be able to run at the same time.

        Raises:
            InvalidRequestError: There are more than seats.
        """
        count, seats = request.sampling_params.n, self.config.scheduler.max_num_seqs
        if count > seats:
            raise InvalidRequestError(f"n is {count}, more than max_num_seqs ({seats})")

    def _reserve(self, loaded: LoadedModel) -> PagedKVCache:
        """Size the pool, limit ``max_model_len`` to it, and allocate it.

        Raises:
            ConfigError: One sequence of the ``max_model_len`` asked for does not fit.
            OutOfMemoryError: Not one block fits.
        """
        options, spec = self.config.cache, loaded.model.kv_spec()
        size = DEFAULT_BLOCK_SIZE if options.block_size == "auto" else options.block_size
        block_bytes = spec.bytes_per_token * size
        count, reason = options.num_blocks, "num_blocks"
        if count is None:
            limits = self.config.scheduler
            longest = min(self.max_model_len, limits.max_num_batched_tokens)
            pool = measure_pool(loaded.model, options.gpu_memory_utilization, longest)
            most = limits.max_num_seqs * -(-self.max_model_len // size)
            count, reason = min(pool.num_bytes // block_bytes, most), pool.reason
        if count < 1:
            raise OutOfMemoryError(
                f"one block of {size} tokens needs {block_bytes / 2**20:.2f} MiB; left: {reason}"
            )
        self._limit_length(count * size)
        try:
            cache = PagedKVCache(spec, count, size, loaded.device)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            raise OutOfMemoryError(
                f"{loaded.device} refuses {count} blocks of {size} tokens "
                f"({count * block_bytes / 2**30:.2f} GiB); pass a smaller num_blocks"
            ) from error
        gib = cache.nbytes / 2**30
        logger.info("%d KV blocks of %d tokens, %.2f GiB (%s)", count, size, gib, reason)
        return cache

    def _limit_length(self, pool_tokens: int) -> None:
        """One sequence of ``max_model_len`` must fit an empty pool, or it could wait for ever.

        Raises:
            ConfigError: The length was asked for and does not fit.
        """
        asked = self.config.max_model_len
        if asked is not None and asked > pool_tokens:
            raise ConfigError(
                f"max_model_len is {asked} tokens and the KV pool holds {pool_tokens}: "
                f"pass a smaller max_model_len or more num_blocks"
            )
        if self.max_model_len > pool_tokens:
            logger.warning("max_model_len is limited to the %d tokens of the pool", pool_tokens)
            self.max_model_len = self.inputs.max_model_len = pool_tokens


def kernel_supports(device: torch.device, head_dim: int, block_size: int) -> bool:
    """Whether the Triton decode kernel can serve: a GPU, and powers of two."""
    if device.type != "cuda":
        return False
    from m3_paged.kernels import (
        supports,
    )  # gpu-only: m3_paged/tests/test_gpu.py::test_the_engine_uses_the_kernel

    return supports(
        head_dim, block_size, device
    )  # gpu-only: m3_paged/tests/test_gpu.py::test_the_engine_uses_the_kernel
