"""Figures of note 01: a token's way through the model, masks, filters, what the cache is worth."""

from __future__ import annotations

from typing import Any

from common.charts import grouped, line_with_floor
from common.errors import ConfigError
from common.plot_style import INK, axes, hue, label, text_on
from common.plots import token_bars
from common.trace import Trace
from tools.docs_build.errors import DocsError
from tools.docs_build.results import Result, select
from tools.docs_build.values import scale
from tools.figures.registry import FigureInput, figure

_EXAMPLE = (0.5, 0.25, 0.125, 0.0625, 0.0625)
"""A distribution whose sums are exact in binary; the sampler's tests use the same one."""

_FILTERS: tuple[tuple[str, dict[str, float]], ...] = (
    ("softmax", {}),
    ("temperature 0.5", {"temperature": 0.5}),
    ("temperature 2", {"temperature": 2.0}),
    ("min_p 0.25", {"min_p": 0.25}),
    ("top_k 2", {"top_k": 2}),
    ("top_p 0.6", {"top_p": 0.6}),
)


@figure("cache-steps", ("without", "with"))
def cache_steps(given: FigureInput) -> Any:
    """Draw the tokens per step of two recorded runs of one request, side by side."""
    from matplotlib import pyplot as plt

    drawn, panels = plt.subplots(1, 2, figsize=(7.4, 2.9), sharey=True, layout="constrained")
    most = 0
    for panel, key in zip(panels, ("without", "with"), strict=True):
        trace = Trace.read(given.root / "docs" / "traces" / given.option(key))
        most = max(most, *(step.num_tokens for step in trace))
        total = sum(step.num_tokens for step in trace)
        ax = axes(panel, 0, 0)
        token_bars(trace, ax, f"{key} the cache: {total} token forwards")
        for step in trace:
            ax.text(
                step.index + 0.5, step.num_tokens + 0.7, str(step.num_tokens), ha="center",
                color=INK, fontsize=8,
            )  # fmt: skip
    panels[0].set_ylim(0, 1.12 * most)
    panels[1].set_ylabel("")
    return drawn


@figure("sampling-filters")
def sampling_filters(_: FigureInput) -> Any:
    """Draw what each filter of the reference sampler leaves of one distribution."""
    import torch
    from matplotlib import pyplot as plt

    from common.request import SamplingParams
    from m1_basic.sampler import sampling_distribution

    logits = torch.tensor([_EXAMPLE]).log()
    drawn, panels = plt.subplots(2, 3, figsize=(7.4, 3.9), sharey=True, layout="constrained")
    before = [100 * value for value in _EXAMPLE]
    for number, (panel, (name, options)) in enumerate(zip(panels.flat, _FILTERS, strict=True)):
        (row,) = sampling_distribution(logits, [SamplingParams(**options)]).tolist()  # type: ignore[arg-type]
        ax = axes(panel, 0, 0)
        label(ax, name, None, "probability (%)" if number % 3 == 0 else None)
        ax.bar(range(5), before, 0.72, facecolor="none", edgecolor=INK, ls=":", lw=1.0)
        ax.bar(range(5), [100 * value for value in row], 0.72, color=hue(0))
        for place, value in enumerate(row):
            text = f"{100 * value:.3g}" if value else "×"
            top = max(100 * value, before[place])
            ax.text(place, top + 2, text, ha="center", color=INK, fontsize=8)
        ax.set_xticks(range(5), list("abcde"))
        ax.set_ylim(0, 92)
    return drawn


@figure("m1_basic-cache_curve", ("result",))
def cache_curve(given: FigureInput) -> Any:
    """Draw the step time with and without the cache over the context, and the floor below it."""
    result = given.results.get(given.option("result"))
    times = select(result.rows, "metric=step_time")
    if not times:
        raise DocsError(f"{result.name} has no metric 'step_time'")
    factor, unit = scale(max(row["median"] for row in times), "s")
    scaled = [{**row, **{k: row[k] * factor for k in ("median", "min", "max")}} for row in times]
    names = {"on": "with the cache", "off": "without it"}
    try:
        lines = grouped(scaled, "context", "cache")
        series = {name: lines[key] for key, name in names.items()}
    except (ConfigError, KeyError) as error:
        raise DocsError(f"{result.name}: {error}") from error
    return line_with_floor(
        series,
        _floor(result, factor),
        xlabel="tokens in the sequence",
        ylabel=f"one decode step ({unit})",
        floor_label="floor: weights + KV at copy bandwidth",
        log_x=True,
        log_y=True,
    )


