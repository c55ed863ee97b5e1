"""What a reader wants to know about a checkpoint before any inference: the facts.

:func:`make_report` collects them, :func:`as_dict` gives them as JSON, and
:func:`m0_init.report_text.as_text` as tables. All but the forward pass is arithmetic over
``config.json``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from common.devices import GIB
from common.errors import ConfigError
from common.hub import resolve_model
from common.inputs import InputProcessor
from common.model_config import DTYPE_BYTES, ModelConfig
from common.model_costs import kv_bytes, parameter_counts, weight_bytes
from common.request import SamplingParams
from m0_init.device_memory import DeviceMemory, device_memory
from m0_init.memory_plan import MemoryPlan, plan_memory

DEFAULT_PROMPT = "The capital of France is"
DEFAULT_IDS = (0, 1, 2, 3)
"""Prompt of a checkpoint that has no tokenizer."""
TOP = 5
UTILIZATION = 0.9
BLOCK_SIZE = 16
STEP_TOKENS = 2048
"""Tokens of the step whose activations the plan reserves for."""


@dataclass(frozen=True)
class NextToken:
    """One candidate for the token after the prompt.

    Attributes:
        token_id: Its id.
        text: Its text; None without a tokenizer.
        logit: Raw score.
        probability: Softmax over the whole vocabulary.
    """

    token_id: int
    text: str | None
    logit: float
    probability: float


@dataclass(frozen=True)
class Report:
    """Everything ``python -m m0_init`` prints.

    Attributes:
        model: The name the user gave.
        config: Its architecture.
        dtype: Element type it was loaded in.
        memory: The device, or the one planned for.
        plan: How that memory is divided.
        prompt: Text of the forward pass; None where ids were used.
        prompt_token_ids: Its ids.
        next_tokens: The likeliest next tokens, best first.
        load_seconds: Time to fill the weights.
    """

    model: str
    config: ModelConfig
    dtype: str
    memory: DeviceMemory
    plan: MemoryPlan
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    next_tokens: tuple[NextToken, ...]
    load_seconds: float


def make_report(
    model: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    prompt: str | None = None,
    memory_gib: float | None = None,
) -> Report:
    """Read a checkpoint, plan its memory, load it, and run one forward pass.

    Args:
        model: Local folder, hub id, or ``smollm2``.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto`` for the stored one.
        device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``.
        prompt: Text of the forward pass; :data:`DEFAULT_PROMPT` where None.
        memory_gib: Plan for a device of this size instead of the one at hand.

    Raises:
        FoloError: A child that says what is wrong: unknown model, broken checkpoint, unsupported
            architecture, unknown dtype or device, too little memory, a bad prompt.
    """
    from m0_init.loader import load, resolve_device, resolve_dtype

    place = resolve_device(device)
    resolve_dtype(dtype)
    folder = resolve_model(model)
    config = ModelConfig.from_pretrained(folder)
    kind = config.dtype if dtype == "auto" else dtype
    memory = device_memory(str(place)) if memory_gib is None else _imagined(memory_gib)
    plan = plan_memory(
        config,
        memory.total_bytes,
        free_bytes=memory.free_bytes,
        utilization=UTILIZATION,
        dtype=kind,
        num_batched_tokens=STEP_TOKENS,
        block_size=BLOCK_SIZE,
    )
    loaded = load(folder, dtype=dtype, device=device)
    inputs = InputProcessor(config, loaded.tokenizer, config.max_position_embeddings)
    has_text = loaded.tokenizer is not None or prompt is not None
    text = (DEFAULT_PROMPT if prompt is None else prompt) if has_text else None
    request = inputs.make_request(DEFAULT_IDS if text is None else text, SamplingParams())
    return Report(
        model=model,
        config=config,
        dtype=kind,
        memory=memory,
        plan=plan,
        prompt=text,
        prompt_token_ids=request.prompt_token_ids,
        next_tokens=_next_tokens(loaded, request.prompt_token_ids),
        load_seconds=loaded.report.seconds,
    )


def as_dict(report: Report) -> dict[str, Any]:
    """The report as JSON types. Sizes are bytes and carry ``bytes`` in their names."""
    config, counts = report.config, parameter_counts(report.config)
    return {
        "model": report.model,
        "architecture": asdict(config),
        "parameters": asdict(counts) | {"total": counts.total},
        "weight_bytes": {dtype: weight_bytes(config, dtype) for dtype in DTYPE_BYTES},
        "kv_bytes_per_token": {dtype: kv_bytes(config, 1, dtype) for dtype in DTYPE_BYTES},
        "dtype": report.dtype,
        "device": asdict(report.memory),
        "memory_plan": asdict(report.plan)
        | {"num_tokens": report.plan.num_tokens, "kv_pool_bytes": report.plan.kv_pool_bytes},
        "prompt": report.prompt,
        "prompt_token_ids": list(report.prompt_token_ids),
        "next_tokens": [asdict(token) for token in report.next_tokens],
        "load_seconds": report.load_seconds,
    }


def _next_tokens(loaded: Any, prompt_token_ids: Sequence[int]) -> tuple[NextToken, ...]:
    """The likeliest tokens after a prompt, from one forward pass."""
    from m0_init.forward import next_token_logits

    logits = next_token_logits(loaded.model, prompt_token_ids)
    probabilities = logits.softmax(-1)
    text = loaded.tokenizer.token_text if loaded.tokenizer is not None else lambda _: None
    return tuple(
        NextToken(i, text(i), float(logits[i]), float(probabilities[i]))
        for i in logits.topk(min(TOP, len(logits))).indices.tolist()
    )


def _imagined(memory_gib: float) -> DeviceMemory:
    """A device of ``memory_gib`` GiB with all of it free."""
    if not (memory_gib > 0 and math.isfinite(memory_gib)):
        raise ConfigError(f"memory_gib must be a positive number, got {memory_gib:g}")
    size = int(memory_gib * GIB)
    return DeviceMemory("planned", f"a device of {memory_gib:g} GiB", size, size)
