"""Devices, and the floors they put under a step: rooflines from bytes, FLOPs and bandwidth.

A spec sheet says what the wires could carry; a copy kernel says what arrives. The two differ by
about a tenth, so they are kept in separate fields and every quoted floor says which one it used.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import ConfigError, OutOfMemoryError
from common.model_config import ModelConfig
from common.model_costs import (
    decode_bytes,
    gptq_bits_per_weight,
    kv_bytes,
    prefill_flops,
    step_bytes,
    step_flops,
    weight_bytes,
)

GIB = 1024**3


@dataclass(frozen=True)
class DeviceSpec:
    """One accelerator.

    Attributes:
        name: What people call it.
        memory_bytes: Memory as sold, in bytes.
        spec_bandwidth: Memory bandwidth of the vendor's data sheet, bytes per second.
        spec_flops: Dense bfloat16 tensor throughput of the data sheet, FLOP per second.
        measured_bandwidth: Device-to-device copy, bytes read plus written per second, measured on
            a machine of this project; None where none was at hand.
    """

    name: str
    memory_bytes: int
    spec_bandwidth: float
    spec_flops: float
    measured_bandwidth: float | None = None

    @property
    def ridge(self) -> float:
        """FLOPs per byte at which the data sheet's two limits meet.

        A bfloat16 matrix product over B tokens does about B FLOPs per weight byte, so it is also
        the number of tokens per step from which projections stop being bandwidth-bound.
        """
        return self.spec_flops / self.spec_bandwidth

    def bandwidth(self, measured: bool = False) -> float:
        """Bytes per second, from the data sheet or as measured.

        Raises:
            ConfigError: A measured value is asked for and there is none.
        """
        if not measured:
            return self.spec_bandwidth
        if self.measured_bandwidth is None:
            raise ConfigError(f"no measured bandwidth for {self.name}")
        return self.measured_bandwidth


A100_80GB = DeviceSpec("A100 80GB SXM", 80 * GIB, 2.039e12, 312e12)
H100_80GB = DeviceSpec("H100 80GB SXM", 80 * GIB, 3.35e12, 989e12, measured_bandwidth=3.0e12)
RTX_4090 = DeviceSpec("RTX 4090", 24 * GIB, 1.008e12, 165.2e12)
DEVICES: dict[str, DeviceSpec] = {
    "a100": A100_80GB,
    "h100": H100_80GB,
    "rtx4090": RTX_4090,
}


def decode_floor_seconds(
    config: ModelConfig, bandwidth: float, batch: int = 1, context: int = 0
) -> float:
    """Least time of one decode step: its bytes at full bandwidth. No kernel can beat it.

    Args:
        config: The architecture.
        bandwidth: Bytes per second.
        batch: Sequences in the step.
        context: Tokens each of them attends to.
    """
    return decode_bytes(config, batch, context) / bandwidth


def decode_ceiling_tokens_per_second(
    config: ModelConfig, bandwidth: float, batch: int = 1, context: int = 0
) -> float:
    """Most tokens per second that decoding can reach: ``batch / floor``."""
    return batch / decode_floor_seconds(config, bandwidth, batch, context)


def decode_saturation_tokens_per_second(
    config: ModelConfig, bandwidth: float, context: int
) -> float:
    """Tokens per second that no batch can exceed: every token reads its own context's KV."""
    return bandwidth / kv_bytes(config, context)


def kv_equals_weights_batch(config: ModelConfig, context: int) -> float:
    """Batch at which a decode step reads as many KV bytes as weight bytes."""
    return weight_bytes(config) / kv_bytes(config, context)


def prefill_floor_seconds(config: ModelConfig, flops: float, length: int) -> float:
    """Least time of a prompt's forward pass at full tensor throughput (``flops`` per second)."""
    return prefill_flops(config, length) / flops


@dataclass(frozen=True)
class ChunkedPrefill:
    """A long prompt that lands on streams which decode, at the floor of every step.

    Attributes:
        num_steps: Steps until its first token.
        gap: The longest of them, which every stream waits between two tokens.
        ttft: All of them.
        undisturbed: A step of the streams alone.
    """

    num_steps: int
    gap: float
    ttft: float
    undisturbed: float


