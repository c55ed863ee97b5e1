"""The M6 engine: M5's scheduler over tables whose full blocks can be found again."""

from __future__ import annotations

from common.request import Request, Sequence
from common.trace import TraceInfo
from m0_init.loader import LoadedModel
from m2_batching.request_queue import make_queue
from m2_batching.step_engine import StepEngine
from m3_paged.scheduler import check_seats
from m4_flash.assembly import assemble, load_fused
from m4_flash.runner import FlashRunner
from m5_chunked.overlap import choose_loop
from m5_chunked.scheduler import Scheduler
from m6_prefix.hash_index import HashIndex
from m6_prefix.kv_cache_manager import KVCacheManager
from m6_prefix.prefix_index import PrefixIndex
from m6_prefix.tree_index import TreeIndex

INDEXES: dict[str, type[PrefixIndex]] = {"hash": HashIndex, "tree": TreeIndex}


class LLMEngine(StepEngine):
    """Prefix caching: what an earlier request computed is not computed again."""

    stage = "m6_prefix"
    shares_prefixes = True

    scheduler: Scheduler
    runner: FlashRunner
    manager: KVCacheManager

    def load(self) -> LoadedModel:
        """The checkpoint, with M4's fused operations where they run."""
        return load_fused(self.config)

    def build(self, loaded: LoadedModel) -> TraceInfo:
        """M4's runner, M5's scheduler, and this stage's tables under it."""
        self.runner = assemble(self.config, loaded, self.sampler, self.max_model_len)
        self.max_model_len = self.inputs.max_model_len = self.runner.batch.max_model_len
        limits, memory, cache = self.config.scheduler, self.config.cache, self.runner.cache
        self.manager = KVCacheManager(
            cache.num_blocks,
            cache.block_size,
            enable_prefix_caching=memory.enable_prefix_caching,
            index=INDEXES[memory.prefix_index](),
            max_cached_blocks=memory.max_cached_blocks,
        )
        self.scheduler = Scheduler(
            make_queue(limits.policy),
            self.manager,
            max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
            long_prefill_token_threshold=limits.long_prefill_token_threshold,
            on_token=self.on_token,
            max_model_len=self.max_model_len,
            prefix_cache=self.manager,
        )
        self.loop = choose_loop(self, self.config.overlap, str(self.device))
        return TraceInfo(
            self.stage,
            block_size=cache.block_size,
            num_blocks=cache.num_blocks,
            lookahead=self.loop.lookahead,
        )

    def kv_bytes(self) -> int:
        """Bytes of the whole pool."""
        return self.runner.cache.nbytes

    def cached_tokens(self, sequence: Sequence) -> int:
        """Leading tokens of a sequence that it found when it first began."""
        return self.manager.stats_of(sequence).hit_tokens

    def on_failed_step(self) -> None:
        """Forget what was published too: blocks of the failed step hold no K and V."""
        super().on_failed_step()
        forgotten = self.manager.reset_prefix_cache()
        assert forgotten, "a block is in use, and nobody runs"

    def check_request(self, request: Request) -> None:
        """All parallel samples of a request must be able to run at the same time.

        Raises:
            InvalidRequestError: There are more than seats.
        """
        check_seats(request, self.config.scheduler.max_num_seqs)
