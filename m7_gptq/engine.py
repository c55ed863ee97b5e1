"""The M7 engine: M6's, with linear layers in the form in which the checkpoint stores them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from common.errors import ConfigError
from common.hub import resolve_model
from common.model_config import ModelConfig
from common.request import Request, Sequence
from common.trace import TraceInfo
from m0_init.loader import LoadedModel, resolve_device
from m2_batching.step_engine import StepEngine
from m3_paged.scheduler import check_seats
from m4_flash.assembly import assemble, load_fused
from m4_flash.devices import has_triton, supports_pdl
from m4_flash.runner import FlashRunner
from m5_chunked.overlap import choose_loop
from m5_chunked.scheduler import Scheduler
from m6_prefix.assembly import make_manager, make_scheduler
from m6_prefix.kv_cache_manager import KVCacheManager
from m7_gptq.checkpoint import is_quantised
from m7_gptq.head import round_head
from m7_gptq.linear import GPTQLinear, gptq_linear


class LLMEngine(StepEngine):
    """4-bit weights: the linear layers come from another factory, and nothing else changes."""

    stage = "m7_gptq"
    shares_prefixes = True

    scheduler: Scheduler
    runner: FlashRunner
    manager: KVCacheManager

    def load(self) -> LoadedModel:
        """A GPTQ checkpoint as it is stored, or a dense one as in M6.

        Raises:
            ConfigError: The layers asked for are not installed, or there is nothing for them.
        """
        device, backend = resolve_device(self.config.device), self.config.linear_backend
        pdl = self.config.programmatic_launch
        layer = layer_for(device, backend, pdl=pdl)
        folder = resolve_model(self.config.model)
        if is_quantised(folder, ModelConfig.from_pretrained(folder)):
            loaded = load_fused(self.config, linear=gptq_linear(folder, layer))
        elif backend == "auto_gptq":
            raise ConfigError(
                f"linear_backend 'auto_gptq' runs quantised layers, and {folder} has none"
            )
        else:
            loaded = load_fused(self.config)
        if self.config.head_bits is not None:
            # auto-gptq's layers have no lookup of rows: the head is ours beside them.
            ours = layer if backend != "auto_gptq" else layer_for(device, pdl=pdl)
            round_head(loaded.model, ours)
        return loaded

    def build(self, loaded: LoadedModel) -> TraceInfo:
        """M4's runner, M6's tables, M5's scheduler and loop."""
        self.runner = assemble(self.config, loaded, self.sampler, self.max_model_len)
        self.max_model_len = self.inputs.max_model_len = self.runner.batch.max_model_len
        cache = self.runner.cache
        self.manager = make_manager(self.config, cache)
        self.scheduler = make_scheduler(
            self.config, self.manager, self.max_model_len, self.on_token
        )
        self.loop = choose_loop(self, self.config.overlap, str(self.device))
        return TraceInfo(
            self.stage,
            block_size=cache.block_size,
            num_blocks=cache.num_blocks,
            lookahead=self.loop.lookahead,
            config={"max_num_batched_tokens": self.config.scheduler.max_num_batched_tokens},
        )

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


def layer_for(
    device: torch.device, backend: str = "auto", *, pdl: bool = True
) -> Callable[..., GPTQLinear]:
    """What makes quantised layers, of the arguments of :class:`GPTQLinear`.

    Args:
        device: Where they will be.
        backend: ``auto`` takes the fused kernels on a GPU and elsewhere the reference, which
            unpacks and multiplies; ``torch`` always takes the reference, ``auto_gptq`` the layers
            of that package.
        pdl: Whether the device may launch programmatically, if it can.

    Raises:
        ConfigError: The package is not installed.
    """
    if backend == "auto_gptq":
        from m7_gptq.auto_gptq_linear import AutoGPTQLinear, require_auto_gptq

        require_auto_gptq()
        return AutoGPTQLinear
    fused = backend == "auto" and has_triton(device)
    if fused:  # gpu-only: m7_gptq/tests/test_gpu.py::test_the_engine_takes_the_fused_layers
        from m7_gptq.fused_linear import FusedGPTQLinear

        return functools.partial(FusedGPTQLinear, pdl=pdl and supports_pdl(device))
    return GPTQLinear
