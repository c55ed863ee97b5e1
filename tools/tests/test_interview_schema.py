from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.interview.schema import (
    FOLDER,
    FollowUp,
    Number,
    Proof,
    QuestionError,
    load_questions,
    parse,
)

FILE = f"{FOLDER}/m3.yaml"
Write = Callable[[str, str], Path]


def row(**changes: Any) -> dict[str, Any]:
    """A question of M3; ``key=None`` leaves the key out."""
    whole = {
        "id": "m3-blocks",
        "stage": "m3",
        "theme": "memory",
        "level": 2,
        "question": "How many blocks?",
        "answer": "As many as\n  it takes.",
        "points": ["one", "two"],
        "follow_ups": ["And then?", {"ask": "Why?", "answer": "Because."}],
        "proof": [{"code": "m3_paged/block_pool.py:BlockPool"}],
    }
    whole |= changes
    return {key: value for key, value in whole.items() if value is not None}


def text(*rows: object) -> str:
    return str(yaml.safe_dump(list(rows), allow_unicode=True))


def test_a_question_with_everything() -> None:
    number = {
        "ask": "Bytes of {model}",
        "unit": "bytes",
        "expression": "kv_bytes(model)",
        "tolerance": 0.02,
    }
    (question,) = parse(FILE, text(row(misconception="All.", number=number)))
    assert (question.id, question.stage, question.theme, question.level) == (
        "m3-blocks",
        "m3",
        "memory",
        2,
    )
    assert question.points == ("one", "two")
    assert question.follow_ups == (FollowUp("And then?", ""), FollowUp("Why?", "Because."))
    assert question.number == Number("Bytes of {model}", "bytes", "kv_bytes(model)", 0.02)
    assert question.proof == (Proof("code", "m3_paged/block_pool.py:BlockPool"),)
    assert question.misconception == "All."


NUMBER = {"ask": "{model}?", "unit": "bytes", "expression": "1", "tolerance": 0.1}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"colour": "red"}, "field 'colour': is unknown"),
        ({"answer": None}, "field 'answer': is missing"),
        ({"answer": "  "}, "field 'answer': must be a text"),
        ({"stage": "m2", "id": "m2-blocks"}, "field 'stage': must be 'm3', as its file, not 'm2'"),
        ({"stage": "m9"}, "field 'stage': must be one of m0"),
        ({"theme": "cooking"}, "field 'theme': must be one of memory"),
        ({"level": 4}, "field 'level': must be 1, 2 or 3, got 4"),
        ({"level": True}, "field 'level': must be 1, 2 or 3, got True"),
        ({"id": "blocks"}, "field 'id': must be kebab case that begins with 'm3-'"),
        ({"id": "m3-Blocks"}, "field 'id': must be kebab case"),
        ({"question": "How many"}, "field 'question': must end with"),
        ({"points": ["one"]}, "field 'points': must be a list of 2 to 5"),
        ({"points": ["one", 2]}, "field 'points': each entry must be a text, got 2"),
        ({"follow_ups": []}, "field 'follow_ups': must be a list of 1 to 3"),
        ({"follow_ups": [3]}, "field 'follow_ups': must be a text or a mapping"),
        ({"follow_ups": [{"ask": "Why?"}]}, "field 'follow_ups.answer': is missing"),
        ({"proof": []}, "field 'proof': must be a list of 1"),
        ({"proof": ["x"]}, "field 'proof': each one is 'kind: target'"),
        ({"proof": [{"rumour": "x"}]}, "field 'proof': kind must be one of code"),
        ({"proof": [{"code": ""}]}, "field 'proof': code needs a target"),
        ({"number": 7}, "field 'number': must be a text or a mapping"),
        ({"number": NUMBER | {"tolerance": 2}}, "field 'number.tolerance': must be between 0 and"),
        ({"number": NUMBER | {"tolerance": "x"}}, "field 'number.tolerance': must be a number"),
        ({"number": NUMBER | {"ask": "Bytes"}}, "field 'number.ask': must name {model}"),
        ({"number": NUMBER | {"hint": "x"}}, "field 'number.hint': is unknown"),
    ],
)
def test_a_mistake_names_file_question_and_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(QuestionError) as caught:
        parse(FILE, text(row(**changes)))
    assert str(caught.value).startswith(f"{FILE}: {changes.get('id', row(**changes)['id'])}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "content, message",
    [
        ("a: [", "is not YAML"),
        ("", "must hold a list of questions"),
        ("id: m3-x", "must hold a list of questions"),
        ("- just text", "question 1: must be a mapping, found str"),
    ],
)
def test_files_that_are_no_list(content: str, message: str) -> None:
    with pytest.raises(QuestionError, match=message):
        parse(FILE, content)


def test_an_object_in_a_file_is_not_made() -> None:
    with pytest.raises(QuestionError, match="is not YAML"):
        parse(FILE, "- !!python/object/apply:os.getcwd []")


def test_files_are_read_in_the_order_of_the_stages(tmp_path: Path, write: Write) -> None:
    write(f"{FOLDER}/general.yaml", text(row(id="general-a", stage="general")))
    write(f"{FOLDER}/m3.yaml", text(row(), row(id="m3-other")))
    assert [q.id for q in load_questions(tmp_path)] == ["m3-blocks", "m3-other", "general-a"]


def test_two_questions_with_one_id(tmp_path: Path, write: Write) -> None:
    write(f"{FOLDER}/m3.yaml", text(row(), row()))
    with pytest.raises(QuestionError, match="field 'id': is taken by interview/questions/m3"):
        load_questions(tmp_path)


def test_a_file_that_is_named_after_no_stage(tmp_path: Path, write: Write) -> None:
    write(f"{FOLDER}/m3.yml", text(row()))
    with pytest.raises(QuestionError, match=r"m3\.yml: is not one of m0\.yaml"):
        load_questions(tmp_path)
