"""What a model costs, computed from its architecture: parameters, bytes, FLOPs, KV.

Every function takes a :class:`~common.model_config.ModelConfig` and plain counts, and returns a
plain number: bytes are bytes, FLOPs count a multiply and an add as two. The values for Qwen3-0.6B
are named in :mod:`common.qwen3`; devices and step times are in :mod:`common.devices`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from common.errors import ConfigError
from common.model_config import DTYPE_BYTES, ModelConfig


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters by component, over all layers. A tied ``lm_head`` has none of its own.

    Attributes:
        embedding: The token embedding.
        qkv: Query, key and value projections, biases included.
        attention_output: Output projections, biases included.
        mlp: Gate, up and down projections, biases included.
        norms: Two RMSNorms a layer, QK-norms where the family has them, and the final norm.
        lm_head: The output matrix where it is not the embedding.
    """

    embedding: int
    qkv: int
    attention_output: int
    mlp: int
    norms: int
    lm_head: int

    @property
    def attention(self) -> int:
        """All four attention projections."""
        return self.qkv + self.attention_output

    @property
    def linear(self) -> int:
        """Every projection inside the layers: what a decode step multiplies and GPTQ quantises."""
        return self.attention + self.mlp

    @property
    def total(self) -> int:
        """All parameters, each counted once."""
        return self.embedding + self.linear + self.norms + self.lm_head


def parameter_counts(config: ModelConfig) -> ParameterCounts:
    """Count every parameter of the model by component."""
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_layers
    qkv_out = config.q_size + 2 * config.kv_size
    qkv = hidden * qkv_out + (qkv_out if config.qkv_bias else 0)
    output = config.q_size * hidden + (hidden if config.o_bias else 0)
    mlp = 3 * hidden * inner + (2 * inner + hidden if config.mlp_bias else 0)
    norms = 2 * hidden + (2 * config.head_dim if config.qk_norm else 0)
    embedding = config.vocab_size * hidden
    return ParameterCounts(
        embedding=embedding,
        qkv=layers * qkv,
        attention_output=layers * output,
        mlp=layers * mlp,
        norms=layers * norms + hidden,
        lm_head=0 if config.tie_word_embeddings else embedding,
    )


def weight_bytes(config: ModelConfig, dtype: str | None = None) -> int:
    """Bytes of all parameters in ``dtype`` (the stored one by default)."""
    return parameter_counts(config).total * DTYPE_BYTES[dtype or config.dtype]


def kv_bytes(config: ModelConfig, num_tokens: int = 1, dtype: str | None = None) -> int:
    """Bytes of K and V for ``num_tokens`` tokens: ``2 · layers · kv_heads · head_dim · b`` each."""
    return num_tokens * config.kv_spec(dtype).bytes_per_token


def kv_bytes_with_heads(config: ModelConfig, num_kv_heads: int, dtype: str | None = None) -> int:
    """Bytes of KV per token if the model had another number of KV heads.

    ``num_kv_heads = config.num_heads`` is what plain multi-head attention would need, 1 is
    multi-query attention.
    """
    return kv_bytes(config, 1, dtype) * num_kv_heads // config.num_kv_heads


def kv_crossover_tokens(config: ModelConfig, dtype: str | None = None) -> int:
    """Tokens whose KV fits into as many bytes as the weights: one more, and KV overtakes them."""
    return weight_bytes(config, dtype) // kv_bytes(config, 1, dtype)


def linear_flops_per_token(config: ModelConfig) -> int:
    """FLOPs of the projections of all layers, for one token: two per weight.

    Biases, norms, rotations and activations are left out: together under one percent.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    weights = hidden * (2 * config.q_size + 2 * config.kv_size) + 3 * hidden * inner
    return 2 * config.num_layers * weights


def lm_head_flops_per_row(config: ModelConfig) -> int:
    """FLOPs of the logits of one sampled row."""
    return 2 * config.vocab_size * config.hidden_size


def attention_flops_per_token(config: ModelConfig, context: int = 1) -> int:
    """FLOPs of the scores and the weighted sum for one token that attends to ``context`` tokens.

    Two products of ``head_dim · context`` per query head and layer. Grouped KV heads change the
    bytes, not this number.
    """
    return 4 * config.num_layers * config.q_size * context


def prefill_attention_flops(config: ModelConfig, length: int) -> int:
    """FLOPs of causal attention over a prompt: half of the square, the diagonal's half rounded off.

    A kernel that skips what lies above the diagonal computes about this much; a naive one computes
    twice as much.
    """
    return attention_flops_per_token(config, length) * length // 2


def prefill_flops(config: ModelConfig, length: int) -> int:
    """FLOPs of a prompt: projections and causal attention, logits left out (one row)."""
    return length * linear_flops_per_token(config) + prefill_attention_flops(config, length)


def prefill_half_length(config: ModelConfig) -> float:
    """The prompt length at which attention is half of a prefill's FLOPs; Qwen3-0.6B: 7,680."""
    return 2 * linear_flops_per_token(config) / attention_flops_per_token(config)


