"""Interview questions as files: their schema, and what is said of a wrong one.

``interview/questions/STAGE.yaml`` is a list of mappings. Unknown keys are refused, so that a
misspelt one cannot be lost; every complaint names the file, the question and the field.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from common.errors import FoloError

FOLDER = "interview/questions"
STAGES = ("m0", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "general")
THEMES = (
    "memory", "scheduling", "attention", "kernels", "sampling",
    "quantisation", "metrics", "serving", "model", "systems",
)  # fmt: skip
LEVELS = {1: "warm-up", 2: "usual", 3: "deep"}
PROOFS = ("code", "test", "result", "page")
_ID = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")


class QuestionError(FoloError, ValueError):
    """A question file that does not follow the schema, or a question that does not hold."""

    def __init__(self, file: str, question: str, field: str, message: str) -> None:
        place = [file, *([question] if question else []), *([f"field {field!r}"] if field else [])]
        super().__init__(f"{': '.join(place)}: {message}")
        self.file = file
        self.question = question
        self.field = field


@dataclass(frozen=True)
class FollowUp:
    """What is asked next.

    Attributes:
        ask: The question.
        answer: Its answer, or "" where only the question is given.
    """

    ask: str
    answer: str


@dataclass(frozen=True)
class Number:
    """A numeric question that can be asked for any model shape.

    Attributes:
        ask: What is asked; ``{model}`` stands for the model's name.
        unit: Unit of the value, such as ``bytes``.
        expression: Arithmetic over ``model``, computed by :mod:`tools.interview.numbers`.
        tolerance: Largest relative error of a right answer.
    """

    ask: str
    unit: str
    expression: str
    tolerance: float


@dataclass(frozen=True)
class Proof:
    """Where an answer can be checked.

    Attributes:
        kind: ``code``, ``test``, ``result`` or ``page``.
        target: A path with a symbol, a test id, a result file, a page with an anchor.
    """

    kind: str
    target: str


@dataclass(frozen=True)
class Question:
    """One interview question. Texts may hold the tokens of pages (``{{ constant: … }}``).

    Attributes:
        id: Unique over all files; begins with its stage.
        stage: One of :data:`STAGES`.
        theme: One of :data:`THEMES`.
        level: A key of :data:`LEVELS`.
        question: The question.
        answer: Two to six sentences.
        points: What an interviewer listens for.
        follow_ups: What is asked next.
        misconception: The wrong belief that the answer refutes, or "".
        number: A graded numeric question, if there is one.
        proof: At least one.
        file: Repository path of the file it stands in.
    """

    id: str
    stage: str
    theme: str
    level: int
    question: str
    answer: str
    points: tuple[str, ...]
    follow_ups: tuple[FollowUp, ...]
    misconception: str
    number: Number | None
    proof: tuple[Proof, ...]
    file: str


def load_questions(root: Path) -> tuple[Question, ...]:
    """Read every question file of a checkout, in the order of :data:`STAGES`.

    Raises:
        QuestionError: A file is not named after a stage or breaks the schema, or two questions
            have one id.
    """
    folder = root / FOLDER
    strangers = sorted(p.name for p in folder.glob("*") if p.name not in _file_names())
    if strangers:
        message = f"is not one of {', '.join(_file_names())}"
        raise QuestionError(f"{FOLDER}/{strangers[0]}", "", "", message)
    found: dict[str, Question] = {}
    for name in _file_names():
        path = folder / name
        if not path.is_file():
            continue
        for question in parse(f"{FOLDER}/{name}", path.read_text(encoding="utf-8")):
            if question.id in found:
                message = f"is taken by {found[question.id].file}"
                raise QuestionError(question.file, question.id, "id", message)
            found[question.id] = question
    return tuple(found.values())


def _file_names() -> tuple[str, ...]:
    return tuple(f"{stage}.yaml" for stage in STAGES)


@lru_cache(maxsize=64)
def parse(file: str, text: str) -> tuple[Question, ...]:
    """Read one question file.

    Args:
        file: Its repository path, whose stem is the stage of every question in it.
        text: Its content.

    Raises:
        QuestionError: It breaks the schema.
    """
    try:
        rows = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise QuestionError(file, "", "", f"is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(rows, list) or not rows:
        raise QuestionError(file, "", "", "must hold a list of questions")
    return tuple(_question(file, number, row) for number, row in enumerate(rows, start=1))


def _question(file: str, number: int, row: Any) -> Question:
    name = f"question {number}"
    if not isinstance(row, Mapping):
        raise QuestionError(file, name, "", f"must be a mapping, found {type(row).__name__}")
    fields = _Fields(file, str(row.get("id") or name), row)
    fields.only(
        ("id", "stage", "theme", "level", "question", "answer", "points", "follow_ups", "proof"),
        optional=("misconception", "number"),
    )
    stage = fields.choice("stage", STAGES)
    if stage != Path(file).stem:
        raise fields.error("stage", f"must be {Path(file).stem!r}, as its file, not {stage!r}")
    ident = fields.text("id")
    if not _ID.fullmatch(ident) or not ident.startswith(f"{stage}-"):
        raise fields.error("id", f"must be kebab case that begins with '{stage}-', got {ident!r}")
    level = row["level"]
    if isinstance(level, bool) or level not in LEVELS:
        raise fields.error("level", f"must be 1, 2 or 3, got {level!r}")
    question = fields.text("question")
    if not question.endswith(("?", ".")):
        raise fields.error("question", "must end with a question mark or a full stop")
    return Question(
        id=ident,
        stage=stage,
        theme=fields.choice("theme", THEMES),
        level=level,
        question=question,
        answer=fields.text("answer"),
        points=tuple(fields.texts("points", 2, 5)),
        follow_ups=tuple(_follow_up(fields, item) for item in fields.items("follow_ups", 1, 3)),
        misconception=fields.text("misconception") if "misconception" in row else "",
        number=_number(fields) if "number" in row else None,
        proof=tuple(_proof(fields, item) for item in fields.items("proof", 1, 8)),
        file=file,
    )


def _follow_up(fields: _Fields, item: Any) -> FollowUp:
    if isinstance(item, str) and item.strip():
        return FollowUp(item.strip(), "")
    inner = fields.inner("follow_ups", item)
    inner.only(("ask", "answer"))
    return FollowUp(inner.text("ask"), inner.text("answer"))


def _number(fields: _Fields) -> Number:
    inner = fields.inner("number", fields.row["number"])
    inner.only(("ask", "unit", "expression", "tolerance"))
    tolerance = inner.row["tolerance"]
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float):
        raise inner.error("tolerance", f"must be a number, got {tolerance!r}")
    if not 0 < tolerance < 1:
        raise inner.error("tolerance", f"must be between 0 and 1, got {tolerance!r}")
    ask = inner.text("ask")
    if "{model}" not in ask:
        raise inner.error("ask", "must name {model}")
    return Number(ask, inner.text("unit"), inner.text("expression"), float(tolerance))


def _proof(fields: _Fields, item: Any) -> Proof:
    if not isinstance(item, Mapping) or len(item) != 1:
        raise fields.error("proof", f"each one is 'kind: target', got {item!r}")
    kind, target = next(iter(item.items()))
    if kind not in PROOFS:
        raise fields.error("proof", f"kind must be one of {', '.join(PROOFS)}, got {kind!r}")
    if not isinstance(target, str) or not target.strip():
        raise fields.error("proof", f"{kind} needs a target, got {target!r}")
    return Proof(kind, target.strip())


@dataclass(frozen=True)
class _Fields:
    """The keys of one mapping, and how a complaint about one of them reads."""

    file: str
    question: str
    row: Mapping[str, Any]
    prefix: str = ""

    def error(self, field: str, message: str) -> QuestionError:
        return QuestionError(self.file, self.question, f"{self.prefix}{field}", message)

    def inner(self, field: str, value: Any) -> _Fields:
        if not isinstance(value, Mapping):
            raise self.error(field, f"must be a text or a mapping, got {value!r:.60}")
        return _Fields(self.file, self.question, value, f"{field}.")

    def only(self, required: Sequence[str], optional: Sequence[str] = ()) -> None:
        unknown = [str(key) for key in self.row if key not in (*required, *optional)]
        if unknown:
            known = ", ".join((*required, *optional))
            raise self.error(unknown[0], f"is unknown (known: {known})")
        missing = [key for key in required if key not in self.row]
        if missing:
            raise self.error(missing[0], "is missing")

    def text(self, field: str) -> str:
        value = self.row[field]
        if not isinstance(value, str) or not value.strip():
            raise self.error(field, f"must be a text, got {value!r:.60}")
        return value.strip()

    def choice(self, field: str, known: Sequence[str]) -> str:
        value = self.row[field]
        if value not in known:
            raise self.error(field, f"must be one of {', '.join(known)}, got {value!r}")
        return str(value)

    def items(self, field: str, least: int, most: int) -> list[Any]:
        value = self.row[field]
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise self.error(
                field, f"must be a list of {least} to {most} entries, got {value!r:.60}"
            )
        return value

    def texts(self, field: str, least: int, most: int) -> list[str]:
        values = self.items(field, least, most)
        for value in values:
            if not isinstance(value, str) or not value.strip():
                raise self.error(field, f"each entry must be a text, got {value!r:.60}")
        return [value.strip() for value in values]
