"""From options to a KV cache: how many blocks, and how long a sequence may then be."""

from __future__ import annotations

import logging

import torch

from common.config import EngineConfig
from common.errors import ConfigError, OutOfMemoryError
from common.model.interfaces import Attend
from m0_init.loader import LoadedModel
from m1_basic.attention import UncachedAttend
from m3_paged.kv_cache import PagedKVCache
from m3_paged.pool_size import measure_pool

logger = logging.getLogger(__name__)


def reserve_cache(
    config: EngineConfig,
    loaded: LoadedModel,
    max_model_len: int,
    block_size: int,
    attend: Attend | None = None,
) -> PagedKVCache:
    """Allocate ``num_blocks``, or what the memory holds and the scheduler could ever use.

    Args:
        config: The engine's options.
        loaded: The model on its device.
        max_model_len: Longest sequence.
        block_size: Tokens per block.
        attend: Attention of the profiling pass; M1's, without a cache, by default.

    Raises:
        ConfigError: One sequence of the ``max_model_len`` asked for does not fit.
        OutOfMemoryError: Not one block fits.
    """
    spec, count, reason = loaded.model.kv_spec(), config.cache.num_blocks, "num_blocks"
    block_bytes = spec.bytes_per_token * block_size
    if count is None:
        limits = config.scheduler
        longest = min(max_model_len, limits.max_num_batched_tokens)
        share = config.cache.gpu_memory_utilization
        pool = measure_pool(loaded.model, share, longest, attend or UncachedAttend())
        most = limits.max_num_seqs * -(-max_model_len // block_size)
        count, reason = min(pool.num_bytes // block_bytes, most), pool.reason
    if count < 1:
        raise OutOfMemoryError(
            f"one block of {block_size} tokens needs {block_bytes / 2**20:.2f} MiB; left: {reason}"
        )
    asked, holds = config.max_model_len, count * block_size
    if asked is not None and asked > holds:
        raise ConfigError(
            f"max_model_len is {asked} tokens and the KV pool holds {holds}: "
            f"pass a smaller max_model_len or more num_blocks"
        )
    try:
        cache = PagedKVCache(spec, count, block_size, loaded.device)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        raise OutOfMemoryError(
            f"{loaded.device} refuses {count} blocks of {block_size} tokens "
            f"({count * block_bytes / 2**30:.2f} GiB); pass a smaller num_blocks"
        ) from error
    gib = cache.nbytes / 2**30
    logger.info("%d KV blocks of %d tokens, %.2f GiB (%s)", count, block_size, gib, reason)
    return cache


def longest_sequence(max_model_len: int, cache: PagedKVCache) -> int:
    """One sequence of that length must fit an empty pool, or it could wait for ever."""
    holds = cache.num_blocks * cache.block_size
    if max_model_len > holds:
        logger.warning("max_model_len is limited to the %d tokens of the pool", holds)
    return min(max_model_len, holds)
