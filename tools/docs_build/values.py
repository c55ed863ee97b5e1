"""Numbers on pages: arithmetic over the constants sheet, and how a number is printed."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping

from tools.docs_build.errors import DocsError

Number = int | float

_BINARY: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
NBSP = "\u00a0"
"""Between a number and its unit, so that a line never breaks there."""

_UNITS = (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024))


def evaluate(expression: str, names: Mapping[str, object]) -> Number:
    """Compute an arithmetic expression over named constants.

    Args:
        expression: Numbers, names of ``names``, ``+ - * / // % **``, parentheses, and calls of the
            functions in ``names`` with such expressions as arguments.
        names: The constants sheet (``vars(common.qwen3)``).

    Raises:
        DocsError: A name is unknown, or the expression holds anything else.
    """
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except SyntaxError as error:
        raise DocsError(f"not an expression: {expression!r}") from error
    value = _evaluate(tree.body, names)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DocsError(f"{expression!r} is not a number but {type(value).__name__}")
    return value


def _evaluate(node: ast.expr, names: Mapping[str, object]) -> object:
    match node:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.Constant(value=str() as value):
            return value
        case ast.Name(id=name):
            if name not in names:
                raise DocsError(f"no constant {name!r} in common/qwen3.py")
            return names[name]
        case ast.Attribute(value=inner, attr=name) if not name.startswith("_"):
            owner = _evaluate(inner, names)
            if not hasattr(owner, name):
                raise DocsError(f"no attribute {name!r} on {ast.unparse(inner)}")
            return getattr(owner, name)
        case ast.Subscript(value=inner, slice=ast.Constant(value=key)):
            return _item(_evaluate(inner, names), key, ast.unparse(node))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(operand, names)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_number(left, names), _number(right, names))
        case ast.Call(func=func, args=args, keywords=keywords):
            called = _evaluate(func, names)
            if not callable(called):
                raise DocsError(f"{ast.unparse(func)} is not a function")
            named = {k.arg: _evaluate(k.value, names) for k in keywords if k.arg}
            result: object = called(*(_evaluate(arg, names) for arg in args), **named)
            return result
    raise DocsError(f"not allowed in a constant expression: {ast.unparse(node)!r}")


def _number(node: ast.expr, names: Mapping[str, object]) -> Number:
    value = _evaluate(node, names)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DocsError(f"{ast.unparse(node)!r} is not a number but {type(value).__name__}")
    return value


def _item(owner: object, key: object, text: str) -> object:
    if isinstance(owner, Mapping) and key in owner:
        return owner[key]
    raise DocsError(f"no entry {text!r} in common/qwen3.py")


def format_value(value: object, spec: str = "") -> str:
    """Print a value the way a page asks for.

    Args:
        value: A number or a string.
        spec: Empty (integers with thousands separators, floats with three significant digits),
            ``bytes`` (KiB, MiB or GiB), ``GB`` (decimal gigabytes), ``ms`` and ``us`` (from
            seconds), ``pct`` (from a fraction), ``x`` (a ratio: ``3.4×``), ``tex`` (for use inside
            ``$…$``), or a format spec of Python such as ``.2f`` or ``,d``.

    Raises:
        DocsError: The spec does not fit the value.
    """
    if isinstance(value, str):
        if spec:
            raise DocsError(f"format {spec!r} on the text {value!r}")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DocsError(f"neither a number nor a text: {value!r:.60}")
    if isinstance(value, float) and not math.isfinite(value):
        raise DocsError(f"not a finite number: {value}")
    match spec:
        case "":
            return f"{value:,}" if isinstance(value, int) else significant(value)
        case "tex":
            return format_value(value).replace(",", "{,}")
        case "bytes":
            return _bytes(value)
        case "GB":
            return f"{value / 1e9:.3g}{NBSP}GB"
        case "ms":
            return f"{significant(value * 1e3)}{NBSP}ms"
        case "us":
            return f"{significant(value * 1e6)}{NBSP}µs"
        case "pct":
            return f"{value * 100:.3g}{NBSP}%"
        case "x":
            return f"{significant(value)}×"
    try:
        return format(value, spec)
    except ValueError as error:
        raise DocsError(f"format {spec!r} does not fit {value!r}") from error


def with_unit(value: Number, unit: str) -> str:
    """Print a measured value in its unit, scaled so that it reads well.

    Args:
        value: In ``unit``.
        unit: A unit of result rows: ``s``, ``B``, ``share``, ``tok/s``, … ("" for a plain number).
    """
    factor, shown = scale(abs(value), unit)
    text = significant(value * factor)
    return text + shown if shown == "×" else f"{text}{NBSP}{shown}" if shown else text


def scale(largest: Number, unit: str) -> tuple[float, str]:
    """Choose how values of a unit are printed.

    Args:
        largest: The largest magnitude among them, in ``unit``.
        unit: Their unit.

    Returns:
        What to multiply them with, and the unit to print.
    """
    match unit:
        case "s":
            steps = ((1.0, 1.0, "s"), (1e-3, 1e3, "ms"), (0.0, 1e6, "µs"))
            return next((factor, shown) for least, factor, shown in steps if largest >= least)
        case "B" | "bytes":
            for shown, size in _UNITS:
                if largest >= size:
                    return 1 / size, shown
            return 1, "B"
        case "B/s":
            return 1e-9, "GB/s"
        case "FLOP/s":
            return 1e-12, "TFLOP/s"
        case "share" | "fraction":
            return 100, "%"
        case "ratio" | "x":
            return 1, "×"
    return 1, unit


def significant(value: Number) -> str:
    """Three significant digits with thousands separators, never in scientific notation."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def counted(number: int, noun: str) -> str:
    """``1 line``, ``2,345 lines``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _bytes(value: Number) -> str:
    for unit, size in _UNITS:
        if abs(value) >= size:
            text = f"{value / size:.2f}".rstrip("0").rstrip(".")
            return f"{text}{NBSP}{unit}"
    return f"{value:g}{NBSP}B"
