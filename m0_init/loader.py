"""``load(model) -> LoadedModel``: where every engine of this project starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from common.devices import format_bytes
from common.errors import ConfigError, OutOfMemoryError, UnsupportedModelError
from common.hub import resolve_model
from common.model.interfaces import TORCH_DTYPES, LinearFactory, Ops
from common.model.linear import dense_linear_factory
from common.model.ops import TorchOps
from common.model.transformer import Transformer
from common.model.weights import LoadReport, load_weights
from common.model_config import ModelConfig
from common.model_costs import weight_bytes
from common.tokenizer import Tokenizer, has_tokenizer
from m0_init.device_memory import device_memory
from m0_init.memory_plan import rope_table_bytes

MakeLinear = Callable[[ModelConfig, torch.dtype, torch.device], LinearFactory]


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run.

    Attributes:
        model: The decoder, in evaluation mode, without gradients.
        config: Its architecture.
        tokenizer: None where the folder has no tokenizer; the engine then takes ids only.
        folder: Where it was read from.
        device: Where it lives.
        dtype: Element type of weights and activations.
        report: What loading cost.
    """

    model: Transformer
    config: ModelConfig
    tokenizer: Tokenizer | None
    folder: Path
    device: torch.device
    dtype: torch.dtype
    report: LoadReport


def load(
    model: str | Path,
    *,
    dtype: str = "auto",
    device: str = "auto",
    max_positions: int | None = None,
    ops: Ops | None = None,
    linear: MakeLinear | None = None,
) -> LoadedModel:
    """Resolve, build and fill a model.

    The decoder is allocated once on its device in its final dtype; checkpoint tensors are copied
    into it one at a time. There is never a second copy of the weights.

    Args:
        model: Local folder, hub id, or ``smollm2``.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto`` for the stored one.
        device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``.
        max_positions: Rows of the rope table; the checkpoint's own maximum by default.
        ops: Numeric ops; plain PyTorch by default.
        linear: Makes the linear factory from (config, dtype, device); dense by default. Without
            one, a quantised checkpoint is refused.

    Raises:
        ModelNotFoundError: The name resolves to nothing.
        CheckpointError: Files are broken or incomplete.
        UnsupportedModelError: The architecture is not implemented.
        ConfigError: Unknown dtype or device.
        OutOfMemoryError: The weights do not fit the device.
    """
    place, kind = resolve_device(device), resolve_dtype(dtype)
    folder = resolve_model(model)
    config = ModelConfig.from_pretrained(folder)
    if config.quantization is not None and linear is None:
        method = config.quantization.get("quant_method", "unknown")
        raise UnsupportedModelError(f"{folder} is quantised ({method}); this stage reads floats")
    torch_dtype = kind or TORCH_DTYPES[config.dtype]
    factory = (linear or _dense)(config, torch_dtype, place)
    try:
        network = Transformer(
            config,
            ops=ops or TorchOps(),
            linear=factory,
            dtype=torch_dtype,
            device=place,
            max_positions=max_positions,
        )
        report = load_weights(network, folder)
    except RuntimeError as error:
        # A GPU raises torch.OutOfMemoryError, the CPU's allocator its plain parent.
        if "allocate" not in str(error):
            raise
        raise _does_not_fit(folder, config, torch_dtype, place, max_positions) from error
    tokenizer = Tokenizer.from_pretrained(folder) if has_tokenizer(folder) else None
    return LoadedModel(network.eval(), config, tokenizer, folder, place, torch_dtype, report)


def resolve_device(name: str) -> torch.device:
    """``auto`` is the first GPU where there is one, else the CPU.

    Raises:
        ConfigError: An unknown name, or a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(f"device {name!r} is not there: this machine has {count} CUDA devices")
    return device


def resolve_dtype(name: str) -> torch.dtype | None:
    """The torch dtype of a name; None for ``auto``.

    Raises:
        ConfigError: An unknown name.
    """
    if name == "auto":
        return None
    if name not in TORCH_DTYPES:
        raise ConfigError(f"dtype must be auto, {', '.join(TORCH_DTYPES)}, got {name!r}")
    return TORCH_DTYPES[name]


def _does_not_fit(
    folder: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    max_positions: int | None,
) -> OutOfMemoryError:
    """The error of a model that is larger than its device, with both sizes."""
    needed = weight_bytes(config, str(dtype).removeprefix("torch."))
    needed += rope_table_bytes(config, max_positions)
    free = device_memory(str(device)).free_bytes
    return OutOfMemoryError(
        f"{folder} needs {format_bytes(needed)} on {device}, which has {format_bytes(free)} free"
    )


def _dense(_config: ModelConfig, dtype: torch.dtype, device: torch.device) -> LinearFactory:
    return dense_linear_factory(dtype, device)
