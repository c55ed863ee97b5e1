"""Inline tokens of a page: ``{{ kind: argument | format }}`` becomes a number.

==========  ==================================================  ====================================
kind        argument                                            example
==========  ==================================================  ====================================
constant    a name or call of ``common/qwen3.py``               ``{{ constant: KV_BYTES | bytes }}``
calc        arithmetic over such names                          ``{{ calc: 65408 / 383 | x }}``
result      a reference into a result file                      ``{{ result: d/m1_basic-x#ttft }}``
ratio       two references separated by `` / ``                 ``{{ ratio: d/a#ttft / d/b#ttft }}``
==========  ==================================================  ====================================
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from tools.docs_build.context import PageContext
from tools.docs_build.errors import DocsError
from tools.docs_build.results import Result
from tools.docs_build.values import evaluate, format_value, with_unit
from tools.markdown import outside_code_spans

TOKEN = re.compile(
    r"\{\{\s*(?P<kind>[a-z]+):\s*(?P<argument>[^{}]*?)\s*"
    r"(?:\\?\|\s*(?P<spec>[^{}|]*?)\s*)?\}\}"  # a table cell writes the bar as \|
)


def expand_tokens(line: str, context: PageContext) -> str:
    """Replace every token of one line outside code spans.

    Raises:
        DocsError: A token's kind, argument or format is wrong.
    """
    if "{{" not in line:
        return line
    return outside_code_spans(
        line, lambda text: TOKEN.sub(lambda match: _expand(match, context), text)
    )


def _expand(match: re.Match[str], context: PageContext) -> str:
    return read(match["kind"], match["argument"], match["spec"] or "", context).linked(context)


@dataclass(frozen=True)
class Reading:
    """What a token stands for.

    Attributes:
        value: The number, or a text of a result file.
        text: How it is printed.
        sources: The result files it comes from; none for arithmetic.
    """

    value: Any
    text: str
    sources: tuple[Result, ...] = ()

    def linked(self, context: PageContext) -> str:
        """The text; a measured one links to its file's section of the benchmark page."""
        if not self.sources:
            return self.text
        target = context.link_to("benchmarks/index.md")
        names = " / ".join(dict.fromkeys(f"{s.provenance} ({s.name})" for s in self.sources))
        title = names.replace('"', "'").replace("|", "/")
        anchor = self.sources[0].anchor
        return f'[{self.text}]({target}#{anchor}){{ .folo-result title="{title}" }}'


def read(kind: str, argument: str, spec: str, context: PageContext) -> Reading:
    """Resolve one token.

    Args:
        kind: ``constant``, ``calc``, ``result`` or ``ratio``.
        argument: What it names.
        spec: How to print it; "" for the default.
        context: The page.

    Raises:
        DocsError: The kind, the argument or the format is wrong.
    """
    match kind:
        case "constant" | "calc":
            number = evaluate(argument, context.constants())
            return Reading(number, format_value(number, spec))
        case "result":
            result, value, unit = context.results.value(argument)
            text = with_unit(value, unit) if unit and not spec else format_value(value, spec)
            return Reading(value, text, (result,))
        case "ratio":
            return _ratio(argument, spec or "x", context)
    raise DocsError(f"unknown token {kind!r} (known: constant, calc, result, ratio)")


def _ratio(argument: str, spec: str, context: PageContext) -> Reading:
    above, below = references("ratio", argument)
    top_file, top, unit = context.results.value(above)
    bottom_file, bottom, other_unit = context.results.value(below)
    if unit != other_unit:
        raise DocsError(f"cannot divide {unit or 'a number'} by {other_unit or 'a number'}")
    if not isinstance(top, int | float) or not isinstance(bottom, int | float) or bottom == 0:
        raise DocsError(f"cannot divide {top!r} by {bottom!r}")
    quotient = top / bottom
    return Reading(quotient, format_value(quotient, spec), (top_file, bottom_file))


def references(kind: str, argument: str) -> tuple[str, ...]:
    """Return the references into result files that a token's argument holds.

    Raises:
        DocsError: A ratio is not two references.
    """
    if kind == "result":
        return (argument,)
    if kind != "ratio":
        return ()
    above, slash, below = argument.partition(" / ")
    if not slash:
        raise DocsError(f"a ratio is two result references separated by ' / ', got {argument!r}")
    return above, below
