"""What an attention backend is: one interface, and the one description of a step that it reads.

The runner builds an :class:`AttentionMetadata` once per step and all layers share it. Keys and
values are in the cache before a backend is asked: the model's fused operation stores them through
:meth:`BackendAttend.kv_sink`. So a backend only reads, and a sequence may read what another one
wrote in the same step::

    tokens         | a | b b b b b | . . |        num_tokens = 8, two of them padding
    cu_seqlens_q   0   1           6 6 6          a decodes, b is a chunk, two padding sequences
    seq_lens         40      21    0 0            context with the new tokens

Nothing that changes from step to step is a Python number on the path of a backend that can be
captured in a CUDA graph: shapes are the bucket's, contents are on the device. As in vLLM 0.33.0,
``v1/attention/backend.py`` and ``v1/attention/backends/flash_attn.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from common.model.interfaces import KVSink
from m3_paged.kv_cache import PagedKVCache


@dataclass(frozen=True)
class AttentionShape:
    """What a backend must be able to serve.

    Attributes:
        device: Where the model runs.
        dtype: Element type of q, k, v and the cache.
        num_heads: Query heads.
        num_kv_heads: KV heads; divides ``num_heads``.
        head_dim: Width of a head.
        block_size: Tokens per KV block, or None where the backend may choose.
    """

    device: torch.device
    dtype: torch.dtype
    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int | None = None


@dataclass(frozen=True)
class HostLengths:
    """The real sequences of a step, as Python numbers: for backends that loop on the host.

    Attributes:
        query_lens: New tokens of each sequence, those with exactly one first.
        context_lens: Context of each sequence with its new tokens.
    """

    query_lens: tuple[int, ...]
    context_lens: tuple[int, ...]

    def __post_init__(self) -> None:
        """A slice is a part of its context, and decodes come first."""
        pairs = zip(self.query_lens, self.context_lens, strict=True)
        assert all(0 < query <= context for query, context in pairs)
        assert all(length == 1 for length in self.query_lens[: self.num_decodes])

    @property
    def num_decodes(self) -> int:
        """Leading sequences with exactly one new token."""
        return sum(length == 1 for length in self.query_lens)

    @property
    def num_tokens(self) -> int:
        """New tokens of all sequences."""
        return sum(self.query_lens)


@dataclass(frozen=True)
class AttentionMetadata:
    """One step on the device, shared by all layers. Padding comes last.

    Attributes:
        slot_mapping: ``[num_tokens]`` int64, −1 for padding: where each token's K and V go.
        cu_seqlens_q: ``[num_seqs + 1]`` int32: first token of each sequence's slice.
        seq_lens: ``[num_seqs]`` int32: context with the new tokens; 0 for padding.
        block_tables: ``[num_seqs, max_blocks]`` int32; entries behind a sequence's own are
            arbitrary.
        max_query_len: No slice is longer. 1 says that the step only decodes.
        max_seq_len: No context is longer.
        host: The lengths as Python numbers; None inside a captured graph, which must not know
            them.
    """

    slot_mapping: Tensor
    cu_seqlens_q: Tensor
    seq_lens: Tensor
    block_tables: Tensor
    max_query_len: int
    max_seq_len: int
    host: HostLengths | None

    def __post_init__(self) -> None:
        """The parts describe the same step."""
        num_seqs = len(self.seq_lens)
        assert self.cu_seqlens_q.shape == (num_seqs + 1,)
        assert self.block_tables.shape[0] == num_seqs
        assert self.max_query_len >= 1
        assert self.host is None or len(self.host.query_lens) <= num_seqs
        assert self.host is None or self.host.num_tokens <= len(self.slot_mapping)

    @property
    def num_tokens(self) -> int:
        """Tokens of the step, padding included."""
        return len(self.slot_mapping)

    @property
    def num_seqs(self) -> int:
        """Sequences of the step, padding included."""
        return len(self.seq_lens)


class AttentionBackend(ABC):
    """Attention of a whole step in one layer, over the blocks of the KV cache.

    Attributes:
        name: What ``attention_backend=`` calls it.
        capturable: Whether :meth:`forward` may run inside a CUDA graph: it needs no ``host``
            lengths, allocates nothing that depends on contents, and never waits for the device.
        default_block_size: Tokens per KV block where the user does not say.
    """

    name: ClassVar[str]
    capturable: ClassVar[bool] = False
    default_block_size: ClassVar[int] = 16

    def __init__(self, cache: PagedKVCache, shape: AttentionShape, *, pdl: bool = True) -> None:
        """Bind the cache.

        Args:
            cache: KV blocks on the model's device.
            shape: What :meth:`refusal` accepted.
            pdl: Whether kernels of our own may launch programmatically, where the device can.
        """
        self.cache, self.shape, self.pdl = cache, shape, pdl
        self.scale = shape.head_dim**-0.5

    @classmethod
    def refusal(cls, shape: AttentionShape) -> str | None:  # noqa: ARG003 (some serve everything)
        """Why the backend cannot serve ``shape``, in a few words; None where it can."""
        return None

    @abstractmethod
    def forward(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, metadata: AttentionMetadata
    ) -> Tensor:
        """Attend in one layer; K and V of the step are in the cache already.

        Args:
            layer: Index of the decoder layer.
            q: ``[num_tokens, num_heads, head_dim]``, rotated.
            k: ``[num_tokens, num_kv_heads, head_dim]``, rotated: the step's own keys.
            v: Same shape as ``k``.
            metadata: The step.

        Returns:
            ``[num_tokens, num_heads, head_dim]``; rows of padding hold finite numbers.
        """

    @classmethod
    def prompt_attention(cls, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend within one prompt whose past is empty, without a cache: the profiling pass.

        Args:
            q: ``[num_tokens, num_heads, head_dim]``.
            k: ``[num_tokens, num_kv_heads, head_dim]``.
            v: Same shape as ``k``.

        Returns:
            ``[num_tokens, num_heads, head_dim]``.
        """
        # [1, heads, num_tokens, head_dim] each
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return out[0].transpose(0, 1)

    def layer_cache(self, layer: int) -> tuple[Tensor, Tensor]:
        """``(k_cache, v_cache)`` of a layer: ``[num_blocks, block_size, kv_heads, head_dim]``."""
        return self.cache.kv[0, layer], self.cache.kv[1, layer]


class BackendAttend:
    """The model's :class:`common.model.interfaces.Attend` over a backend, for one step."""

    def __init__(self, backend: AttentionBackend, metadata: AttentionMetadata) -> None:
        """Bind one forward pass."""
        self.backend, self.metadata = backend, metadata

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``[num_tokens, num_heads, head_dim]``, flat."""
        return self.backend.forward(layer, q, k, v, self.metadata)

    def kv_sink(self, layer: int) -> KVSink:
        """The cache itself: the op that rotates k stores it, and v, before anybody attends."""
        return self.backend.cache.sink(layer, self.metadata.slot_mapping)


class PromptAttend:
    """One prompt without a past and without a cache: the pass that a pool is sized with."""

    def __init__(self, backend: type[AttentionBackend]) -> None:
        """Attend as ``backend`` would for a first chunk."""
        self.backend = backend

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``[num_tokens, num_heads, head_dim]``."""
        return self.backend.prompt_attention(q, k, v)

    def kv_sink(self, layer: int) -> KVSink | None:
        """None: nothing is stored."""
        return None