def step_floor_seconds(
    config: ModelConfig, bandwidth: float, flops: float, slices: list[tuple[int, int]]
) -> float:
    """Least time of a step of any mix: its bytes or its FLOPs, whichever takes longer.

    Args:
        config: The architecture.
        bandwidth: Bytes per second.
        flops: FLOP per second.
        slices: (start, end) of the positions computed, per sequence.
    """
    return max(step_bytes(config, slices) / bandwidth, step_flops(config, slices) / flops)


def chunked_prefill(
    config: ModelConfig,
    bandwidth: float,
    flops: float,
    *,
    prompt: int,
    budget: int,
    streams: int = 0,
    context: int = 0,
    overhead: float = 0.0,
) -> ChunkedPrefill:
    """What a token budget costs: the gap of the streams and the first token of the prompt.

    Args:
        config: The architecture.
        bandwidth: Bytes per second.
        flops: FLOP per second.
        prompt: Tokens of the prompt.
        budget: Tokens per step; each stream takes one of them.
        streams: Sequences that decode.
        context: Tokens that each of them has; its growth meanwhile is left out.
        overhead: Seconds that every step takes on top: launches, planning.

    Raises:
        ConfigError: The streams leave no token for the prompt.
    """
    room = budget - streams
    if room < 1:
        raise ConfigError(f"a budget of {budget} leaves no token beside {streams} streams")
    decodes = [(context, context + 1)] * streams
    times = [
        overhead
        + step_floor_seconds(
            config, bandwidth, flops, [(begin, min(begin + room, prompt)), *decodes]
        )
        for begin in range(0, prompt, room)
    ]
    alone = overhead + step_floor_seconds(config, bandwidth, flops, decodes) if streams else 0.0
    return ChunkedPrefill(len(times), max(times), sum(times), alone)


def gptq_linear_speedup(group_size: int = 128, bits: int = 4) -> float:
    """Largest gain of a bandwidth-bound quantised projection over a bfloat16 one: 16 / its bits."""
    return 16 / gptq_bits_per_weight(group_size, bits)


def gptq_full_gain_tokens(ridge: float, group_size: int = 128, bits: int = 4) -> float:
    """Tokens per step up to which that gain holds; beyond, the product is compute-bound."""
    return ridge / gptq_linear_speedup(group_size, bits)


def kv_pool_bytes(
    config: ModelConfig,
    memory_bytes: int,
    utilization: float = 0.9,
    activation_bytes: int = GIB,
    dtype: str | None = None,
) -> int:
    """Bytes left for KV: the engine's share of the memory, less weights and activations.

    Args:
        config: The architecture.
        memory_bytes: Memory of the device.
        utilization: Share of it that the engine may use.
        activation_bytes: Peak of everything that lives only during a step.
        dtype: Element type of weights and KV (the stored one by default).

    Raises:
        OutOfMemoryError: Nothing is left.
    """
    budget = int(memory_bytes * utilization)
    weights = weight_bytes(config, dtype)
    if budget <= weights + activation_bytes:
        raise OutOfMemoryError(
            f"{format_bytes(weights + activation_bytes)} of weights and activations leave no room "
            f"for KV in {format_bytes(budget)} ({utilization:g} of {format_bytes(memory_bytes)})"
        )
    return budget - weights - activation_bytes


def kv_pool_tokens(
    config: ModelConfig,
    memory_bytes: int,
    utilization: float = 0.9,
    activation_bytes: int = GIB,
    block_size: int = 1,
) -> int:
    """Tokens that the pool holds, in whole blocks of ``block_size``.

    Raises:
        OutOfMemoryError: Nothing is left for KV.
    """
    pool = kv_pool_bytes(config, memory_bytes, utilization, activation_bytes)
    return pool // kv_bytes(config, block_size) * block_size


def format_bytes(num_bytes: int) -> str:
    """Bytes as text: MiB below one GiB, GiB from there."""
    if num_bytes < GIB:
        return f"{num_bytes / 1024**2:,.1f} MiB"
    return f"{num_bytes / GIB:.2f} GiB"
