"""Whole-line directives: ``<!-- name: argument key=value -->`` becomes Markdown.

A directive is an HTML comment, so that a page reads well on GitHub, where it stays invisible.
``docs/dev/writing.md`` is the user's guide to them; the table at the end of this file is the list.
"""

from __future__ import annotations

import html
import importlib
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass

from tools import outputs
from tools.calculators.page import render_calculator
from tools.docs_build.changes_page import render_changes
from tools.docs_build.context import PageContext
from tools.docs_build.drills import render_drills
from tools.docs_build.errors import DocsError
from tools.docs_build.glossary import render_glossary
from tools.docs_build.interview import render_questions
from tools.docs_build.measured_page import render_measured, render_targets
from tools.docs_build.players import render_player, render_rules
from tools.docs_build.reference import api_pages, constants_table, engine_table, option_table
from tools.docs_build.source import extract
from tools.docs_build.stages import render_stages
from tools.docs_build.tables import render_benchmarks, render_table
from tools.docs_build.tokens import expand_tokens
from tools.docs_build.vllm_pairs import render_pairs
from tools.figures.registry import FigureInput, draw
from tools.markdown import fenced

DIRECTIVE = re.compile(
    r"^(?P<indent>\s*)<!--\s*(?P<name>[a-z][a-z-]*)(?P<colon>:)?(?P<rest>.*?)-->\s*$"
)


@dataclass(frozen=True)
class Directive:
    """A parsed directive.

    Attributes:
        name: What comes before the colon.
        argument: Words without ``=``, joined by spaces.
        options: The ``key=value`` words, in order.
    """

    name: str
    argument: str
    options: dict[str, str]

    def only(self, *known: str) -> None:
        """Refuse options that the directive does not have.

        Raises:
            DocsError: There is another one.
        """
        unknown = sorted(set(self.options) - set(known))
        if unknown:
            has = f"has {', '.join(known)}" if known else "has no options"
            raise DocsError(f"directive {self.name!r}: no option {', '.join(unknown)} ({has})")


def parse(line: str) -> tuple[str, Directive] | None:
    """Read a line as a directive.

    Returns:
        Its indentation and the directive, or None when the line is something else. A comment whose
        first word is followed by neither a colon nor the end is an ordinary comment.

    Raises:
        DocsError: It looks like a directive, but its name is unknown or its quoting is broken.
    """
    match = DIRECTIVE.match(line)
    if match is None or (not match["colon"] and match["rest"].strip()):
        return None
    name = match["name"]
    if name not in _DIRECTIVES and not match["colon"]:
        return None
    if name not in _DIRECTIVES:
        raise DocsError(f"unknown directive {name!r} (known: {', '.join(sorted(_DIRECTIVES))})")
    try:
        words = shlex.split(match["rest"])
    except ValueError as error:
        raise DocsError(f"directive {name!r}: {error}") from error
    plain = [word for word in words if not _is_option(word)]
    options = dict(word.split("=", 1) for word in words if _is_option(word))
    return match["indent"], Directive(name, " ".join(plain), options)


def _is_option(word: str) -> bool:
    return re.match(r"[a-z_]+=", word) is not None


def expand(directive: Directive, context: PageContext) -> list[str]:
    """Return the Markdown lines a directive stands for.

    Raises:
        DocsError: What it names is not there.
    """
    return _DIRECTIVES[directive.name](directive, context)


def _source(directive: Directive, context: PageContext) -> list[str]:
    directive.only("docstring", "from", "to", "title")
    path, _, symbol = directive.argument.partition(":")
    if not (context.root / path).is_file():
        raise DocsError(f"no file {path!r}")
    snippet = extract(
        context.root / path,
        symbol or None,
        docstring=_flag(directive, "docstring", default=True),
        start=directive.options.get("from"),
        stop=directive.options.get("to"),
    )
    first, last = snippet.first_line, snippet.last_line
    place = f"{path}, line {first}" if first == last else f"{path}, lines {first}–{last}"
    title = directive.options.get("title", f"{place} · {symbol}" if symbol else place)
    return fenced(snippet.code, f'python title="{_quoted(title)}"')


def _flag(directive: Directive, key: str, *, default: bool) -> bool:
    value = directive.options.get(key, "yes" if default else "no")
    if value not in {"yes", "no"}:
        raise DocsError(f"directive {directive.name!r}: {key} is yes or no, not {value!r}")
    return value == "yes"