def _floor(result: Result, factor: float) -> dict[float, float]:
    rows = select(result.rows, "metric=step_floor")
    return {row["context"]: row["median"] * factor for row in rows}


@figure("causal-alignment")
def causal_alignment(_: FigureInput) -> str:
    """Draw the mask of two new queries over five keys, aligned top-left and bottom-right."""
    panels = [
        _mask(0, "aligned top-left: wrong", lambda query, key: key <= query, wrong=True),
        _mask(330, "aligned bottom-right", lambda query, key: key <= query + 3),
    ]
    return _svg(640, 150, [part for panel in panels for part in panel])


def _mask(x: int, title: str, sees: Any, *, wrong: bool = False) -> list[str]:
    side, top = 30, 52
    parts = [_text(x + 42, 18, title, bold=True)]
    heads = (x + 42 + key * side + side / 2 for key in range(5))
    parts += [_text(at, 42, f"k{key}", anchor="middle") for key, at in enumerate(heads)]
    for query in range(2):
        middle = top + query * side + side / 2 + 4
        parts.append(_text(x + 32, middle, f"q{query + 3}", anchor="end"))
        for key in range(5):
            place = (x + 42 + key * side, top + query * side)
            parts += _cell(*place, side - 3, "solid" if sees(query, key) else "free")
    note = "q4 does not even see itself" if wrong else "q4, the newest, sees every key"
    return [*parts, _text(x + 42, top + 2 * side + 20, note)]


_LANES = (118, 562)
_BOX = (236, 208)


@figure("token-path")
def token_path(given: FigureInput) -> str:
    """Draw the shapes of a prefill of L tokens and of one decode step, operation by operation."""
    model = given.constants.get("QWEN3_0_6B")
    if model is None:
        raise DocsError("the constants sheet has no QWEN3_0_6B")
    hidden, heads, kv = model.hidden_size, model.num_heads, model.num_kv_heads
    dim, vocab = model.head_dim, model.vocab_size
    qkv = model.q_size + 2 * model.kv_size
    rows = [
        ("token ids", "[{n}]"),
        ("embedding", f"[{{n}}, {hidden:,}]"),
        ("RMSNorm, q k v in one product", f"[{{n}}, {qkv:,}]"),
        ("QK-norm and RoPE", f"q [{{n}}, {heads}, {dim}] · k, v [{{n}}, {kv}, {dim}]"),
        ("", ""),
        ("scores, mask, softmax", ""),
        ("weighted sum of V", f"[{{n}}, {heads}, {dim}]"),
        ("output projection, + residual", f"[{{n}}, {hidden:,}]"),
        ("RMSNorm, gate and up", f"[{{n}}, {2 * model.intermediate_size:,}]"),
        ("SwiGLU, down, + residual", f"[{{n}}, {hidden:,}]"),
        ("final norm, last row only", f"[1, {hidden:,}]"),
        ("lm_head", f"[1, {vocab:,}]"),
        ("filters, exponential race", "one id"),
    ]
    return _path(rows, heads, model.num_layers)


def _path(rows: list[tuple[str, str]], heads: int, layers: int) -> str:
    left, width = _BOX
    parts = [
        _text(_LANES[0], 20, "prefill: L = 5 tokens", anchor="middle", bold=True),
        _text(_LANES[1], 20, "decode: 1 token", anchor="middle", bold=True),
    ]
    y, cache_y, layer_top, bottoms = 36, 0, 0, [0]
    for number, (name, shape) in enumerate(rows):
        height = {4: 66, 5: 92}.get(number, 28)
        if number == 2:
            layer_top = y - 6
        if number == 4:
            cache_y = y
            parts += _cache(y)
        else:
            middle = y + height / 2
            parts += _box(left, y, width, height, name)
            for lane, tokens in zip(_LANES, ("L", "1"), strict=True):
                parts.append(_text(lane, middle + 4, shape.format(n=tokens), anchor="middle"))
        if number == 5:
            parts += _scores(y, heads)
        bottoms.append(y + height)
        y += height + 12
    parts += _arrows(cache_y)
    bottom = bottoms[10] + 6
    parts.append(
        f'<rect x="{left - 14}" y="{layer_top}" width="{width + 28}" '
        f'height="{bottom - layer_top}" rx="6" fill="none" stroke="currentColor" '
        'stroke-opacity="0.45" stroke-dasharray="5 4"/>'
    )
    middle = (bottoms[6] + bottom) / 2
    parts.append(
        f'<g transform="rotate(-90 {left - 24} {middle})">'
        f"{_text(left - 24, middle, f'{layers} layers', anchor='middle')}</g>"
    )
    parts += _loop(y - 26, y + 4)
    return _svg(700, y + 12, parts)


