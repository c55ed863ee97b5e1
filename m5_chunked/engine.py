"""The M5 engine: a scheduler with one token budget; everything under it is M4's and M3's."""

from __future__ import annotations

from common.request import Request
from common.trace import TraceInfo
from m0_init.loader import LoadedModel
from m2_batching.request_queue import make_queue
from m2_batching.step_engine import StepEngine
from m3_paged.kv_cache_manager import KVCacheManager
from m3_paged.scheduler import check_seats
from m4_flash.assembly import assemble, load_fused
from m4_flash.runner import FlashRunner
from m5_chunked.overlap import choose_loop
from m5_chunked.scheduler import Scheduler


class LLMEngine(StepEngine):
    """Chunked prefill: long prompts come in slices beside the decodes."""

    stage = "m5_chunked"

    scheduler: Scheduler
    runner: FlashRunner

    def load(self) -> LoadedModel:
        """The checkpoint, with M4's fused operations where they run."""
        return load_fused(self.config)

    def build(self, loaded: LoadedModel) -> TraceInfo:
        """M4's runner, M3's tables, and this stage's scheduler over them."""
        self.runner = assemble(self.config, loaded, self.sampler, self.max_model_len)
        self.max_model_len = self.inputs.max_model_len = self.runner.batch.max_model_len
        limits, cache = self.config.scheduler, self.runner.cache
        self.scheduler = Scheduler(
            make_queue(limits.policy),
            KVCacheManager(cache.num_blocks, cache.block_size, keep_events=self.config.trace),
            max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
            long_prefill_token_threshold=limits.long_prefill_token_threshold,
            on_token=self.on_token,
            max_model_len=self.max_model_len,
        )
        self.loop = choose_loop(self, self.config.overlap, str(self.device))
        return TraceInfo(
            self.stage,
            block_size=cache.block_size,
            num_blocks=cache.num_blocks,
            lookahead=self.loop.lookahead,
            config={"max_num_batched_tokens": self.config.scheduler.max_num_batched_tokens},
        )

    def check_request(self, request: Request) -> None:
        """All parallel samples of a request must be able to run at the same time.

        Raises:
            InvalidRequestError: There are more than seats.
        """
        check_seats(request, self.config.scheduler.max_num_seqs)
