"""Writes a quantised checkpoint that GPTQModel, AutoGPTQ, transformers and vLLM can load.

The folder appears under its name only when it is whole. What is not quantised is copied as stored.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from common.errors import ConfigError, UnsupportedModelError
from common.model.weights import safetensors_files
from common.model_config import ModelConfig
from m7_gptq.calibrate import QuantizedLinear
from m7_gptq.packing import FORMATS, Format, pack_rows, pack_zeros, per_word
from m7_gptq.quantization_config import FILE
from m7_gptq.quantizer import QuantizedWeight, QuantSpec

COPIED = ("*.jinja", "merges.txt", "tokenizer.model", "LICENSE*")
"""Beside ``*.json``: what a model folder holds apart from weights."""


def linear_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each kind of linear layer in a decoder layer."""
    hidden, inner = config.hidden_size, config.intermediate_size
    return {
        "self_attn.q_proj": (hidden, config.q_size),
        "self_attn.k_proj": (hidden, config.kv_size),
        "self_attn.v_proj": (hidden, config.kv_size),
        "self_attn.o_proj": (config.q_size, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }


def check_quantisable(config: ModelConfig, spec: QuantSpec) -> None:
    """Refuse, before hours of work, what could not be written or loaded by others.

    Raises:
        UnsupportedModelError: The model is quantised already.
        ConfigError: A layer's width is no multiple of a word, or not of the group size (our reader
            takes a ragged last group, vLLM does not).
    """
    if config.quantization is not None:
        method = config.quantization.get("quant_method", "unknown")
        raise UnsupportedModelError(f"the model is quantised already ({method})")
    count = per_word(spec.bits)
    for name, (inputs, outputs) in linear_shapes(config).items():
        if inputs % count or outputs % count:
            raise ConfigError(
                f"{name} is {inputs} × {outputs}: words of {spec.bits} bits need multiples "
                f"of {count}"
            )
        if inputs % spec.group(inputs):
            fitting = [size for size in (128, 64, 32, 16, 8) if inputs % size == 0]
            raise ConfigError(
                f"group_size {spec.group_size} does not divide the {inputs} inputs of {name}; "
                f"these do: {', '.join(map(str, fitting))}, −1"
            )


def check_free(out: Path) -> None:
    """Refuse to write over something.

    Raises:
        ConfigError: ``out`` exists and is not an empty folder.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out} exists already and is not an empty folder")


def default_format(spec: QuantSpec) -> Format:
    """v1 for symmetric files, which every program reads; v2 for asymmetric ones.

    Programs differ on a v1 zero point of 0: GPTQModel subtracts and adds 1 by whole words, and
    refuses asymmetric v1 files that it did not write itself.
    """
    return "gptq" if spec.sym else "gptq_v2"


def packed_tensors(
    name: str, weight: QuantizedWeight, bits: int, form: Format
) -> dict[str, Tensor]:
    """The four tensors of one linear layer, named and shaped as they are stored."""
    return {
        f"{name}.qweight": pack_rows(weight.ints.T.cpu(), bits),
        f"{name}.qzeros": pack_zeros(weight.zeros.T.cpu(), bits, form),
        f"{name}.scales": weight.scales.T.cpu().contiguous(),
        # A copy: layers with the same input share one, and safetensors refuses shared storage.
        f"{name}.g_idx": weight.g_idx.cpu().clone(),
    }


def write_checkpoint(
    out: Path,
    source: Path,
    config: ModelConfig,
    linears: Iterable[QuantizedLinear],
    spec: QuantSpec,
    *,
    form: Format | None = None,
) -> int:
    """Write a checkpoint from a model folder and its quantised layers.

    Layers are packed as they come, so that the integers of the whole model never exist unpacked.

    Args:
        out: Folder to make; it may exist if it is empty.
        source: The folder of the dense model.
        config: Its architecture.
        linears: From :func:`m7_gptq.calibrate.quantise_model`.
        spec: How they were quantised.
        form: How zero points are stored; :func:`default_format` by default.

    Returns:
        Bytes of all tensors written.

    Raises:
        ConfigError: ``out`` is taken.
    """
    check_free(out)
    form = form or default_format(spec)
    assert form in FORMATS
    tensors: dict[str, Tensor] = {}
    quantised: set[str] = set()
    for linear in linears:
        tensors |= packed_tensors(linear.name, linear.weight, spec.bits, form)
        quantised.add(f"{linear.name}.weight")
    tensors |= dict(_dense(source, config, quantised))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{out.name}.part-", dir=out.parent) as scratch:
        part = Path(scratch) / "model"
        part.mkdir()
        save_file(tensors, part / "model.safetensors", {"format": "pt"})
        _write_configs(part, source, spec, form)
        if out.exists():
            out.rmdir()  # checked to be empty
        part.replace(out)
    return sum(tensor.nbytes for tensor in tensors.values())


def quantization_config(spec: QuantSpec, form: Format) -> dict[str, Any]:
    """The keys that other programs look for."""
    return {
        "bits": spec.bits,
        "group_size": spec.group_size,
        "desc_act": spec.desc_act,
        "sym": spec.sym,
        "lm_head": False,
        "quant_method": "gptq",
        "method": "gptq",
        "format": form,
        "checkpoint_format": form,
        "pack_dtype": "int32",
        "meta": {
            "quantizer": [f"folovllm:{_own_version()}"],
            "damp_percent": spec.damp,
            "static_groups": False,
            "true_sequential": True,
        },
    }


def _dense(source: Path, config: ModelConfig, replaced: set[str]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that is not replaced, as stored. A tied matrix is stored once."""
    for path in safetensors_files(source):
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                twice = name == "lm_head.weight" and config.tie_word_embeddings
                if name not in replaced and not twice and not name.endswith("inv_freq"):
                    yield name, file.get_tensor(name)


def _write_configs(part: Path, source: Path, spec: QuantSpec, form: Format) -> None:
    own = quantization_config(spec, form)
    skipped = {"config.json", FILE, "model.safetensors.index.json"}
    for pattern in ("*.json", *COPIED):
        for path in sorted(source.glob(pattern)):
            if path.is_file() and path.name not in skipped:
                shutil.copyfile(path, part / path.name)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    for name, value in (("config.json", config | {"quantization_config": own}), (FILE, own)):
        text = json.dumps(value, indent=2) + "\n"
        (part / name).write_text(text, encoding="utf-8")


def _own_version() -> str:
    try:
        return version("folovllm")
    except PackageNotFoundError:  # run from a copy of the source
        return "0"
