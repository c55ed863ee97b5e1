"""How the benchmarks of this stage set up engines, and how they time a first token."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from typing import Any, Protocol

from common.inputs import Prompt
from common.outputs import RequestOutput
from common.request import SamplingParams
from m2_batching.step_engine import StepEngine
from m4_flash.backends.select import BACKENDS
from m5_chunked.engine import LLMEngine as M5Engine
from m6_prefix.engine import LLMEngine as M6Engine
from m6_prefix.kv_cache_manager import KVCacheManager

BUDGET = 8192
"""Tokens of a step, the default of every stage."""


def backend(args: Namespace) -> str:
    """Our own kernels on a GPU, PyTorch's attention elsewhere."""
    return "triton" if args.device.startswith("cuda") else "sdpa"


def options(
    args: Namespace,
    *,
    max_model_len: int,
    max_num_seqs: int,
    pool_tokens: int,
    budget: int = BUDGET,
) -> dict[str, Any]:
    """Options of M5 and M6 over a stated pool, so that nothing depends on what is free.

    Args:
        args: The benchmark's command line.
        max_model_len: Longest sequence.
        max_num_seqs: Sequences at a time.
        pool_tokens: Places of the KV pool, rounded up to whole blocks.
        budget: Tokens of one step.
    """
    name = backend(args)
    return {
        "dtype": args.dtype,
        "device": args.device,
        "attention_backend": name,
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": budget,
        "num_blocks": -(-pool_tokens // BACKENDS[name].default_block_size),
    }


def settings(args: Namespace, engine: M5Engine | M6Engine) -> dict[str, str | int | bool]:
    """The options of a result file."""
    return {
        "model": args.model,
        "dtype": str(engine.model.dtype).removeprefix("torch."),
        "attention_backend": engine.runner.backend.name,
        "block_size": engine.runner.cache.block_size,
        "graphs": engine.runner.graphs is not None,
        "num_blocks": engine.runner.cache.num_blocks,
        "max_num_seqs": engine.config.scheduler.max_num_seqs,
        "max_num_batched_tokens": engine.scheduler.max_num_batched_tokens,
        "max_model_len": engine.max_model_len,
    }


@dataclass(frozen=True)
class FirstToken:
    """How a request began.

    Attributes:
        seconds: From the arrival of its ids to its first token on the host.
        prompt_tokens: Length of the prompt.
        cached_tokens: Those that were not computed.
    """

    seconds: float
    prompt_tokens: int
    cached_tokens: int

    @classmethod
    def of(cls, output: RequestOutput) -> FirstToken:
        """From what a request with at least one token gave back."""
        metrics = output.metrics
        assert metrics.ttft is not None
        return cls(metrics.ttft, len(output.prompt_token_ids), metrics.num_cached_tokens)


def first_token(engine: StepEngine, prompt: Prompt) -> FirstToken:
    """Serve a prompt for one token and time it."""
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    (output,) = engine.generate(prompt, params)
    return FirstToken.of(output)


class Caching(Protocol):
    """An engine of this stage, or of one above."""

    manager: KVCacheManager


def forget(engine: Caching) -> None:
    """Empty the prefix cache of an idle engine: the next request runs cold."""
    done = engine.manager.reset_prefix_cache()
    assert done, "cached blocks are in use"
