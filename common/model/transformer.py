"""The decoder: embedding, layers, final norm, and logits only for the rows that are sampled."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from common.model.interfaces import Attend, LinearFactory, LoadableModule, Ops
from common.model.layers import DecoderLayer, RMSNorm
from common.model.linear import Embedding, TiedHead
from common.model.rope import rope_table
from common.model_config import KVSpec, ModelConfig

LayerHook = Callable[[int, Tensor], None]


class Transformer(nn.Module):
    """A Qwen3, Qwen2 or Llama decoder that knows nothing of caches, batches or kernels.

    Attributes:
        config: The architecture.
        dtype: Element type of weights and activations.
        embed_tokens: Embedding, ``weight`` is ``[vocab_size, hidden_size]``.
        layers: The decoder layers.
        norm: The final RMSNorm.
        lm_head: Hidden state to logits; shares the embedding where the checkpoint ties them.
        cos_sin: ``[max_positions, 2 · head_dim]`` float32, the rope table.
    """

    cos_sin: Tensor

    def __init__(
        self,
        config: ModelConfig,
        *,
        ops: Ops,
        linear: LinearFactory,
        dtype: torch.dtype,
        device: torch.device | str,
        max_positions: int | None = None,
    ) -> None:
        """Allocate the model on ``device`` without filling it.

        Args:
            config: The architecture.
            ops: Numeric operations between the matrix products.
            linear: Makes every linear layer.
            dtype: Element type of weights and activations.
            device: Where they live.
            max_positions: Rows of the rope table; the checkpoint's own maximum by default.
        """
        super().__init__()
        self.config, self.dtype = config, dtype
        vocab, hidden = config.vocab_size, config.hidden_size
        self.embed_tokens = Embedding("embed_tokens", (vocab, hidden), dtype, device)
        self.layers = nn.ModuleList(
            DecoderLayer(index, config, ops, linear, dtype, device)
            for index in range(config.num_layers)
        )
        self.norm = RMSNorm("norm", hidden, config.rms_norm_eps, ops, dtype, device)
        self.lm_head: LoadableModule = (
            TiedHead(self.embed_tokens.weight)
            if config.tie_word_embeddings
            else linear("lm_head", hidden, (vocab,), False, False)
        )
        rows = max_positions or config.max_position_embeddings
        table = rope_table(config.rope, config.head_dim, rows, device)
        self.register_buffer("cos_sin", table, persistent=False)

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        attend: Attend,
        on_layer: LayerHook | None = None,
    ) -> Tensor:
        """Run the decoder over any leading shape: ``[L]``, ``[B, L]`` or ``[num_tokens]``.

        Args:
            token_ids: ``[...]`` int64.
            positions: ``[...]`` int64, each token's absolute position in its sequence.
            attend: Where K and V go and attention happens.
            on_layer: Called as ``on_layer(i, x)`` with the residual stream ``[..., hidden_size]``
                after the embedding (i = 0) and after each layer (i = 1 … num_layers), to look
                inside; it costs one addition a layer.

        Returns:
            Hidden states after the final norm, ``[..., hidden_size]``.
        """
        x = self.embed_tokens(token_ids)
        if on_layer is not None:
            on_layer(0, x)
        cos_sin = self.cos_sin[positions]
        residual = None
        for index, layer in enumerate(self.layers):
            x, residual = layer(x, residual, cos_sin, attend)
            if on_layer is not None:
                on_layer(index + 1, x + residual)
        hidden, _ = self.norm(x, residual)
        result: Tensor = hidden
        return result

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary, for the rows that will be sampled and no others.

        A 2,048-token prompt of Qwen3-0.6B would need 594 MiB of bfloat16 logits for rows that
        nobody reads.

        Args:
            hidden: ``[rows, hidden_size]``, picked from what :meth:`forward` returned.

        Returns:
            ``[rows, vocab_size]`` in the model's dtype.
        """
        result: Tensor = self.lm_head(hidden)
        return result

    def kv_spec(self) -> KVSpec:
        """Shape of what attention has to remember, in this model's dtype."""
        return self.config.kv_spec(str(self.dtype).removeprefix("torch."))

    def weight_bytes(self) -> int:
        """Bytes of parameters, each storage counted once."""
        return sum(parameter.nbytes for parameter in self.parameters())

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.cos_sin.device
