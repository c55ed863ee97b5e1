"""A contiguous KV cache: one preallocated row per layer, long enough for the longest request.

Positions are places: the K and V of token p stand at index p, whatever the request. That is all
the bookkeeping there is, and it is why this cache can hold one sequence only::

    layer 0  K | t0 | t1 | t2 | … | t(n-1) |        reserved, unused        |
                                           num_computed_tokens          max_model_len

M2 gives each sequence such a row; M3 shows how much of it is never used, and replaces it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.errors import OutOfMemoryError
from common.model.interfaces import TORCH_DTYPES
from common.model_config import KVSpec


class ContiguousKVCache:
    """K and V of one sequence, for every layer.

    Attributes:
        kv: ``[2, num_layers, max_len, num_kv_heads, head_dim]``; index 0 is K, 1 is V.
        max_len: Tokens it can hold.
    """

    def __init__(self, spec: KVSpec, max_len: int, device: torch.device | str) -> None:
        """Reserve the memory. On a CPU, untouched pages cost address space only.

        Args:
            spec: Layers, heads, head_dim and dtype.
            max_len: Tokens to hold.
            device: Where it lives.

        Raises:
            OutOfMemoryError: The device refuses; the message has the size.
        """
        shape = (2, spec.num_layers, max_len, spec.num_kv_heads, spec.head_dim)
        self.max_len = max_len
        try:
            self.kv = torch.empty(shape, dtype=TORCH_DTYPES[spec.dtype], device=device)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            gib = spec.bytes_per_token * max_len / 2**30
            raise OutOfMemoryError(
                f"a KV cache of {max_len} tokens needs {gib:.2f} GiB and {device} refuses it; "
                f"pass a smaller max_model_len"
            ) from error

    @property
    def nbytes(self) -> int:
        """Bytes reserved."""
        return self.kv.nbytes

    def append(self, layer: int, start: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new tokens' K and V, and return everything the sequence has so far.

        Args:
            layer: Which decoder layer.
            start: Position of the first new token (``num_computed_tokens``).
            k: ``[num_new, num_kv_heads, head_dim]``, rotated.
            v: Same shape as ``k``.

        Returns:
            K and V of positions 0 … start + num_new − 1, as views of the cache:
            ``[start + num_new, num_kv_heads, head_dim]`` each.
        """
        end = start + k.shape[0]
        assert 0 <= start < end <= self.max_len, f"positions {start}…{end} of {self.max_len}"
        self.kv[0, layer, start:end] = k
        self.kv[1, layer, start:end] = v
        return self.kv[0, layer, :end], self.kv[1, layer, :end]
