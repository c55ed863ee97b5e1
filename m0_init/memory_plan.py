"""Where a device's memory goes: weights, the peak of a step, and KV with what is left.

An engine decides all of this before its first request, because KV memory is taken once and never
grows. The plan is arithmetic: nothing is loaded and no tensor library is needed. vLLM measures the
activation peak with a dummy run instead (``v1/worker/gpu_worker.py`` at 0.33.0,
``determine_available_memory``), since its kernels' workspaces follow no formula.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.devices import format_bytes
from common.errors import ConfigError, OutOfMemoryError
from common.model_config import DTYPE_BYTES, ModelConfig
from common.model_costs import kv_bytes, parameter_counts, weight_bytes


@dataclass(frozen=True)
class MemoryPlan:
    """One device's memory, divided. Sizes are bytes.

    Attributes:
        memory_bytes: Memory of the device.
        budget_bytes: What the engine may use of it.
        weight_bytes: All parameters.
        rope_bytes: The table of cosines and sines, float32.
        activation_bytes: Peak of everything that lives only during a step.
        kv_bytes_per_token: K and V of one token over all layers.
        block_size: Tokens per KV block.
        num_blocks: Blocks that fit in what is left.
    """

    memory_bytes: int
    budget_bytes: int
    weight_bytes: int
    rope_bytes: int
    activation_bytes: int
    kv_bytes_per_token: int
    block_size: int
    num_blocks: int

    @property
    def num_tokens(self) -> int:
        """Tokens whose K and V the pool holds."""
        return self.num_blocks * self.block_size

    @property
    def kv_pool_bytes(self) -> int:
        """Bytes of the KV pool, whole blocks only."""
        return self.num_tokens * self.kv_bytes_per_token

    @property
    def unused_bytes(self) -> int:
        """What nobody takes: the device's share outside the budget, and less than one block."""
        taken = self.weight_bytes + self.rope_bytes + self.activation_bytes + self.kv_pool_bytes
        return self.memory_bytes - taken

    def max_sequences(self, length: int) -> int:
        """Sequences of ``length`` tokens that fit at the same time, in whole blocks."""
        return self.num_blocks // -(-length // self.block_size)

    def parts(self) -> dict[str, int]:
        """Name to bytes, in the order of a waterfall; they add up to ``memory_bytes``."""
        return {
            "weights": self.weight_bytes,
            "rope table": self.rope_bytes,
            "activations": self.activation_bytes,
            "KV pool": self.kv_pool_bytes,
            "not used": self.unused_bytes,
        }


def plan_memory(
    config: ModelConfig,
    memory_bytes: int,
    *,
    free_bytes: int | None = None,
    utilization: float = 0.9,
    dtype: str | None = None,
    max_model_len: int | None = None,
    num_batched_tokens: int = 2048,
    num_logit_rows: int = 1,
    activation_bytes: int | None = None,
    block_size: int = 16,
) -> MemoryPlan:
    """Divide a device's memory.

    Args:
        config: The architecture.
        memory_bytes: Memory of the device.
        free_bytes: What other programs leave of it; all by default.
        utilization: Share of the device's memory that the engine may use.
        dtype: Element type of weights, activations and KV; the stored one by default.
        max_model_len: Positions of the rope table; the model's own by default.
        num_batched_tokens: Largest number of tokens in one step.
        num_logit_rows: Largest number of tokens sampled in one step.
        activation_bytes: A measured peak, instead of :func:`activation_peak`.
        block_size: Tokens per KV block.

    Raises:
        ConfigError: ``utilization`` is outside (0, 1], or a count is below one.
        OutOfMemoryError: Not one KV block fits; the message holds what is needed and what there is.
    """
    if not 0.0 < utilization <= 1.0:
        raise ConfigError(f"utilization must be in (0, 1], got {utilization!r}")
    if min(num_batched_tokens, num_logit_rows, block_size) < 1:
        raise ConfigError(
            "num_batched_tokens, num_logit_rows and block_size must be at least 1, "
            f"got {num_batched_tokens}, {num_logit_rows} and {block_size}"
        )
    share = int(memory_bytes * utilization)
    budget = share if free_bytes is None else min(share, free_bytes)
    weights, block = weight_bytes(config, dtype), kv_bytes(config, block_size, dtype)
    rope = rope_table_bytes(config, max_model_len)
    peak = activation_bytes
    if peak is None:
        peak = activation_peak(config, num_batched_tokens, num_logit_rows, dtype)
    num_blocks = (budget - weights - rope - peak) // block
    if num_blocks < 1:
        parts = {"weights": weights, "rope table": rope, "activations": peak, "a KV block": block}
        listed = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items())
        raise OutOfMemoryError(
            f"{format_bytes(sum(parts.values()))} needed ({listed}), and the budget is "
            f"{format_bytes(budget)} of {format_bytes(memory_bytes)}"
        )
    return MemoryPlan(
        memory_bytes=memory_bytes,
        budget_bytes=budget,
        weight_bytes=weights,
        rope_bytes=rope,
        activation_bytes=peak,
        kv_bytes_per_token=kv_bytes(config, 1, dtype),
        block_size=block_size,
        num_blocks=num_blocks,
    )


