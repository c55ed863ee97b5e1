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
    kind, argument, spec = match["kind"], match["argument"], match["spec"] or ""
    match kind:
        case "constant" | "calc":
            return format_value(evaluate(argument, context.constants()), spec)
        case "result":
            result, value, unit = context.results.value(argument)
            text = with_unit(value, unit) if unit and not spec else format_value(value, spec)
            return _linked(text, [result], context)
        case "ratio":
            return _ratio(argument, spec or "x", context)
    raise DocsError(f"unknown token {kind!r} (known: constant, calc, result, ratio)")


def _ratio(argument: str, spec: str, context: PageContext) -> str:
    above, slash, below = argument.partition(" / ")
    if not slash:
        raise DocsError(f"a ratio is two result references separated by ' / ', got {argument!r}")
    top_file, top, unit = context.results.value(above)
    bottom_file, bottom, other_unit = context.results.value(below)
    if unit != other_unit:
        raise DocsError(f"cannot divide {unit or 'a number'} by {other_unit or 'a number'}")
    if not isinstance(top, int | float) or not isinstance(bottom, int | float) or bottom == 0:
        raise DocsError(f"cannot divide {top!r} by {bottom!r}")
    return _linked(format_value(top / bottom, spec), [top_file, bottom_file], context)


def _linked(text: str, sources: list[Result], context: PageContext) -> str:
    """A measured number links to the section of the benchmark page that holds its file."""
    target = context.link_to("benchmarks/index.md")
    names = " / ".join(dict.fromkeys(f"{s.provenance} ({s.name})" for s in sources))
    title = names.replace('"', "'").replace("|", "/")
    return f'[{text}]({target}#{sources[0].anchor}){{ .folo-result title="{title}" }}'
