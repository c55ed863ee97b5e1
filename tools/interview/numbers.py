"""Numeric questions: what the right value is for a model, and what a typed answer says.

An expression is that of a page's ``calc`` token, with ``model`` for the model asked about, every
name of :mod:`common.qwen3`, and the functions of :mod:`common.model_costs` and
:mod:`common.devices`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from common import devices, model_costs, qwen3
from common.errors import ConfigError
from common.model_config import ModelConfig
from tools.docs_build.errors import DocsError
from tools.docs_build.values import evaluate, format_value, with_unit
from tools.interview.schema import Number, Question, QuestionError

MODELS: Mapping[str, ModelConfig] = qwen3.QWEN3_SHAPES
FIRST_MODEL = "Qwen3-0.6B"

_BYTES = {"b": 1, "byte": 1, "bytes": 1}
_BYTES |= {f"{p}b": 1000**n for n, p in enumerate("kmgt", start=1)}
_BYTES |= {f"{p}ib": 1024**n for n, p in enumerate("kmgt", start=1)}
_SECONDS = {"s": 1.0, "second": 1.0, "seconds": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
_SHARE = {"fraction": 1.0, "share": 1.0, "%": 1e-2, "percent": 1e-2}
_RATIO = {"ratio": 1.0, "x": 1.0, "×": 1.0, "times": 1.0}
_COUNT = {"k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}
_COUNT |= {"thousand": 1e3, "million": 1e6, "billion": 1e9}
_SCALED = (_BYTES, _SECONDS, _SHARE, _RATIO)
# What arithmetic and a function given something odd may raise.
_FAILURES = (DocsError, TypeError, ValueError, AttributeError, ArithmeticError, LookupError)
_ANSWER = re.compile(
    r"(?:about |~|≈)?\s*(?P<number>[+-]?(?:\d[\d,_]*\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(?P<unit>\D*)"
)


def value_for(question: Question, number: Number, model: str) -> float:
    """Compute the right answer for one model.

    Raises:
        QuestionError: The expression does not evaluate.
    """
    constants = {name: constant.value for name, constant in qwen3.CONSTANTS.items()}
    # Functions win: the sheet names some of its values of Qwen3-0.6B like them.
    names = {**constants, **vars(devices), **vars(model_costs), **vars(qwen3)}
    try:
        return evaluate(number.expression, names | {"model": MODELS[model]})
    except _FAILURES as error:
        place = "number.expression"
        raise QuestionError(question.file, question.id, place, f"{model}: {error}") from error


def read_number(text: str, unit: str) -> float:
    """Read an answer such as ``112 KiB``, ``114,688`` or ``1.1e5`` as a number of ``unit``.

    Args:
        text: What was typed. Without a unit of its own it is taken to be in ``unit``; a count takes
            ``k``, ``M``, ``G`` or ``B`` (10⁹), whatever word follows.
        unit: The unit of the question.

    Raises:
        ConfigError: It is not a number, or its unit measures something else.
    """
    match = _ANSWER.fullmatch(text.strip().lower())
    if match is None:
        raise ConfigError(f"{text.strip()!r} is not a number")
    value = float(match["number"].replace(",", "").replace("_", ""))
    return value * _factor(match["unit"].strip(), unit.lower())


def _factor(typed: str, unit: str) -> float:
    if typed in ("", unit):
        return 1.0
    for table in _SCALED:
        if unit in table:
            if typed not in table:
                raise ConfigError(f"{typed!r} is not a unit of {unit}; known: {', '.join(table)}")
            return table[typed] / table[unit]
    prefix, _, rest = typed.partition(" ")
    if prefix in _COUNT and rest.strip() in ("", unit):
        return _COUNT[prefix]
    raise ConfigError(f"{typed!r} is not {unit}; a number, or one with k, M, G or B, is enough")


def is_right(answer: float, value: float, tolerance: float) -> bool:
    """Whether an answer lies within the relative tolerance of the value."""
    return abs(answer - value) <= tolerance * abs(value)


def show(value: float, unit: str) -> str:
    """A value for people: ``114,688 bytes (112 KiB)``, ``0.356 ms``, ``596,049,920 parameters``."""
    match unit:
        case "bytes":
            whole = f"{round(value):,} bytes"
            return f"{whole} ({format_value(value, 'bytes')})" if value >= 1024 else whole
        case "s" | "seconds":
            return with_unit(value, "s")
        case "fraction" | "share":
            return format_value(value, "pct")
        case "ratio" | "x":
            return format_value(value, "x")
    exact = round(value) if value == round(value) else value
    return f"{format_value(exact)} {unit}"