def _loop(id_y: float, low: float) -> list[str]:
    """The id of either lane becomes the next decode step's token."""
    first, second = 50, 690
    tip = "l6 4m-6 -4l6 -4"
    style = 'fill="none" stroke="currentColor" stroke-opacity="0.8"'
    joined = f"M{_LANES[0]} {id_y + 10}V{low}H{second}V{first}H{_LANES[1] + 18}{tip}"
    return [f'<path d="{joined}M{_LANES[1]} {id_y + 10}V{low}" {style}/>']


def _cache(y: int) -> list[str]:
    """Ten places of one layer's K and V: five prefilled, one decoded, four reserved."""
    left, _ = _BOX
    parts = [_text(left, y + 12, "KV cache of this layer, by position")]
    for place in range(10):
        look = "solid" if place < 5 else "light" if place == 5 else "free"
        parts += _cell(left + place * 21, y + 20, 18, look, str(place))
    return [*parts, _text(left, y + 58, "append, then read 0 … n")]


def _scores(y: int, heads: int) -> list[str]:
    """The score matrices of one head: a triangle for the prompt, one row for the new token."""
    side, parts = 13, []
    for row in range(5):
        for column in range(5):
            look = "solid" if column <= row else "free"
            parts += _cell(_LANES[0] - 32 + column * side, y + 4 + row * side, side - 2, look)
    parts.append(_text(_LANES[0], y + 86, f"[{heads}, L, L]", anchor="middle"))
    for column in range(6):
        parts += _cell(_LANES[1] - 39 + column * side, y + 30, side - 2, "light")
    parts.append(_text(_LANES[1], y + 86, f"[{heads}, 1, n + 1]", anchor="middle"))
    return parts


def _arrows(cache_y: int) -> list[str]:
    left, width = _BOX
    y = cache_y + 29
    return [
        _arrow(_LANES[0] + 10, left - 18, y),
        _text(_LANES[0] + 2, y + 4, "k, v of 5", anchor="end"),
        _arrow(_LANES[1] - 10, left + width + 18, y),
        _text(_LANES[1] - 2, y + 4, "k, v of 1"),
    ]


def _box(x: float, y: float, width: float, height: float, name: str) -> list[str]:
    rect = (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="4" fill="currentColor" '
        'fill-opacity="0.06" stroke="currentColor" stroke-opacity="0.5"/>'
    )
    return [rect, _text(x + width / 2, y + height / 2 + 4, name, anchor="middle")]


def _cell(x: float, y: float, side: float, look: str, text: str = "") -> list[str]:
    colour = hue(0)
    fill = {
        "solid": f'fill="{colour}" stroke="{colour}"',
        "light": f'fill="{colour}" fill-opacity="0.35" stroke="{colour}"',
        "free": 'fill="none" stroke="currentColor" stroke-opacity="0.5"',
    }[look]
    parts = [f'<rect x="{x}" y="{y}" width="{side}" height="{side}" {fill}/>']
    if text:
        ink = text_on(colour) if look == "solid" else "currentColor"
        parts.append(
            f'<text x="{x + side / 2}" y="{y + side / 2 + 4}" text-anchor="middle" fill="{ink}" '
            f'style="font-size: 10.5px">{text}</text>'
        )
    return parts


def _arrow(x1: float, x2: float, y: float) -> str:
    """Return a horizontal arrow."""
    tip = 6 if x2 > x1 else -6
    return (
        f'<path d="M{x1} {y}H{x2}m{-tip} -4l{tip} 4l{-tip} 4" fill="none" '
        'stroke="currentColor" stroke-opacity="0.8"/>'
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", bold: bool = False) -> str:
    weight = "; font-weight: bold" if bold else ""
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="currentColor" '
        f'style="font-size: 12.5px{weight}">{text}</text>'
    )


def _svg(width: int, height: float, parts: list[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" viewBox="0 0 {width} {height}">'
    )
    return "\n".join([head, *parts, "</svg>"])
