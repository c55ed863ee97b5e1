"""The report as aligned tables for a terminal, without colour."""

from __future__ import annotations

from collections.abc import Sequence

from common.devices import format_bytes
from common.model_config import DTYPE_BYTES, ModelConfig
from common.model_costs import ParameterCounts, kv_bytes, parameter_counts, weight_bytes
from m0_init.device_memory import DeviceMemory
from m0_init.report import STEP_TOKENS, UTILIZATION, NextToken, Report


def as_text(report: Report) -> str:
    """The report for people: five blocks of aligned lines, without colour."""
    config = report.config
    blocks = [
        ("Architecture", _architecture(config)),
        ("Parameters", _parameters(parameter_counts(config), report.dtype)),
        ("Bytes by dtype", _bytes_by_dtype(config)),
        (f"Memory of {_place(report.memory)}", _memory(report)),
        (f"Next token after {_shown(report)}", _candidates(report.next_tokens)),
    ]
    return f"{report.model}\n\n" + "\n\n".join(
        "\n".join([title, *(f"  {line}" for line in lines)]) for title, lines in blocks
    )


def table(rows: Sequence[Sequence[str]], numbers: str = "") -> list[str]:
    """Align columns.

    Args:
        rows: Cells; every row has as many.
        numbers: One letter per column: ``r`` aligns to the right, anything else to the left.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    sides = numbers.ljust(len(widths))
    return [
        "  ".join(
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(row, widths, sides, strict=True)
        ).rstrip()
        for row in rows
    ]


def _architecture(config: ModelConfig) -> list[str]:
    group = config.num_heads // config.num_kv_heads
    sharing = f"each for {group} query heads" if group > 1 else "one for each query head"
    biases = {"q, k, v": config.qkv_bias, "o": config.o_bias, "MLP": config.mlp_bias}
    eos = ", ".join(f"id {token}" for token in config.eos_token_ids) or "none"
    rope = f"{config.rope.rope_type}, theta {config.rope.theta:,.0f}"
    return table(
        [
            ("class", config.architecture),
            ("decoder layers", f"{config.num_layers}"),
            ("hidden size", f"{config.hidden_size:,}"),
            ("query heads", f"{config.num_heads} of {config.head_dim} = {config.q_size:,}"),
            (
                "KV heads",
                f"{config.num_kv_heads} of {config.head_dim} = {config.kv_size:,}, {sharing}",
            ),
            ("MLP width", f"{config.intermediate_size:,}"),
            ("vocabulary", f"{config.vocab_size:,}"),
            ("longest context", f"{config.max_position_embeddings:,} tokens"),
            ("RoPE", rope),
            ("QK-norm", "yes" if config.qk_norm else "no"),
            ("biases", "; ".join(name for name, is_on in biases.items() if is_on) or "none"),
            ("lm_head", "the embedding" if config.tie_word_embeddings else "its own matrix"),
            ("end of sequence", eos),
            ("stored as", config.dtype),
        ]
    )


def _parameters(counts: ParameterCounts, dtype: str) -> list[str]:
    named = {
        "embedding": counts.embedding,
        "attention q, k, v": counts.qkv,
        "attention output": counts.attention_output,
        "MLP": counts.mlp,
        "norms": counts.norms,
        "lm_head": counts.lm_head,
        "total": counts.total,
    }
    size = DTYPE_BYTES[dtype]
    rows = [("component", "parameters", "share", dtype)]
    for name, count in named.items():
        share = f"{100 * count / counts.total:.1f} %"
        rows.append((name, f"{count:,}", share, format_bytes(count * size)))
    return table(rows, " rrr")


def _bytes_by_dtype(config: ModelConfig) -> list[str]:
    context = config.max_position_embeddings
    kinds = list(DTYPE_BYTES)
    return table(
        [
            ("", *kinds),
            ("weights", *(format_bytes(weight_bytes(config, kind)) for kind in kinds)),
            ("KV per token", *(f"{kv_bytes(config, 1, kind):,} B" for kind in kinds)),
            (
                f"KV of {context:,} tokens",
                *(format_bytes(kv_bytes(config, context, kind)) for kind in kinds),
            ),
        ],
        " rrr",
    )


def _memory(report: Report) -> list[str]:
    plan, context = report.plan, report.config.max_position_embeddings
    fits = plan.max_sequences(context)
    rows = [
        ("total", format_bytes(report.memory.total_bytes), ""),
        ("free", format_bytes(report.memory.free_bytes), ""),
        (
            "budget",
            format_bytes(plan.budget_bytes),
            f"{UTILIZATION * 100:.0f} % of total, or what is free",
        ),
        ("weights", format_bytes(plan.weight_bytes), report.dtype),
        ("rope table", format_bytes(plan.rope_bytes), "float32"),
        (
            "activations",
            format_bytes(plan.activation_bytes),
            f"peak of a step of {STEP_TOKENS:,} tokens",
        ),
        ("KV pool", format_bytes(plan.kv_pool_bytes), f"{plan.kv_bytes_per_token:,} B per token"),
    ]
    blocks = f"{plan.num_blocks:,} blocks of {plan.block_size}"
    sequences = f"{_count(fits, 'sequence')} of {context:,} tokens"
    return [*table(rows, " r "), f"KV for {plan.num_tokens:,} tokens: {blocks}, or {sequences}"]


def _candidates(tokens: Sequence[NextToken]) -> list[str]:
    rows = [("id", "token", "probability", "logit")]
    for token in tokens:
        text = "" if token.text is None else repr(token.text)
        rows.append(
            (f"{token.token_id}", text, f"{100 * token.probability:.2f} %", f"{token.logit:.3f}")
        )
    return table(rows, "r rr")


def _place(memory: DeviceMemory) -> str:
    return memory.name if memory.device == "planned" else f"{memory.device}, {memory.name}"


def _shown(report: Report) -> str:
    count = _count(len(report.prompt_token_ids), "token")
    what = repr(report.prompt) if report.prompt is not None else f"ids {report.prompt_token_ids}"
    return f"{what} ({count}, one forward pass)"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
