"""Tiny random checkpoints of every family, written by transformers itself.

The files are what the world writes: transformers' own model classes and ``save_pretrained`` decide
about names, shards, tied matrices and config keys. Only the values are ours. Transformers starts
norms at one, biases at zero and matrices near zero, so that a forgotten norm weight or bias would
not show, and all logits would be alike; here every parameter is drawn, with spread.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from common.testing.byte_tokenizer import write_byte_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Family = Literal["qwen3", "qwen2", "llama"]
FAMILY_ARCHITECTURES: dict[str, str] = {
    "qwen3": "Qwen3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "llama": "LlamaForCausalLM",
}

EMBEDDING_STD = 0.6
BLOCK_GAIN = 2.0
LOGIT_STD = 4.0


def tiny_config(
    family: Family,
    *,
    hidden: int = 64,
    layers: int = 3,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int | None = None,
    intermediate: int = 96,
    vocab: int = 320,
    tied: bool = True,
    qkv_bias: bool | None = None,
    max_positions: int = 512,
    rope_theta: float = 10_000.0,
    eos_token_id: int | list[int] | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """The ``config.json`` of a small model, as a dict.

    Args:
        family: Which architecture.
        hidden: Width of the residual stream.
        layers: Decoder layers.
        heads: Query heads.
        kv_heads: KV heads; divides ``heads``. Equal is MHA, 1 is MQA.
        head_dim: Width of one head. By default 32, on purpose not ``hidden / heads``, except for
            Qwen2, which can have no other.
        intermediate: Width of the MLP.
        vocab: Rows of the embedding; at least 259 for the byte tokenizer.
        tied: Whether ``lm_head`` is the embedding.
        qkv_bias: Bias of the attention projections; None is the family's own choice (Qwen2 has
            one on q, k and v, whatever is asked).
        max_positions: ``max_position_embeddings``.
        rope_theta: Base of the rotary frequencies.
        eos_token_id: None, so that random text runs to its full length.
        **extra: Further keys, such as ``rope_scaling`` or ``mlp_bias``.
    """
    config: dict[str, Any] = {
        "model_type": family,
        "architectures": [FAMILY_ARCHITECTURES[family]],
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": max_positions,
        "rms_norm_eps": 1e-6,
        "rope_theta": rope_theta,
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": eos_token_id,
    }
    if family == "qwen2":
        if head_dim not in (None, hidden // heads):
            raise ValueError(
                f"qwen2 has head_dim {hidden // heads} (hidden / heads), not {head_dim}"
            )
    else:
        config["head_dim"] = head_dim or 32
        config["attention_bias"] = bool(qkv_bias)
    # transformers writes into the dicts it is given; the caller's stay as they are.
    return config | copy.deepcopy(extra)


def write_checkpoint(
    folder: str | Path,
    hf_config: Mapping[str, Any],
    *,
    seed: int = 0,
    shards: int = 1,
    dtype: str = "float32",
    tokenizer: bool = False,
) -> Path:
    """Write a random checkpoint the way transformers does.

    Args:
        folder: Where; it is created if need be.
        hf_config: A ``config.json`` as a dict, see :func:`tiny_config`.
        seed: Seed of the weights.
        shards: Safetensors files; more than one come with an index.
        dtype: Element type of the stored weights.
        tokenizer: Whether to add a byte tokenizer for ``vocab_size`` ids.

    Returns:
        The folder.
    """
    import torch

    model = _empty_model(hf_config, getattr(torch, dtype))
    fill_randomly(model, seed)
    out = Path(folder)
    model.save_pretrained(out, max_shard_size=_shard_size(model, shards))
    if tokenizer:
        write_byte_tokenizer(out, int(hf_config["vocab_size"]))
    return out


def fill_randomly(model: PreTrainedModel, seed: int) -> None:
    """Draw every parameter of a transformers model, so that its greedy text is diverse.

    Matrices keep the size of what passes through them (standard deviation ``gain / sqrt(inputs)``),
    norm weights lie around one, biases around zero, and the output matrix gives logits of standard
    deviation ``LOGIT_STD``. In a tied model the embedding is that matrix, and the blocks add more
    to the stream than the embedding brought, or every token would predict itself.

    Args:
        model: A model with a ``config``; its parameters are overwritten.
        seed: Seed of the draw.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    hidden = int(model.config.hidden_size)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean, std = _distribution(name, parameter, hidden)
            parameter.normal_(mean, std, generator=generator)


def _distribution(name: str, parameter: torch.Tensor, hidden: int) -> tuple[float, float]:
    """Mean and standard deviation of one parameter's values."""
    if name.endswith("norm.weight"):
        return 1.0, 0.2
    if name.endswith(".bias"):
        return 0.0, 0.3
    if name.endswith(("embed_tokens.weight", "lm_head.weight")):
        return 0.0, LOGIT_STD / hidden**0.5
    return 0.0, BLOCK_GAIN / float(parameter.shape[1]) ** 0.5


def _empty_model(hf_config: Mapping[str, Any], dtype: torch.dtype) -> PreTrainedModel:
    """A transformers model with allocated, unset parameters."""
    import torch

    transformers = quiet_transformers()
    config = transformers.AutoConfig.for_model(**copy.deepcopy(dict(hf_config)))
    with torch.device("meta"):
        model: PreTrainedModel = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.to_empty(device="cpu")
    model.tie_weights()
    return model


def quiet_transformers() -> Any:
    """The transformers package without progress bars; untyped, as its own functions are."""
    import transformers
    from transformers.utils import logging

    disable: Any = logging.disable_progress_bar
    disable()
    return transformers


def _shard_size(model: PreTrainedModel, shards: int) -> int:
    """Least ``max_shard_size`` in bytes that splits the model into at most ``shards`` files."""
    from huggingface_hub import split_torch_state_dict_into_shards

    state = model.state_dict()
    total: int = sum(tensor.nbytes for tensor in state.values())
    size = total // shards + 1
    while True:
        plan = split_torch_state_dict_into_shards(state, max_shard_size=size)
        if len(plan.filename_to_tensors) <= shards:
            return size
        size += size // 20 + 1
