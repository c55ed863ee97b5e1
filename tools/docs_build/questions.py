"""Interview questions fold: on the site an answer opens on a click, on GitHub it simply follows.

In a note's part ``{#interview}`` every third-level heading is a question. Its section becomes a
folded block that keeps the heading's id, so that links to a question work.
"""

from __future__ import annotations

import html

from tools.markdown import Heading, headings


def fold_questions(text: str) -> str:
    """Return a built page with the questions of its interview part folded."""
    rows = text.splitlines()
    found = list(headings(text))
    start = next((h.line for h in found if h.level == 2 and h.id == "interview"), None)
    if start is None:
        return text
    end = next((h.line for h in found if h.line > start and h.level <= 2), len(rows) + 1)
    questions = [h for h in found if start < h.line < end and h.level == 3]
    ends = [*(h.line for h in questions[1:]), end]
    built = rows[: questions[0].line - 1] if questions else rows[: end - 1]
    for question, stop in zip(questions, ends, strict=True):
        built += _folded(question, rows[question.line : stop - 1])
    return "\n".join([*built, *rows[end - 1 :]]) + "\n"


def _folded(question: Heading, answer: list[str]) -> list[str]:
    title = html.escape(question.text, quote=False).replace('"', "&quot;")
    anchor = [f'<a id="{question.id}"></a>', ""] if question.id else []
    body = [f"    {row}" if row.strip() else "" for row in answer]
    return [*anchor, f'??? question "{title}"', "", *body, ""]
