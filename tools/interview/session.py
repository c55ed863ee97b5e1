"""One session at a terminal: questions, answers, grades, and what came of it."""

from __future__ import annotations

import random
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import ConfigError
from tools.docs_build.values import NBSP
from tools.interview.numbers import FIRST_MODEL, MODELS, is_right, read_number, show, value_for
from tools.interview.schema import LEVELS, Number, Question
from tools.interview.text import plain

WIDTH = 88
_YES, _NO = ("y", "yes"), ("n", "no")


@dataclass
class Score:
    """What a session came to.

    Attributes:
        known: Questions that the user says they had.
        again: Questions to come back to.
        right: Numeric questions answered within tolerance.
        asked: Numeric questions that got an answer.
    """

    known: list[Question] = field(default_factory=list)
    again: list[Question] = field(default_factory=list)
    right: int = 0
    asked: int = 0


@dataclass(frozen=True)
class Session:
    """Asks questions of one checkout.

    Attributes:
        root: The checkout, for the tokens of answers.
        model: Model of every numeric question; None draws one that answers do not give away.
        rng: Draws the models.
        read: Shows a sign and returns a line; raises EOFError at the end of the input.
        write: Shows a line.
    """

    root: Path
    model: str | None
    rng: random.Random
    read: Callable[[str], str]
    write: Callable[[str], None]

    def run(self, questions: Sequence[Question]) -> Score:
        """Ask in order until the questions or the input end; an end of the input is no error."""
        score = Score()
        self.write("Answer aloud or in words. An empty line shows the answer, Ctrl-D ends.")
        try:
            for place, question in enumerate(questions, start=1):
                self._ask(question, f"{place}/{len(questions)}", score)
        except (EOFError, KeyboardInterrupt):
            self.write("")
        return score

    def _ask(self, question: Question, place: str, score: Score) -> None:
        head = f"{place} · {question.stage} · {question.theme} · {LEVELS[question.level]}"
        self.write(f"\n{head}")
        self._paragraph(plain(question, "question", question.question, self.root))
        self.read("> ")
        self._reveal(question)
        had_it = self._yes_or_no("Did you have it? [y/n] ")
        (score.known if had_it else score.again).append(question)
        if question.number is not None:
            self._ask_number(question, question.number, score)

    def _reveal(self, question: Question) -> None:
        self.write("")
        self._paragraph(plain(question, "answer", question.answer, self.root))
        self.write("\nAn interviewer listens for:")
        self._list(plain(question, "points", point, self.root) for point in question.points)
        if question.misconception:
            claim = plain(question, "misconception", question.misconception, self.root)
            self._paragraph(f'Not true: "{claim}"', first="\n")
        self.write("\nAsked next:")
        for follow_up in question.follow_ups:
            self._list([plain(question, "follow_ups", follow_up.ask, self.root)])
            if follow_up.answer:
                answer = plain(question, "follow_ups", follow_up.answer, self.root)
                self._paragraph(answer, indent="    ")
        self.write("\nProof:")
        self._list(f"{proof.kind} {proof.target}" for proof in question.proof)
        self.write("")

    def _ask_number(self, question: Question, number: Number, score: Score) -> None:
        model = self.model or self.rng.choice(other_models(question, number))
        value = value_for(question, number, model)
        shown = show(value, number.unit).replace(NBSP, " ")
        ask = plain(question, "number.ask", number.ask.replace("{model}", model), self.root)
        self._paragraph(f"And a number: {ask.rstrip('.?')} ({number.unit})", first="\n")
        while True:
            typed = self.read("> ")
            if not typed.strip():
                self.write(f"It is {shown}.")
                return
            try:
                answer = read_number(typed, number.unit)
                break
            except ConfigError as error:
                self.write(f"{error}. Once more, or an empty line.")
        score.asked += 1
        if is_right(answer, value, number.tolerance):
            score.right += 1
            self.write(f"Right: {shown}.")
        else:
            self.write(f"Not quite: {shown}, from {number.expression}.")

    def _yes_or_no(self, sign: str) -> bool:
        while True:
            typed = self.read(sign).strip().lower()
            if typed in _YES or typed in _NO:
                return typed in _YES
            self.write("y or n, please.")

    def _list(self, items: Iterable[str]) -> None:
        for item in items:
            self._paragraph(item, first="  · ", indent="    ")

    def _paragraph(self, text: str, first: str = "", indent: str = "") -> None:
        lead = first if first.strip() else indent
        lines = textwrap.wrap(
            text, WIDTH, initial_indent=lead, subsequent_indent=indent, break_long_words=False,
            break_on_hyphens=False,
        )  # fmt: skip
        self.write(("\n" if first == "\n" else "") + "\n".join(lines))


def other_models(question: Question, number: Number) -> list[str]:
    """The models whose value differs from that of Qwen3-0.6B, which the answers talk about."""
    first = value_for(question, number, FIRST_MODEL)
    return [name for name in MODELS if value_for(question, number, name) != first] or [FIRST_MODEL]


def summary(score: Score) -> list[str]:
    """The last lines of a session."""
    graded = len(score.known) + len(score.again)
    if not graded:
        return ["No question was graded."]
    lines = [f"{len(score.known)} of {graded} known."]
    if score.asked:
        lines.append(f"{score.right} of {score.asked} numbers right.")
    if score.again:
        lines.append("Come back to: " + ", ".join(q.id for q in score.again))
    return lines
