"""The ``questions`` directive: interview questions, folded, with their proofs linked."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from tools.docs_build.context import PageContext
from tools.docs_build.errors import DocsError
from tools.docs_build.stages import STAGES
from tools.interview import schema
from tools.interview.numbers import FIRST_MODEL, MODELS, show, value_for
from tools.interview.proofs import markdown
from tools.interview.schema import LEVELS, THEMES, Question, QuestionError, load_questions
from tools.interview.text import expanded

TITLES = {
    **{f"m{s.number}": f"M{s.number} · {s.title}" for s in STAGES},
    "general": "General LLM inference",
}
_CARDS = "interview/cards.md"
_LIST = "interview-questions"
_PROOFS = {"code": "code", "test": "test", "result": "measured", "page": "note"}


def render_questions(view: str, options: Mapping[str, str], context: PageContext) -> list[str]:
    """Render the ``questions`` directive.

    Args:
        view: "" (the questions that ``options`` pick), ``cards`` (all of them as flash cards),
            ``stages`` or ``themes`` (a table of what there is).
        options: ``stage`` or ``theme``.
        context: The page.

    Raises:
        DocsError: The view or an option is unknown, or a question does not hold.
    """
    try:
        questions = load_questions(context.root)
        match view:
            case "":
                return _picked(questions, options, context)
            case "cards":
                return _cards(questions, context)
            case "stages" | "themes":
                return _table(questions, view, context)
    except QuestionError as error:
        raise DocsError(str(error)) from error
    raise DocsError(f"unknown view {view!r} of the questions (known: cards, stages, themes)")


def _picked(
    questions: Sequence[Question], options: Mapping[str, str], context: PageContext
) -> list[str]:
    if len(options) != 1:
        raise DocsError("directive 'questions' takes stage=… or theme=…")
    key, value = next(iter(options.items()))
    known = schema.STAGES if key == "stage" else THEMES
    if value not in known:
        raise DocsError(f"no {key} {value!r} (known: {', '.join(known)})")
    picked = [q for q in questions if getattr(q, key) == value]
    if not picked:
        return ["There is no question here yet."]
    lines = [line for question in picked for line in _question(question, context)]
    if _CARDS in context.pages.values():
        target = f"{context.link_to(_CARDS)}?{key}={value}"
        count = "This one" if len(picked) == 1 else f"These {len(picked)}"
        lines += [f"[{count} as flash cards]({target})", "{ .folo-caption }"]
    return lines


def _cards(questions: Sequence[Question], context: PageContext) -> list[str]:
    """All questions as a folded list, which the element hides and deals one by one."""
    lines = [f'<div><flash-cards list="{_LIST}"></flash-cards></div>', ""]
    lines += [f'<div id="{_LIST}" markdown>', ""]
    lines += [line for question in questions for line in _question(question, context)]
    return [*lines, "</div>"]


def _table(questions: Sequence[Question], view: str, context: PageContext) -> list[str]:
    key, values = ("stage", schema.STAGES) if view == "stages" else ("theme", THEMES)
    page = context.link_to(f"interview/by-{key}.md")
    levels = " | ".join(LEVELS.values())
    lines = [f"| {key} | questions | {levels} | with a number |", "| --- |" + " ---: |" * 5]
    for value in values:
        found = [q for q in questions if getattr(q, key) == value]
        counts = [sum(q.level == level for q in found) for level in LEVELS]
        numbers = sum(q.number is not None for q in found)
        cells = [str(count or "–") for count in (len(found), *counts, numbers)]
        lines.append(f"| [{TITLES.get(value, value)}]({page}#{value}) | {' | '.join(cells)} |")
    return lines


def _question(question: Question, context: PageContext) -> list[str]:
    """One folded question. Its attributes are what the flash cards read."""

    def fill(field: str, text: str) -> str:
        return expanded(question, field, text, context)

    tags = (_short(question.stage), question.theme, LEVELS[question.level])
    data = {
        "question": question.id,
        "stage": question.stage,
        "theme": question.theme,
        "level": question.level,
    }
    attributes = " ".join(f'data-{name}="{value}"' for name, value in data.items())
    shown = f'<span class="folo-tags">{html.escape(" · ".join(tags))}</span>'
    title = f"{fill('question', question.question)} {shown}"
    lines = [
        f'<details class="question folo-question" id="{question.id}" {attributes} markdown>',
        f'<summary markdown="span">{title}</summary>',
        "",
        fill("answer", question.answer),
        "",
        "**An interviewer listens for**",
        "",
        *(f"- {fill('points', point)}" for point in question.points),
        "",
    ]
    if question.misconception:
        lines += [f"**Not true:** “{fill('misconception', question.misconception)}”", ""]
    lines += ["**Asked next**", ""]
    for follow_up in question.follow_ups:
        answer = f" *{fill('follow_ups', follow_up.answer)}*" if follow_up.answer else ""
        lines.append(f"- {fill('follow_ups', follow_up.ask)}{answer}")
    lines += ["", *_number(question, context)]
    lines += ['<div class="folo-proof" markdown>', "", "**Proof**", ""]
    lines += [f"- {_PROOFS[p.kind]}: {markdown(question, p, context)}" for p in question.proof]
    return [*lines, "", "</div>", "", "</details>", ""]


def _short(stage: str) -> str:
    return stage.upper() if stage != "general" else stage


def _number(question: Question, context: PageContext) -> list[str]:
    """The numeric question for every model, as a small table."""
    number = question.number
    if number is None:
        return []
    ask = expanded(question, "number.ask", number.ask, context).replace("{model}", "…")
    lines = [f"| {ask} | {number.unit} |", "| --- | ---: |"]
    for model in MODELS:
        name = f"**{model}**" if model == FIRST_MODEL else model
        lines.append(f"| {name} | {show(value_for(question, number, model), number.unit)} |")
    return [*lines, ""]
