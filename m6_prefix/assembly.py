"""The parts of this stage, made from options: tables that share, and M5's scheduler over them."""

from __future__ import annotations

from common.config import EngineConfig
from m2_batching.request_queue import make_queue
from m2_batching.scheduler import OnToken
from m3_paged.kv_cache import PagedKVCache
from m5_chunked.scheduler import Scheduler
from m6_prefix.hash_index import HashIndex
from m6_prefix.kv_cache_manager import KVCacheManager
from m6_prefix.prefix_index import PrefixIndex
from m6_prefix.tree_index import TreeIndex

INDEXES: dict[str, type[PrefixIndex]] = {"hash": HashIndex, "tree": TreeIndex}


def make_manager(config: EngineConfig, cache: PagedKVCache) -> KVCacheManager:
    """Block tables over ``cache``, whose full blocks can be found again.

    Args:
        config: The engine's options.
        cache: The blocks.
    """
    return KVCacheManager(
        cache.num_blocks,
        cache.block_size,
        enable_prefix_caching=config.cache.enable_prefix_caching,
        index=INDEXES[config.cache.prefix_index](),
        max_cached_blocks=config.cache.max_cached_blocks,
        keep_events=config.trace,
    )


def make_scheduler(
    config: EngineConfig, manager: KVCacheManager, max_model_len: int, on_token: OnToken
) -> Scheduler:
    """M5's scheduler, which tells ``manager`` when a sequence's place in a step is final.

    Args:
        config: The engine's options.
        manager: Gives, takes and finds blocks.
        max_model_len: Longest sequence.
        on_token: Called with each sequence that got a token.
    """
    limits = config.scheduler
    return Scheduler(
        make_queue(limits.policy),
        manager,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        long_prefill_token_threshold=limits.long_prefill_token_threshold,
        on_token=on_token,
        prefix_cache=manager,
        max_model_len=max_model_len,
    )
