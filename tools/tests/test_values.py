from __future__ import annotations

import math
from typing import Any

import pytest

from tools.docs_build.errors import DocsError
from tools.docs_build.values import evaluate, format_value, with_unit

NAMES: dict[str, Any] = {"a": 6, "b": 4, "f": max, "text": "x", "table": {"k": 2}}


@pytest.mark.parametrize(
    "expression, value",
    [
        ("a", 6),
        ("a * (b + 1)", 30),
        ("-a + 2 ** 3", 2),
        ("a / b", 1.5),
        ("a // b", 1),
        ("a % b", 2),
        ("f(a, b + 10)", 14),
        ("table['k']", 2),
        ("1.5", 1.5),
    ],
)
def test_evaluate(expression: str, value: float) -> None:
    assert evaluate(expression, NAMES) == value


@pytest.mark.parametrize(
    "expression, message",
    [
        ("gone", "no constant 'gone'"),
        ("a +", "not an expression"),
        ("text", "not a number but str"),
        ("text + 1", "not a number"),
        ("a if b else 1", "not allowed"),
        ("[a][0]", "not allowed"),
        ("a.__class__", "not allowed"),
        ("a.gone", "no attribute 'gone'"),
        ("table['z']", "no entry"),
        ("a(1)", "not a function"),
    ],
)
def test_evaluate_refuses(expression: str, message: str) -> None:
    with pytest.raises(DocsError, match=message):
        evaluate(expression, NAMES)


@pytest.mark.parametrize(
    "value, spec, text",
    [
        (114688, "", "114,688"),
        (0.12345, "", "0.123"),
        (12345.6, "", "12,346"),
        (1.5, "", "1.50"),
        (0.0, "", "0"),
        (114688, "bytes", "112\u00a0KiB"),
        (1192099840, "bytes", "1.11\u00a0GiB"),
        (12, "bytes", "12\u00a0B"),
        (1192099840, "GB", "1.19\u00a0GB"),
        (0.0123, "ms", "12.3\u00a0ms"),
        (0.0000123, "us", "12.3\u00a0µs"),
        (0.474, "pct", "47.4\u00a0%"),
        (3.4, "x", "3.40×"),
        (114688, "tex", "114{,}688"),
        (2.5, ".2f", "2.50"),
        ("bf16", "", "bf16"),
    ],
)
def test_format(value: float | str, spec: str, text: str) -> None:
    assert format_value(value, spec) == text


@pytest.mark.parametrize(
    "value, spec", [(1, "zz"), ("text", ".1f"), (None, ""), (math.nan, ""), (True, "")]
)
def test_format_refuses(value: object, spec: str) -> None:
    with pytest.raises(DocsError):
        format_value(value, spec)


@pytest.mark.parametrize(
    "value, unit, text",
    [
        (2.5, "s", "2.50\u00a0s"),
        (0.0125, "s", "12.5\u00a0ms"),
        (0.0000125, "s", "12.5\u00a0µs"),
        (3 * 2**30, "B", "3.00\u00a0GiB"),
        (3e12, "B/s", "3,000\u00a0GB/s"),
        (0.5, "share", "50.0\u00a0%"),
        (2.0, "ratio", "2.00×"),
        (14.25, "tok/s", "14.2\u00a0tok/s"),
        (7.0, "", "7.00"),
    ],
)
def test_measured_values_are_scaled(value: float, unit: str, text: str) -> None:
    assert with_unit(value, unit) == text
