"""How this stage's parts fit together: operations, backend, blocks, rows, sampling, graphs.

Later stages bring a scheduler or a cache manager of their own and take the rest from here.
"""

from __future__ import annotations

import functools

import torch

from common.config import EngineConfig
from common.hub import resolve_model
from common.model.interfaces import LinearFactory, Ops
from common.model.linear import dense_linear_factory
from common.model.ops import TorchOps
from common.model_config import ModelConfig
from m0_init.loader import LoadedModel, MakeLinear, load, resolve_device
from m1_basic.sampler import Sampler
from m3_paged.reserve import longest_sequence, reserve_cache
from m4_flash.backends.base import AttentionBackend, AttentionShape, PromptAttend
from m4_flash.backends.select import select_backend
from m4_flash.cuda_graph import Buckets, Capture, CudaCapture, NullCapture
from m4_flash.devices import has_triton, supports_pdl
from m4_flash.draw import DeviceDraw, Draw, HostDraw
from m4_flash.input_batch import InputBatch
from m4_flash.linear import small_batch_factory, suit_small_batches
from m4_flash.runner import FlashRunner
from m4_flash.sampler import DeviceSampler


def load_fused(config: EngineConfig, linear: MakeLinear | None = None) -> LoadedModel:
    """Read the checkpoint into a decoder with fused operations, where they can run.

    Args:
        config: The engine's options.
        linear: Makes the linear factory; by default this stage's, or with
            ``linear_backend="torch"`` the dense one.

    Raises:
        FoloError: As :func:`m0_init.loader.load`.
    """
    device, pdl = resolve_device(config.device), config.programmatic_launch
    if linear is None and config.linear_backend == "auto":
        folder = resolve_model(config.model)
        # The loader takes a factory as the promise to read quantised weights: this one cannot.
        if ModelConfig.from_pretrained(folder).quantization is None:
            linear = functools.partial(make_linear, pdl=pdl)
    loaded = load(
        config.model,
        dtype=config.dtype,
        device=config.device,
        ops=make_ops(device, pdl=pdl),
        linear=linear,
    )
    if config.linear_backend == "auto" and suits_small_batches(loaded.dtype, device):
        suit_small_batches(loaded.model)
    return loaded


def make_linear(
    _config: ModelConfig, dtype: torch.dtype, device: torch.device, *, pdl: bool = True
) -> LinearFactory:
    """Layers that are faster for few rows, where there are any; dense ones elsewhere."""
    if has_triton(device):  # gpu-only: m4_flash/tests/test_gpu_gemv.py::test_the_engine_takes_them
        from m4_flash.gemv_linear import gemv_factory

        return gemv_factory(dtype, device, pdl=pdl)
    if suits_small_batches(dtype, device):
        return small_batch_factory(dtype, device)
    return dense_linear_factory(dtype, device)


def suits_small_batches(dtype: torch.dtype, device: torch.device) -> bool:
    """Where :mod:`m4_flash.linear` was measured: float32 on a CPU."""
    return device.type == "cpu" and dtype is torch.float32


def make_ops(device: torch.device, *, pdl: bool = True) -> Ops:
    """Triton's on a GPU, plain PyTorch elsewhere."""
    if has_triton(device):  # gpu-only: m4_flash/tests/test_gpu.py::test_picks_triton
        from m4_flash.ops import TritonOps

        return TritonOps(pdl=pdl and supports_pdl(device))
    return TorchOps()


def assemble(
    config: EngineConfig, loaded: LoadedModel, sampler: Sampler, max_model_len: int
) -> FlashRunner:
    """A runner over blocks of the backend's size, its steps recorded where that can be.

    Args:
        config: The engine's options.
        loaded: The model on its device.
        sampler: The reference sampler.
        max_model_len: Longest sequence asked for; ``runner.batch.max_model_len`` is what fits.

    Raises:
        ConfigError: The backend cannot serve this model, or the length does not fit.
        OutOfMemoryError: Not one block fits.
    """
    backend, shape = choose_backend(config, loaded)
    size = config.cache.block_size
    block_size = backend.default_block_size if size == "auto" else size
    cache = reserve_cache(config, loaded, max_model_len, block_size, PromptAttend(backend))
    batch = InputBatch(
        config.scheduler.max_num_seqs,
        longest_sequence(max_model_len, cache),
        block_size,
        loaded.device,
        config.seed,
        use_kernel=has_triton(loaded.device),
        pdl=config.programmatic_launch and supports_pdl(loaded.device),
    )
    attention = backend(cache, shape, pdl=config.programmatic_launch)
    runner = FlashRunner(loaded.model, attention, batch, sampler, make_draw(sampler, batch))
    if backend.capturable and not config.enforce_eager:
        runner.record_graphs(Buckets(batch.num_rows), make_capture(loaded.device))
        gpu = has_triton(loaded.device)
        if gpu:  # gpu-only: m4_flash/tests/test_gpu.py::test_nothing_compiles_while_requests_run
            runner.warm_up()
    return runner


def choose_backend(
    config: EngineConfig, loaded: LoadedModel
) -> tuple[type[AttentionBackend], AttentionShape]:
    """The backend for a model on its device, and what it was asked to serve.

    Raises:
        ConfigError: The one that was asked for cannot.
    """
    size = config.cache.block_size
    shape = AttentionShape(
        device=loaded.device,
        dtype=loaded.dtype,
        num_heads=loaded.config.num_heads,
        num_kv_heads=loaded.config.num_kv_heads,
        head_dim=loaded.config.head_dim,
        block_size=None if size == "auto" else size,
    )
    return select_backend(config.attention_backend, shape), shape


def make_draw(sampler: Sampler, batch: InputBatch) -> Draw:
    """Sampling on the device where it is a GPU, the reference sampler elsewhere."""
    gpu = batch.device.type == "cuda"
    if gpu:  # gpu-only: m4_flash/tests/test_gpu.py::test_greedy_ids_equal_those_of_the_cpu
        return DeviceDraw(
            DeviceSampler(batch.sampling, sampler.eos_token_ids, sampler.token_text), batch
        )
    return HostDraw(sampler, batch)


def make_capture(device: torch.device) -> Capture:
    """CUDA graphs on a GPU, repetition elsewhere (Triton's interpreter, in tests)."""
    gpu = device.type == "cuda"
    if gpu:  # gpu-only: m4_flash/tests/test_gpu.py::test_graphs_equal_eager
        return CudaCapture(device)
    return NullCapture()