def _output(directive: Directive, context: PageContext) -> list[str]:
    directive.only("command")
    output = outputs.load(context.root, directive.argument)
    lines = outputs.render(output, command=_flag(directive, "command", default=True))
    if output.recorded:
        lines += ["", html.escape(f"Recorded on {output.recorded}."), "{ .folo-caption }"]
    return lines


def _bench(directive: Directive, context: PageContext) -> list[str]:
    directive.only("where", "metrics", "across", "spread", "long", "caption", "missing")
    options = dict(directive.options)
    instead = _instead(options, directive.argument, context)
    return render_table(context, directive.argument, options) if instead is None else instead


def _instead(options: dict[str, str], result: str, context: PageContext) -> list[str] | None:
    """Take the option ``missing``: its text if a page has it and the run is not there yet."""
    text = options.pop("missing", None)
    if text is None or result in context.results.names():
        return None
    return [text] if text else []


def _figure(directive: Directive, context: PageContext) -> list[str]:
    options = dict(directive.options)
    instead = _instead(options, options.get("result", ""), context)
    if instead is not None:
        return instead
    caption = options.pop("caption", "")
    if not caption:
        raise DocsError(f"figure {directive.argument!r} needs a caption that says what it shows")
    context.figures += 1
    alt = options.pop("alt", caption)
    given = FigureInput(context.root, context.results, context.constants(), options)
    svg = draw(directive.argument, given, f"fig{context.figures}")
    label = html.escape(re.sub(r"\{\{.*?\}\}|[*`\[\]]", "", alt), quote=True)
    return [
        f'<div class="folo-figure" role="img" aria-label="{label}" data-search-exclude>',
        *svg.splitlines(),
        "</div>",
        "",
        expand_tokens(caption, context),
        "{ .folo-caption }",
    ]


def _player(directive: Directive, context: PageContext) -> list[str]:
    directive.only()
    return render_player(directive.argument, context)


def _rules(directive: Directive, context: PageContext) -> list[str]:
    directive.only()
    return render_rules(context)


def _calculator(directive: Directive, context: PageContext) -> list[str]:
    directive.only()
    return render_calculator(directive.argument, context)


def _about(
    render: Callable[[str, PageContext], list[str]],
) -> Callable[[Directive, PageContext], list[str]]:
    """A directive that passes its argument on."""

    def expanded(directive: Directive, context: PageContext) -> list[str]:
        directive.only()
        return render(directive.argument, context)

    return expanded


def _whole(
    render: Callable[[PageContext], list[str]],
) -> Callable[[Directive, PageContext], list[str]]:
    """A directive that has nothing to say but its name."""

    def expanded(directive: Directive, context: PageContext) -> list[str]:
        directive.only()
        if directive.argument:
            raise DocsError(f"directive {directive.name!r} takes no argument")
        return render(context)

    return expanded


def _drills(directive: Directive, context: PageContext) -> list[str]:
    directive.only()
    return render_drills(context, directive.argument)


def _options(directive: Directive, context: PageContext) -> list[str]:
    kind, _, stage = directive.argument.partition(" ")
    if kind == "engine":
        directive.only()
        return engine_table(stage)
    directive.only("only", "omit")
    return option_table(context.root, directive.argument, directive.options)


def _constants(directive: Directive, _: PageContext) -> list[str]:
    directive.only()
    sheet = importlib.import_module("common.qwen3").CONSTANTS
    return constants_table(sheet, directive.argument)


def _questions(directive: Directive, context: PageContext) -> list[str]:
    directive.only("stage", "theme")
    return render_questions(directive.argument, directive.options, context)


def _quoted(text: str) -> str:
    return text.replace('"', "'")


_DIRECTIVES: dict[str, Callable[[Directive, PageContext], list[str]]] = {
    "source": _source,
    "output": _output,
    "bench": _bench,
    "calculator": _calculator,
    "figure": _figure,
    "player": _player,
    "rules": _rules,
    "drills": _drills,
    "options": _options,
    "constants": _constants,
    "questions": _questions,
    "api": _about(lambda package, context: api_pages(context.root, package)),
    "changes": _about(render_changes),
    "measured": _about(render_measured),
    "stages": _about(render_stages),
    "benchmarks": _whole(render_benchmarks),
    "glossary": _whole(render_glossary),
    "targets": _whole(render_targets),
    "vllm": _whole(render_pairs),
}
