"""Which engines the benchmarks of this stage compare, and how they are set up and let go."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from argparse import Namespace

import torch

from common.hub import resolve_model
from common.model.interfaces import TORCH_DTYPES
from common.model_config import ModelConfig
from m3_paged.engine import DEFAULT_BLOCK_SIZE
from m3_paged.engine import LLMEngine as M3Engine
from m4_flash.backends.base import AttentionShape
from m4_flash.backends.select import BACKENDS
from m4_flash.engine import LLMEngine as M4Engine

Engine = M3Engine | M4Engine
Labels = dict[str, str | int | float | bool]


def announce(name: str, args: Namespace, gpu_seconds: int, cpu_seconds: int) -> None:
    """Say how long a benchmark takes; ``--only`` picks one where time is short."""
    if not args.smoke:
        gpu = args.device.startswith("cuda")
        seconds, where = (gpu_seconds, "one H100") if gpu else (cpu_seconds, "two CPU cores")
        print(f"{name}: about {seconds} s on {where}", flush=True)


def model_of(args: Namespace) -> tuple[ModelConfig, str]:
    """The architecture of ``--model``, and the element type that it will run in.

    Raises:
        FoloError: There is no such model, or it cannot be read.
    """
    config = ModelConfig.from_pretrained(resolve_model(args.model))
    return config, args.dtype if args.dtype != "auto" else config.dtype


def model_shape(args: Namespace) -> AttentionShape:
    """What an attention backend must serve to run ``--model``."""
    config, dtype = model_of(args)
    heads = (config.num_heads, config.num_kv_heads, config.head_dim)
    return AttentionShape(torch.device(args.device), TORCH_DTYPES[dtype], *heads)


def usable(names: tuple[str, ...], shape: AttentionShape, notes: list[str]) -> tuple[str, ...]:
    """The backends among ``names`` that run here; ``notes`` get the reason for each other one."""
    reasons = {name: BACKENDS[name].refusal(shape) for name in names}
    notes += [f"{name} is left out: {reason}" for name, reason in reasons.items() if reason]
    return tuple(name for name, reason in reasons.items() if not reason)


def m4_engine(
    args: Namespace,
    backend: str,
    *,
    max_model_len: int,
    max_num_seqs: int,
    pool_tokens: int,
    graphs: bool = True,
) -> M4Engine:
    """An engine of this stage over a stated pool, so that nothing depends on what is free.

    Args:
        args: The benchmark's command line.
        backend: Name of the attention backend; it chooses the block size.
        max_model_len: Longest sequence.
        max_num_seqs: Sequences at a time.
        pool_tokens: Places of the KV pool, rounded up to whole blocks.
        graphs: Whether steps may be recorded; backends that cannot be never are.
    """
    return M4Engine(
        args.model,
        dtype=args.dtype,
        device=args.device,
        attention_backend=backend,
        enforce_eager=not graphs,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        num_blocks=-(-pool_tokens // BACKENDS[backend].default_block_size),
    )


def m3_engine(
    args: Namespace, *, max_model_len: int, max_num_seqs: int, pool_tokens: int
) -> M3Engine:
    """The stage below, with the same limits; arguments as :func:`m4_engine`."""
    return M3Engine(
        args.model,
        dtype=args.dtype,
        device=args.device,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        num_blocks=-(-pool_tokens // DEFAULT_BLOCK_SIZE),
    )


def labels_of(engine: Engine) -> Labels:
    """What sets an engine's rows apart: stage, backend, tokens per block, graphs or not."""
    if isinstance(engine, M4Engine):
        runner = engine.runner
        backend, graphs = runner.backend.name, runner.graphs is not None
    else:
        backend, graphs = "paged", False
    size = engine.runner.cache.block_size
    return {"engine": engine.stage, "backend": backend, "block_size": size, "graphs": graphs}


def name_of(engine: Engine) -> str:
    """The labels in a few words, as a key: ``m4_flash triton 16 graphs``."""
    labels = labels_of(engine)
    graphs = "graphs" if labels["graphs"] else "eager"
    return f"{labels['engine']} {labels['backend']} {labels['block_size']} {graphs}"


def release(device: str) -> None:
    """Give freed memory back to the device, so that what is taken next is seen to be taken."""
    gc.collect()
    gpu = device.startswith("cuda")
    if gpu:  # gpu-only: m4_flash/tests/test_benchmarks.py::test_latency_on_a_gpu
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError, TypeError):  # a C library without it
        ctypes.CDLL(None).malloc_trim(0)