def prefill_attention_share(config: ModelConfig, length: int) -> float:
    """Attention's share of a prefill's FLOPs, ``length / (length + half_length)``."""
    return length / (length + prefill_half_length(config))


def decode_bytes(
    config: ModelConfig, batch: int = 1, context: int = 0, dtype: str | None = None
) -> int:
    """Bytes that one decode step must read: all weights once, and each sequence's KV.

    A tied embedding is read once, as ``lm_head``; the rows it gives as embedding are negligible.
    An untied one is counted whole although only ``batch`` rows of it are read.
    """
    return weight_bytes(config, dtype) + batch * kv_bytes(config, context, dtype)


def step_bytes(
    config: ModelConfig,
    slices: Iterable[tuple[int, int]],
    dtype: str | None = None,
    weights: int | None = None,
) -> int:
    """Bytes that a step of any mix must read: all weights once, and each sequence's KV.

    Args:
        config: The architecture.
        slices: (start, end) of the positions computed, per sequence.
        dtype: Element type of weights and KV (the stored one by default).
        weights: Bytes of the weights where they are not all of ``dtype``.
    """
    held = weight_bytes(config, dtype) if weights is None else weights
    return held + kv_bytes(config, sum(end for _, end in slices), dtype)


def step_flops(config: ModelConfig, slices: Iterable[tuple[int, int]]) -> int:
    """FLOPs of a step of any mix: projections, causal attention, a row of logits per sequence.

    Args:
        config: The architecture.
        slices: (start, end) of the positions computed, per sequence.
    """
    spans = list(slices)
    tokens = sum(end - start for start, end in spans)
    pairs = sum((end - start) * (start + end + 1) for start, end in spans) // 2
    return (
        tokens * linear_flops_per_token(config)
        + pairs * attention_flops_per_token(config)
        + len(spans) * lm_head_flops_per_row(config)
    )


def token_forwards(prompt: int, new_tokens: int, use_cache: bool) -> int:
    """Tokens pushed through the layers to generate ``new_tokens`` after ``prompt`` tokens.

    With a cache: the prompt once, then one token per step (the last sampled token is never
    computed). Without: the whole sequence again at every step.
    """
    if use_cache:
        return prompt + new_tokens - 1
    return new_tokens * prompt + new_tokens * (new_tokens - 1) // 2


def static_batch_utilization(output_lengths: Sequence[int]) -> float:
    """Share of useful slots in a batch that runs until its longest sequence has finished."""
    return sum(output_lengths) / (len(output_lengths) * max(output_lengths))


def block_utilization(length: int, block_size: int = 16) -> float:
    """Share of allocated KV slots that hold tokens, with the last block half empty on average."""
    return length / (length + (block_size - 1) / 2)


def naive_score_bytes(config: ModelConfig, length: int, element_bytes: int = 2) -> int:
    """Bytes of one layer's full score matrix ``[num_heads, length, length]``."""
    return config.num_heads * length * length * element_bytes


def num_chunks(length: int, chunk: int) -> int:
    """Steps that a prompt takes in chunks."""
    return math.ceil(length / chunk)


def chunk_weight_bytes(config: ModelConfig, length: int, chunk: int) -> int:
    """Weight bytes read by a chunked prefill: all of them once per chunk.

    The output matrix is counted with every chunk, although only the last one needs logits.
    """
    return num_chunks(length, chunk) * weight_bytes(config)


def chunk_kv_reread_bytes(config: ModelConfig, length: int, chunk: int) -> int:
    """KV bytes of earlier chunks that later chunks read again, about ``length² / 2·chunk`` tokens.

    Chunk i reads the ``i · chunk`` tokens before it, which an unchunked prefill never re-reads.
    """
    count = num_chunks(length, chunk)
    return kv_bytes(config, chunk * count * (count - 1) // 2)


def gptq_bits_per_weight(group_size: int, bits: int = 4, scale_bits: int = 16) -> float:
    """Bits of one quantised weight: its own, and its share of the group's scale and zero point.

    Args:
        group_size: Input channels that share one scale.
        bits: Bits of a weight and of a zero point.
        scale_bits: Bits of a scale.

    Raises:
        ConfigError: ``group_size`` is below 1.
    """
    if group_size < 1:
        raise ConfigError(f"group_size must be at least 1, got {group_size}")
    return bits + (scale_bits + bits) / group_size


def gptq_linear_bytes(config: ModelConfig, group_size: int = 128, bits: int = 4) -> int:
    """Bytes of all projections inside the layers after quantisation (``g_idx`` left out)."""
    return round(parameter_counts(config).linear * gptq_bits_per_weight(group_size, bits) / 8)


def gptq_model_bytes(config: ModelConfig, group_size: int = 128, bits: int = 4) -> int:
    """Bytes of the whole quantised model: embedding, ``lm_head`` and norms keep their dtype."""
    counts = parameter_counts(config)
    kept = (counts.total - counts.linear) * DTYPE_BYTES[config.dtype]
    return kept + gptq_linear_bytes(config, group_size, bits)
