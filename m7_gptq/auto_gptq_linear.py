"""``linear_backend="auto_gptq"``: the same checkpoint through the layers of auto-gptq 0.7.1.

AutoGPTQ made the file format; its last release is of March 2024, and ``import auto_gptq`` fails
beside today's transformers. Its linear layers need torch alone, so the file that holds one is
loaded by path and the package is never imported. What runs is the layers' own PyTorch code, on a
CPU and on a GPU; the compiled kernels of the package belong to the torch of its time.

AutoGPTQ has two such layers and takes the second one with act-order::

    qlinear_cuda_old   groups are neighbours, whatever g_idx says    (zero + 1) masked: 0 … 15
    qlinear_cuda       the group of an input is looked up in g_idx   zero + 1 as it is: 1 … 16

The second one therefore reads a zero point of 0, which v1 stores as 15, as 16: such a layer is
refused. Zero points of v2 files are handed over in the form of v1, the only one that it knows.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any, Literal

import torch
from torch import Tensor, nn

from common.errors import ConfigError, UnsupportedModelError
from m7_gptq.checkpoint import LinearFormat
from m7_gptq.linear import GPTQLinear
from m7_gptq.packing import pack_zeros, per_word, unpack_zeros

PACKAGE, VERSION = "auto-gptq", "0.7.1"
File = Literal["qlinear_cuda_old", "qlinear_cuda"]


class AutoGPTQLinear(GPTQLinear):
    """As its base, which is the reference, with auto-gptq's ``QuantLinear`` for the product.

    Attributes:
        layers: One for all parts if they share their groups, else one for each.
    """

    def __init__(
        self,
        prefix: str,
        in_features: int,
        out_sizes: tuple[int, ...],
        split: bool,
        form: LinearFormat,
        *,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        """Allocate the tensors of the checkpoint.

        Raises:
            UnsupportedModelError: A width that ``QuantLinear`` cuts off.
        """
        if in_features % 32 or any(size % 32 for size in out_sizes):
            raise UnsupportedModelError(
                f"linear_backend 'auto_gptq' needs multiples of 32 inputs and outputs; {prefix} "
                f"has {in_features} and {', '.join(map(str, out_sizes))}"
            )
        super().__init__(
            prefix, in_features, out_sizes, split, form, bias=bias, dtype=dtype, device=device
        )

    def loaded(self) -> None:
        """Hand the tensors over; from then on only the layers hold them."""
        super().loaded()
        self.layers = nn.ModuleList(
            self._made(part, *span) for part, span in enumerate(self.spans())
        )
        # They are buffers there. Parameters are what `weight_bytes` counts.
        self.held = nn.ParameterList(
            nn.Parameter(buffer, requires_grad=False) for buffer in self.layers.buffers()
        )
        del self.qweight, self.qzeros, self.scales, self.g_idx, self.bias

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """``[..., in_features]`` to ``[..., out]``, or to a tuple when ``split``."""
        outputs = [layer(x) for layer in self.layers]
        y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
        return torch.split(y, list(self.out_sizes), dim=-1) if self.split else y

    def _made(self, part: int, first: int, last: int) -> nn.Module:
        """A ``QuantLinear`` with some of the columns, which share one ``g_idx``."""
        bits, size, inputs = self.format.bits, self.format.group_size, self.in_features
        count, g_idx = per_word(bits), self.g_idx[part].data
        zeros = unpack_zeros(self.qzeros[:, first // count : last // count], bits, "gptq_v2")
        neighbours = torch.arange(inputs, dtype=torch.int32, device=g_idx.device) // size
        plain = inputs % size == 0 and torch.equal(g_idx, neighbours)
        if not plain and not bool(zeros.all()):
            raise UnsupportedModelError(
                f"{self.prefix} needs auto-gptq's layer with g_idx and has a zero point of 0, "
                f"which that layer reads as {1 << bits}; linear_backend 'auto' reads it right"
            )
        make = quant_linear("qlinear_cuda_old" if plain else "qlinear_cuda")
        layer: Any = make(
            bits, size, inputs, last - first, self.bias is not None, weight_dtype=self.dtype
        )
        layer.autogptq_cuda_available = False
        layer.wf = layer.wf.to(g_idx.device)
        layer.qweight = self.qweight[:, first:last].contiguous()
        layer.qzeros = pack_zeros(zeros, bits, "gptq")
        layer.scales = self.scales[:, first:last].to(self.dtype)
        layer.g_idx = g_idx.clone()
        if self.bias is not None:
            layer.bias = self.bias[first:last].clone()
        made: nn.Module = layer
        return made


@functools.cache
def quant_linear(name: File) -> type[nn.Module]:
    """``QuantLinear`` of one file of the package.

    Args:
        name: The file, without its ending.

    Raises:
        ConfigError: The package is absent, or another version.
    """
    found = require_auto_gptq()
    path = found.locate_file(f"auto_gptq/nn_modules/qlinear/{name}.py")
    # The file says at its import that there are no compiled kernels, as a warning.
    logging.getLogger(name).setLevel(logging.ERROR)
    spec = importlib.util.spec_from_file_location(name, str(path))
    assert spec is not None, path
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    layer: type[nn.Module] = module.QuantLinear
    return layer


def require_auto_gptq() -> Any:
    """The installed distribution, of the one version whose layers are known here.

    Raises:
        ConfigError: It is absent, or another version.
    """
    how = (
        f"Python 3.11 and pip install --no-deps {PACKAGE}=={VERSION}, or the extra 'autogptq', "
        f"bring it"
    )
    try:
        found = distribution(PACKAGE)
    except PackageNotFoundError:
        raise ConfigError(
            f"linear_backend 'auto_gptq' needs {PACKAGE} {VERSION}, which is not installed: {how}"
        ) from None
    if found.version != VERSION:
        raise ConfigError(
            f"linear_backend 'auto_gptq' needs {PACKAGE} {VERSION}, installed is {found.version}: "
            f"{how}"
        )
    return found
