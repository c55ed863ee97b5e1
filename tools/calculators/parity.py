"""A grid of inputs on which ``formulas.js`` must give Python's numbers.

A case is the name of a function of the script, its arguments as JSON, and Python's answer. Who runs
the script is the caller's business: node in a unit test, the browser in a test of the site.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import devices, model_costs
from common.devices import DEVICES, GIB
from common.errors import ConfigError, OutOfMemoryError
from common.model_config import ModelConfig
from common.qwen3 import QWEN3_SHAPES
from tools.calculators.facts import model_facts

FORMULAS = Path("docs/assets/javascripts/calculators/formulas.js")
TOLERANCE = 1e-3
"""Allowed difference, relative: a tenth of a per cent."""

RUN = "(module, cases) => cases.map(([name, args]) => module[name](...args))"
"""JavaScript that answers all cases, given the module and pairs of a name and arguments."""


@dataclass(frozen=True)
class Case:
    """One call: ``function(*arguments)`` of the script, and what it must give."""

    function: str
    arguments: list[Any]
    expected: float | list[float] | None


def cases() -> list[Case]:
    """All of the grid."""
    return [
        case
        for name, config in QWEN3_SHAPES.items()
        for case in (
            *_sizes(config, model_facts(name, config)),
            *_steps(config, model_facts(name, config)),
            *_chunks(config, model_facts(name, config)),
            *_gptq(config, model_facts(name, config)),
        )
    ]


def mismatches(given: Sequence[Case], answers: Sequence[Any]) -> list[str]:
    """A line for every case whose answer is not Python's, and one where answers are missing."""
    lines = [] if len(given) == len(answers) else [f"{len(answers)} answers to {len(given)} cases"]
    for case, answer in zip(given, answers, strict=False):
        if not _equal(case.expected, answer):
            arguments = case.arguments[1:] if case.arguments else []
            lines.append(f"{case.function}({arguments}): {answer}, expected {case.expected}")
    return lines


def _equal(expected: Any, answer: Any) -> bool:
    if isinstance(expected, list):
        same = isinstance(answer, list) and len(answer) == len(expected)
        return same and all(map(_equal, expected, answer))
    if expected is None or answer is None:
        return expected is answer
    return math.isclose(expected, answer, rel_tol=TOLERANCE)


def _sizes(config: ModelConfig, facts: dict[str, Any]) -> Iterator[Case]:
    counts = model_costs.parameter_counts(config)
    yield Case("totalParameters", [facts], counts.total)
    yield Case("linearParameters", [facts], counts.linear)
    yield Case("weightBytes", [facts], model_costs.weight_bytes(config))
    yield Case("linearFlopsPerToken", [facts], model_costs.linear_flops_per_token(config))
    yield Case("lmHeadFlopsPerRow", [facts], model_costs.lm_head_flops_per_row(config))
    for length in (1, 16, 4096, 40_960):
        yield Case("kvBytes", [facts, length], model_costs.kv_bytes(config, length))
        attention = model_costs.attention_flops_per_token(config, length)
        yield Case("attentionFlopsPerToken", [facts, length], attention)
    memories = (8 * GIB, *(device.memory_bytes for device in DEVICES.values()))
    for memory, share, block in itertools.product(memories, (0.5, 0.9, 0.95), (1, 16)):
        try:
            fit = devices.kv_pool_tokens(config, memory, share, GIB, block)
        except OutOfMemoryError:
            fit = 0
        yield Case("kvPoolTokens", [facts, memory, share, GIB, block], fit)


def _steps(config: ModelConfig, facts: dict[str, Any]) -> Iterator[Case]:
    grid = itertools.product(((0, 0), (0, 512), (512, 1000)), (0, 1, 64, 1024), (0, 1024, 32_768))
    for (start, end), streams, context in grid:
        chunk = [(start, end)] if end > start else []
        slices = [*chunk, *[(context, context + 1)] * streams]
        arguments = [facts, start, end, streams, context]
        yield Case("stepBytes", arguments, model_costs.step_bytes(config, slices))
        yield Case("stepFlops", arguments, model_costs.step_flops(config, slices))
        for device in DEVICES.values():
            rates = device.spec_bandwidth, device.spec_flops
            floor = devices.step_floor_seconds(config, *rates, slices)
            yield Case("stepFloorSeconds", [facts, *rates, *arguments[1:]], floor)


def _chunks(config: ModelConfig, facts: dict[str, Any]) -> Iterator[Case]:
    grid = itertools.product(
        DEVICES.values(), (512, 8192), (64, 500, 4096, 32_768), (0, 32, 256), (0.0, 2e-3)
    )
    for device, prompt, budget, streams, overhead in grid:
        rates = device.spec_bandwidth, device.spec_flops
        expected: list[float] | None
        try:
            found = devices.chunked_prefill(
                config, *rates, prompt=prompt, budget=budget, streams=streams, context=1024,
                overhead=overhead,
            )  # fmt: skip
            expected = [found.num_steps, found.gap, found.ttft, found.undisturbed]
        except ConfigError:
            expected = None
        arguments = [facts, *rates, prompt, budget, streams, 1024, overhead]
        yield Case("chunkedPrefill", arguments, expected)


def _gptq(config: ModelConfig, facts: dict[str, Any]) -> Iterator[Case]:
    for bits, group in itertools.product((2, 3, 4, 8), (16, 128, 1024)):
        model = model_costs.gptq_model_bytes(config, group, bits)
        yield Case("gptqModelBytes", [facts, group, bits], model)
        linear = model_costs.gptq_linear_bytes(config, group, bits)
        yield Case("gptqLinearBytes", [facts, group, bits], linear)
        width = model_costs.gptq_bits_per_weight(group, bits)
        yield Case("gptqBitsPerWeight", [group, bits], width)
        yield Case("gptqLinearSpeedup", [group, bits], devices.gptq_linear_speedup(group, bits))
        tokens = devices.gptq_full_gain_tokens(295.0, group, bits)
        yield Case("gptqFullGainTokens", [295.0, group, bits], tokens)
