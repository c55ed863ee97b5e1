"""Quantise a whole model, one decoder layer at a time (Frantar et al. 2022, §4 "Setup").

Only the residual stream of the calibration samples moves from layer to layer. The model stays in
its stored dtype; one layer at a time is copied to float32, quantised, run once more and dropped::

    stream of all samples ─▶ layer i, float32 copy ─▶ stream ─▶ layer i + 1 …
                              1 inputs of q, k, v   → H → quantise, write Ŵ back
                              2 inputs of o         → H → quantise, write Ŵ back
                              3 inputs of gate, up  → H → …
                              4 inputs of down      → H → …
                              5 outputs of the quantised layer

Every step runs the samples only as far as the linear layer whose inputs it wants, through the
layers that are already quantised: a later layer makes up for the errors of earlier ones too. q, k
and v read the same input and share H (and the order of columns, with act-order), so do gate and up.
Attention is computed in step 2 and kept for the steps after it, whose inputs do not change it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common.errors import CheckpointError, ConfigError
from common.model.layers import DecoderLayer
from common.model.linear import DenseLinear
from common.model.transformer import Transformer
from common.model.weights import checkpoint_modules
from m1_basic.attention import UncachedAttend
from m7_gptq.hessian import Hessian, output_error, row_energy
from m7_gptq.quantizer import QuantizedWeight, QuantSpec, gptq, round_to_nearest

LINEARS = ("attn.qkv", "attn.o", "mlp.gate_up", "mlp.down")
"""The linear layers of a decoder layer, in the order in which a token passes them."""

Method = Callable[[Tensor, Tensor, QuantSpec], QuantizedWeight]
METHODS: dict[str, Method] = {"gptq": gptq, "rtn": round_to_nearest}


@dataclass(frozen=True)
class Errors:
    """Relative output errors ``E‖Wx − Ŵx‖² / E‖Wx‖²`` over the tokens of one set of samples.

    Attributes:
        chosen: Of the method that was asked for.
        rtn: Of round-to-nearest with the same groups.
    """

    chosen: float
    rtn: float


@dataclass(frozen=True)
class QuantizedLinear:
    """One quantised linear layer of the checkpoint, and what quantising did to its output.

    Attributes:
        name: Its name in the checkpoint, such as ``model.layers.0.self_attn.q_proj``.
        weight: Integers and grids.
        calibration: Errors on the calibration samples.
        held_out: Errors on the held-out samples; None where there are none.
    """

    name: str
    weight: QuantizedWeight
    calibration: Errors
    held_out: Errors | None = None


def quantise_model(
    model: Transformer,
    samples: Sequence[Sequence[int]],
    spec: QuantSpec,
    *,
    method: str = "gptq",
    held_out: Sequence[Sequence[int]] = (),
    progress: bool = True,
) -> Iterator[QuantizedLinear]:
    """Quantise the linear layers of every decoder layer; embedding and ``lm_head`` stay dense.

    Memory beside the model: residual streams and attention's outputs (``tokens · (hidden + heads ·
    head_dim) · 4`` bytes), one layer in float32 and one H (``inputs² · 8`` bytes; 75 MB for
    Qwen3-0.6B's widest). The model's own weights are not changed.

    Args:
        model: Dense, on any device.
        samples: Token ids of each calibration sample.
        spec: Bits, groups, order.
        method: ``gptq`` or ``rtn`` (round-to-nearest).
        held_out: Further samples that only measure errors; they pass the same quantised layers.
        progress: Show a bar on stderr, where that is a terminal.

    Yields:
        Each linear layer, in the order of the checkpoint's layers.

    Raises:
        ConfigError: No samples, or an unknown method.
        CheckpointError: Weights or activations are not finite.
    """
    if method not in METHODS:
        raise ConfigError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if not samples or not all(len(sample) for sample in (*samples, *held_out)):
        raise ConfigError("calibration needs at least one sample, and no sample may be empty")
    longest, most = max(map(len, (*samples, *held_out))), model.cos_sin.shape[0]
    if longest > most:
        raise ConfigError(f"a calibration sample has {longest} tokens, the model takes {most}")
    names = {target: name for name, target in checkpoint_modules(model.config).items()}
    streams, others = _Streams(model, samples), _Streams(model, held_out)
    bar = tqdm(total=len(model.layers), unit="layer", disable=None if progress else True)
    with bar:
        for index in range(len(model.layers)):
            layer = copy.deepcopy(model.layers[index]).float()
            assert isinstance(layer, DecoderLayer)
            for path in LINEARS:
                made = _quantise(layer, path, spec, METHODS[method], streams, others)
                for shard, parts in enumerate(made):
                    yield QuantizedLinear(names[f"layers.{index}.{path}", shard], *parts)
            streams.advance(layer)
            others.advance(layer)
            bar.update()


class _Streams:
    """The residual stream of every sample, between two layers: ``[tokens, hidden]`` float32."""

    def __init__(self, model: Transformer, samples: Sequence[Sequence[int]]) -> None:
        """Embed the samples."""
        ids = [torch.tensor(list(sample), device=model.device) for sample in samples]
        self.values = [model.embed_tokens(each).float() for each in ids]
        self._cos_sin = model.cos_sin
        self._attended: dict[int, Tensor] = {}

    def run(self, layer: DecoderLayer, index: int) -> Tensor:
        """One sample through a layer; the new stream."""
        x = self.values[index]
        attend = _AttendOnce(self._attended, index)
        y, residual = layer(x, None, self._cos_sin[: x.shape[0]], attend)
        stream: Tensor = residual + y
        return stream

    def advance(self, layer: DecoderLayer) -> None:
        """All samples through a layer."""
        for index in range(len(self.values)):
            self.values[index] = self.run(layer, index)
        self._attended.clear()

    def hessian(self, layer: DecoderLayer, linear: nn.Module, in_features: int) -> Tensor:
        """H of the inputs of one linear layer inside ``layer``."""
        seen = Hessian(in_features, self.values[0].device)

        def catch(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            seen.add(inputs[0])
            raise _Reached

        hook = linear.register_forward_pre_hook(catch)
        try:
            for index in range(len(self.values)):
                try:
                    self.run(layer, index)
                except _Reached:
                    continue
        finally:
            hook.remove()
        return seen.matrix()


class _AttendOnce(UncachedAttend):
    """Attention of one sample in one layer, computed once q, k and v are quantised.

    The pass that wants the inputs of q, k and v ends before it gets here, so the first call comes
    after them.
    """

    def __init__(self, kept: dict[int, Tensor], sample: int) -> None:
        """Keep the output of ``sample`` in ``kept``."""
        self._kept, self._sample = kept, sample

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``[L, heads, dim]``, as :class:`UncachedAttend`."""
        if self._sample not in self._kept:
            self._kept[self._sample] = super().__call__(layer, q, k, v)
        return self._kept[self._sample]


class _Reached(Exception):  # noqa: N818 (a signal, not an error)
    """The sample has arrived at the linear layer of interest; what follows need not run."""


def _quantise(
    layer: DecoderLayer,
    path: str,
    spec: QuantSpec,
    method: Method,
    streams: _Streams,
    others: _Streams,
) -> list[tuple[QuantizedWeight, Errors, Errors | None]]:
    """Quantise one (merged) linear layer, and write Ŵ back into it. One result per shard."""
    linear = layer.get_submodule(path)
    if not isinstance(linear, DenseLinear):
        raise CheckpointError(f"{path} is {type(linear).__name__}: only dense layers are quantised")
    weight, sizes = linear.weight.data, linear.out_sizes
    hessian = streams.hessian(layer, linear, weight.shape[1])
    made = method(weight, hessian, spec)
    baseline = made if method is round_to_nearest else round_to_nearest(weight, hessian, spec)
    chosen = made.dequantised()
    errors = _relative(weight, hessian, made.error, baseline.error, sizes)
    held_out: Sequence[Errors | None] = [None] * len(sizes)
    if others.values:
        extra = others.hessian(layer, linear, weight.shape[1])
        ours = output_error(weight, chosen, extra)
        nearest = output_error(weight, baseline.dequantised(), extra)
        held_out = _relative(weight, extra, ours, nearest, sizes)
    linear.weight.data.copy_(chosen)
    return list(zip(made.split(sizes), errors, held_out, strict=True))


def _relative(
    weight: Tensor, hessian: Tensor, chosen: Tensor, nearest: Tensor, sizes: tuple[int, ...]
) -> list[Errors]:
    """Rows' errors ``[out]`` of both methods as shares of the output's mean square, per shard."""
    parts = [
        [float(part.sum()) for part in torch.split(rows, list(sizes))]
        for rows in (chosen, nearest, row_energy(weight, hessian))
    ]
    # An output that is 0 throughout has no error either.
    return [Errors(a / (e or 1.0), b / (e or 1.0)) for a, b, e in zip(*parts, strict=True)]
