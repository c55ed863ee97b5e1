"""Questions as text: tokens filled in, and Markdown taken off for a terminal."""

from __future__ import annotations

import re
from pathlib import Path

from tools.docs_build.context import PageContext
from tools.docs_build.errors import DocsError
from tools.docs_build.results import Results
from tools.docs_build.tokens import expand_tokens
from tools.docs_build.values import NBSP
from tools.interview.schema import Question, QuestionError

_LINK = re.compile(r"\[([^\]]*)\]\([^)\s]*\)(?:\{[^}]*\})?")
_STRONG = re.compile(r"\*\*(.+?)\*\*|(?<![\w*])\*(\S(?:.*?\S)?)\*(?![\w*])")


def expanded(question: Question, field: str, text: str, context: PageContext) -> str:
    """Fill in the tokens of one text of a question; line breaks become spaces.

    Raises:
        QuestionError: A token points at nothing.
    """
    try:
        return expand_tokens(" ".join(text.split()), context)
    except DocsError as error:
        raise QuestionError(question.file, question.id, field, error.message) from error


def plain(question: Question, field: str, text: str, root: Path) -> str:
    """The same for a terminal: no links, no emphasis, no code marks, no formula marks."""
    filled = expanded(question, field, text, terminal_context(root))
    unlinked = _LINK.sub(r"\1", filled)
    unmarked = _STRONG.sub(lambda m: m[1] or m[2], unlinked)
    return unmarked.replace("`", "").replace("$", "").replace(NBSP, " ")


def terminal_context(root: Path) -> PageContext:
    """The surroundings of a text that stands on no page."""
    return PageContext(root, "interview", "interview", Results(root))
