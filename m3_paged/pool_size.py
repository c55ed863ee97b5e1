"""How many KV blocks fit: what the device has, less what the model and one step need."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from common.errors import OutOfMemoryError
from common.model.interfaces import Attend
from common.model.transformer import Transformer
from m0_init.device_memory import DeviceMemory, device_memory


@dataclass(frozen=True)
class PoolSize:
    """The memory that is left for KV.

    Attributes:
        num_bytes: Bytes for the pool.
        reason: One line that says where the figure comes from.
    """

    num_bytes: int
    reason: str


def measure_pool(
    model: Transformer, utilization: float, longest_step: int, attend: Attend
) -> PoolSize:
    """Measure what is left for KV on the model's device.

    On a GPU a step of ``longest_step`` tokens is run and its peak read off the allocator, as vLLM
    does (0.33.0, ``v1/worker/gpu_worker.py``): ``total · utilization − others − peak``. On a CPU
    it is a share of the memory that is available now.

    Args:
        model: Loaded on its device.
        utilization: Share of the device's memory to use, in (0, 1].
        longest_step: Tokens of the longest prompt that one step computes.
        attend: Attention of that step.

    Raises:
        OutOfMemoryError: The step itself does not fit, or leaves nothing.
    """
    gpu = model.device.type != "cpu"
    if gpu:  # gpu-only: m3_paged/tests/test_gpu.py::test_pool_fills_what_the_profile_leaves
        peak = _profile(model, longest_step, attend)
        reserved = torch.cuda.memory_reserved(model.device)
        memory = device_memory(str(model.device))
        return left_for_kv(memory, reserved, peak, utilization, longest_step)
    memory = device_memory(str(model.device))
    size = int(memory.free_bytes * utilization)
    return PoolSize(size, f"{utilization:.0%} of {_gib(memory.free_bytes)} available")


def left_for_kv(
    memory: DeviceMemory, reserved: int, peak: int, utilization: float, longest_step: int
) -> PoolSize:
    """What a GPU has left for KV: ``total · utilization − others − peak``.

    Args:
        memory: The GPU's, read while this process holds ``reserved`` bytes.
        reserved: Bytes that this process's allocator holds; what else is in use belongs to others.
        peak: Most bytes that the profiled step used, weights included.
        utilization: Share of the device's memory to use, in (0, 1].
        longest_step: Tokens of the profiled step, for the reason.

    Raises:
        OutOfMemoryError: Nothing is left.
    """
    others = memory.total_bytes - memory.free_bytes - reserved
    size = int(memory.total_bytes * utilization) - others - peak
    reason = (
        f"{utilization:.0%} of {_gib(memory.total_bytes)} less {_gib(peak)} for weights and a "
        f"step of {longest_step} tokens, less {_gib(others)} held by others"
    )
    if size <= 0:
        raise OutOfMemoryError(f"nothing is left for KV: {reason}")
    return PoolSize(size, reason)


@torch.inference_mode()
def _profile(  # gpu-only: m3_paged/tests/test_gpu.py::test_pool_fills_what_the_profile_leaves
    model: Transformer, num_tokens: int, attend: Attend
) -> int:
    """Peak bytes of a step of one prompt of ``num_tokens``, weights included.

    Raises:
        OutOfMemoryError: It does not fit.
    """
    device = model.device
    torch.cuda.reset_peak_memory_stats(device)
    try:
        ids = torch.zeros(num_tokens, dtype=torch.int64, device=device)
        hidden = model(ids, torch.arange(num_tokens, device=device), attend)
        model.logits(hidden[-1:])
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"a step of {num_tokens} tokens does not fit {device}; pass a smaller "
            f"max_num_batched_tokens or max_model_len"
        ) from error
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.empty_cache()
    return peak


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
