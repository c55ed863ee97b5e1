"""M7 in four bits from any dense checkpoint, without a quantised one: for timing, not for text."""

from __future__ import annotations

from collections.abc import Callable

import torch

from common.model.linear import DenseLinear
from common.model_config import ModelConfig
from m0_init.loader import LoadedModel
from m7_gptq.checkpoint_writer import linear_shapes
from m7_gptq.engine import LLMEngine, layer_for
from m7_gptq.head import plain_weight, rounded
from m7_gptq.linear import GPTQLinear
from m7_gptq.quantizer import QuantSpec


def spec_of(config: ModelConfig) -> QuantSpec:
    """Four bits in groups of 128, or of the next smaller size that divides the layers' inputs."""
    inputs = {each for each, _ in linear_shapes(config).values()}
    fits = (size for size in (128, 64, 32, 16, 8) if all(each % size == 0 for each in inputs))
    return QuantSpec(bits=4, group_size=next(fits, -1))


class RoundedEngine(LLMEngine):
    """M7 with a dense checkpoint, the layers of which are rounded to 4 bits when it is loaded."""

    def load(self) -> LoadedModel:
        """As the base, then round; one dense matrix at a time is let go."""
        loaded = super().load()
        spec = spec_of(loaded.config)
        make = layer_for(
            loaded.device, self.config.linear_backend, pdl=self.config.programmatic_launch
        )
        for parent in loaded.model.layers.modules():
            for name, old in list(parent.named_children()):
                if isinstance(old, DenseLinear):
                    setattr(parent, name, self._rounded(old, make, loaded, spec))
        return loaded

    def _rounded(
        self,
        old: DenseLinear,
        make: Callable[..., GPTQLinear],
        loaded: LoadedModel,
        spec: QuantSpec,
    ) -> GPTQLinear:
        weight = plain_weight(old)
        form, tensors = rounded(weight, spec, has_bias=old.bias is not None)
        layer = make(
            old.prefix, weight.shape[1], old.out_sizes, old.split, form,
            bias=old.bias is not None, dtype=loaded.dtype, device=loaded.device,
        )  # fmt: skip
        parts = {
            name: torch.split(tensor, list(widths), dim=1)
            for name, tensor in tensors.items()
            for widths in [[size * tensor.shape[1] // len(weight) for size in old.out_sizes]]
        }
        for shard in range(len(old.out_sizes)):
            for name, pieces in parts.items():
                layer.load_shard(name, shard, pieces[shard])
            if old.bias is not None:
                bias = torch.split(old.bias.detach(), list(old.out_sizes))[shard]
                layer.load_shard("bias", shard, bias)
        return layer