def rope_table_bytes(config: ModelConfig, max_model_len: int | None = None) -> int:
    """Bytes of the cosine and sine table: ``positions · 2 · head_dim`` float32 numbers."""
    return (max_model_len or config.max_position_embeddings) * _rope_row(config)


def activation_peak(
    config: ModelConfig, num_tokens: int, num_logit_rows: int = 1, dtype: str | None = None
) -> int:
    """Most bytes that live at the same time during one step with the plain PyTorch ops.

    Either a layer holds most (it is the same for every layer), or the logits do, when all that is
    left of the layers is the final hidden state::

        layer  = tokens · max(attention, mlp)
        logits = tokens · hidden · b + rows · vocab · (b + 8)

    with b bytes per element. The logits are followed by a float32 copy and its probabilities. The
    attention kernel's own workspace (the scores of naive attention, for one) is not in it.

    Args:
        config: The architecture.
        num_tokens: Tokens in the step.
        num_logit_rows: Tokens of them that are sampled.
        dtype: Element type; the stored one by default.
    """
    b = DTYPE_BYTES[dtype or config.dtype]
    layer = num_tokens * max(_attention_width(config, b), _mlp_width(config, b))
    head = num_tokens * config.hidden_size * b + num_logit_rows * config.vocab_size * (b + 8)
    return max(layer, head)


def parts_of_weights(config: ModelConfig, dtype: str | None = None) -> dict[str, int]:
    """Bytes of the parameters by component, for a waterfall that shows them apart."""
    counts, b = parameter_counts(config), DTYPE_BYTES[dtype or config.dtype]
    named = {
        "embedding": counts.embedding,
        "attention": counts.attention,
        "MLP": counts.mlp,
        "norms": counts.norms,
        "lm_head": counts.lm_head,
    }
    return {name: count * b for name, count in named.items() if count}


def _attention_width(config: ModelConfig, b: int) -> int:
    """Bytes per token at the fullest moment before attention: while q and k are rotated.

    The stream, its two addends and the normed input; q, k and v; the normed q and k; the row of
    the rope table; and for q and k side by side: a copy, the same rolled by half a head, and two
    float32 results.
    """
    rotated = config.q_size + config.kv_size
    stream = 4 * config.hidden_size * b
    projected = (rotated + config.kv_size) * b
    normed = rotated * b if config.qk_norm else 0
    return stream + projected + normed + rotated * (2 * b + 8) + _rope_row(config)


def _mlp_width(config: ModelConfig, b: int) -> int:
    """Bytes per token inside the MLP: gate and up, ``silu(gate)``, the product, and the stream."""
    return (4 * config.hidden_size + 4 * config.intermediate_size) * b + _rope_row(config)


def _rope_row(config: ModelConfig) -> int:
    """Bytes of one position's cosines and sines, float32."""
    return 8 * config.head_dim
