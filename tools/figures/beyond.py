"""Figures of the pages beyond M7: floors from data sheets, for Qwen3-8B and the 0.6B.

Each curve is the larger of a step's bytes and its FLOPs, as in the notes, so it is what the
arithmetic allows and not what a kernel reaches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from common.charts import line_with_floor
from common.devices import DEVICES, prefill_floor_seconds
from common.model_config import ModelConfig
from common.model_costs import (
    attention_flops_per_token,
    decode_bytes,
    gptq_bits_per_weight,
    kv_bytes,
    linear_flops_per_token,
    lm_head_flops_per_row,
    parameter_counts,
    weight_bytes,
)
from common.plot_style import INK, axes, hue, label
from common.qwen3 import QWEN3_0_6B, QWEN3_SHAPES
from tools.figures.registry import FigureInput, figure

H100 = DEVICES["h100"]
FP8_FLOPS = 2 * H100.spec_flops
LARGE = QWEN3_SHAPES["Qwen3-8B"]
ALL_REDUCE_SECONDS = 10e-6
"""Assumed for a small message between the GPUs of one host."""


def step_seconds(config: ModelConfig, batch: int, rows: int, context: int) -> float:
    """Least time of a step in which each of ``batch`` sequences computes ``rows`` tokens.

    Every row is scored, as decoding and verifying need; K and V are read once a sequence.
    """
    flops = linear_flops_per_token(config) + lm_head_flops_per_row(config)
    flops += attention_flops_per_token(config, context)
    size = decode_bytes(config, batch, context)
    return max(size / H100.spec_bandwidth, batch * rows * flops / H100.spec_flops)


def expected_tokens(acceptance: float, drafts: int) -> float:
    """Tokens a verifying step yields: ``1 + α + … + αᵏ``."""
    return sum(acceptance**n for n in range(drafts + 1))


def speculation_gain(batch: int, acceptance: float, drafts: int = 4, context: int = 1024) -> float:
    """Plain time over speculative time per token: Qwen3-8B verifies what the 0.6B drafts."""
    plain = step_seconds(LARGE, batch, 1, context)
    drafting = drafts * step_seconds(QWEN3_0_6B, batch, 1, context)
    verifying = step_seconds(LARGE, batch, drafts + 1, context)
    return expected_tokens(acceptance, drafts) * plain / (drafting + verifying)


def parallel_seconds(config: ModelConfig, gpus: int) -> float:
    """A one-sequence decode step on ``gpus`` GPUs: a share of the bytes, and two sums a layer."""
    share = weight_bytes(config) / gpus / H100.spec_bandwidth
    return share + (2 * config.num_layers * ALL_REDUCE_SECONDS if gpus > 1 else 0)


def projection_gain(tokens: int, bits: float, flops: float) -> float:
    """bfloat16 time over low-bit time of a projection: bytes or FLOPs, whichever takes longer."""

    def seconds(width: float, rate: float) -> float:
        return max(width / 8 / H100.spec_bandwidth, 2 * tokens / rate)

    return seconds(16, H100.spec_flops) / seconds(bits, flops)


@dataclass(frozen=True)
class Experts:
    """The expert layers of a model.

    Attributes:
        layers: How many there are.
        total: Experts of a layer.
        active: Experts that one token uses.
        weights: Of one expert.
    """

    layers: int
    total: int
    active: int
    weights: int

    def touched(self, batch: int) -> float:
        """Experts of a layer that ``batch`` tokens use, if each picks at random."""
        return self.total * (1 - (1 - self.active / self.total) ** batch)

    def bytes_read(self, batch: int) -> float:
        """Bytes of expert weights that a decode step reads, bfloat16."""
        return 2 * self.layers * self.weights * self.touched(batch)


QWEN3_30B_A3B = Experts(layers=48, total=128, active=8, weights=3 * 2048 * 768)


def batch_within(config: ModelConfig, seconds: float, context: int) -> float:
    """The largest batch whose decode step of bytes alone stays within ``seconds``."""
    left = H100.spec_bandwidth * seconds - weight_bytes(config)
    return max(0.0, left / kv_bytes(config, context))


def rate_within(
    config: ModelConfig, seconds: float, prompt: int, output: int, share_prefill: bool = True
) -> float:
    """Requests per second that a GPU can finish with a time per token of ``seconds``.

    A request takes ``output`` steps of a full batch, and its prefill at full arithmetic.
    """
    batch = batch_within(config, seconds, prompt + output // 2)
    if not batch:
        return 0.0
    cost = output * seconds / batch
    if share_prefill:
        cost += prefill_floor_seconds(config, H100.spec_flops, prompt)
    return 1 / cost


def _curves(
    series: Mapping[str, Callable[[int], float]], most: int, xlabel: str, ylabel: str
) -> Any:
    ax = axes(None, 6.4, 3.4)
    counts = sorted({round(2 ** (step / 4)) for step in range(4 * most + 1)})
    for number, (name, curve) in enumerate(series.items()):
        ax.plot(
            counts, [curve(n) for n in counts], "-", color=hue(number), lw=1.8,
            marker="osD^"[number], ms=5, markevery=4, label=name,
        )  # fmt: skip
    ax.set_xscale("log", base=2)
    ax.set_xticks([2**n for n in range(most + 1)], [f"{2**n:,}" for n in range(most + 1)])
    ax.minorticks_off()
    ax.set_ylim(bottom=0)
    label(ax, None, xlabel, ylabel)
    ax.figure.legend(loc="outside lower center", ncols=2, frameon=False, labelcolor=INK, fontsize=9)
    return ax


@figure("beyond-speculation")
def speculation(_: FigureInput) -> Any:
    """Draw what four drafts a step can gain, against the batch."""

    def curve(acceptance: float) -> Callable[[int], float]:
        return lambda batch: speculation_gain(batch, acceptance)

    series = {f"acceptance {a:g}": curve(a) for a in (0.9, 0.7, 0.5)}
    ax = _curves(series, 9, "sequences in the step", "plain time / speculative time")
    ax.axhline(1, color=INK, ls=":", lw=1.2)
    return ax


@figure("beyond-tensor-parallel")
def tensor_parallel(_: FigureInput) -> Any:
    """Draw a one-sequence step on 1 to 8 GPUs, with the time of its all-reduces."""
    return line_with_floor(
        {
            name: {float(n): parallel_seconds(config, n) * 1e3 for n in (1, 2, 4, 8)}
            for name, config in (("Qwen3-8B", LARGE), ("Qwen3-0.6B", QWEN3_0_6B))
        },
        xlabel="GPUs",
        ylabel="ms per decode step, one sequence",
        log_x=True,
    )


@figure("beyond-low-bits")
def low_bits(_: FigureInput) -> Any:
    """Draw the most that W4A16 and FP8 W8A8 projections gain, against the tokens of a step."""
    four = gptq_bits_per_weight(128)
    ax = _curves(
        {
            "4-bit weights, bfloat16 products": lambda n: projection_gain(n, four, H100.spec_flops),
            "FP8 weights and products": lambda n: projection_gain(n, 8, FP8_FLOPS),
        },
        11,
        "tokens in the step",
        "bfloat16 time / low-bit time, at most",
    )
    ax.axhline(1, color=INK, ls=":", lw=1.2)
    return ax


@figure("beyond-moe")
def moe(_: FigureInput) -> Any:
    """Draw the weight bytes of a decode step: experts against dense projections."""
    dense = 2 * parameter_counts(LARGE).linear / 1e9
    return _curves(
        {
            "experts of Qwen3-30B-A3B": lambda n: QWEN3_30B_A3B.bytes_read(n) / 1e9,
            "projections of Qwen3-8B": lambda _: dense,
        },
        8,
        "sequences in the step",
        "GB of weights read",
    )


@figure("beyond-slo")
def slo(_: FigureInput) -> Any:
    """Draw the requests per second of one GPU against the allowed time per token."""
    targets = [float(ms) for ms in (6, 8, 10, 15, 20, 30, 40)]

    def line(share_prefill: bool) -> dict[float, float]:
        return {ms: rate_within(LARGE, ms / 1e3, 2048, 256, share_prefill) for ms in targets}

    return line_with_floor(
        {"decoding alone": line(False), "prefills on the same GPU": line(True)},
        1 / prefill_floor_seconds(LARGE, H100.spec_flops, 2048),
        floor_label="prefills alone",
        xlabel="ms per output token allowed",
        ylabel="requests per second, Qwen3-8B",
    )
