"""Every question of the repository holds: texts, numbers, proofs, and the claims they refute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tools.check_docs.claims import check_claims
from tools.docs_build.context import PageContext
from tools.docs_build.results import Results
from tools.docs_build.site import pages_of
from tools.interview import proofs
from tools.interview.numbers import MODELS, is_right, read_number, show, value_for
from tools.interview.schema import Number, Proof, Question, QuestionError, load_questions
from tools.interview.text import expanded, plain

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = load_questions(ROOT)
PAGE = "docs/interview/by-stage.md"
every = pytest.mark.parametrize("question", QUESTIONS, ids=[q.id for q in QUESTIONS])


@pytest.fixture(scope="module")
def page() -> PageContext:
    return PageContext(ROOT, PAGE, "interview/by-stage.md", Results(ROOT), pages_of(ROOT))


def texts(question: Question) -> dict[str, list[str]]:
    follow_ups = [text for f in question.follow_ups for text in (f.ask, f.answer)]
    return {
        "question": [question.question],
        "answer": [question.answer],
        "points": list(question.points),
        "follow_ups": follow_ups,
        "misconception": [question.misconception],
    }


@pytest.mark.parametrize("stage", ["m0", "m1", "m2", "m3", "general"])
def test_a_stage_has_enough_of_every_level(stage: str) -> None:
    found = [q for q in QUESTIONS if q.stage == stage]
    assert len(found) >= 12
    assert {q.level for q in found} == {1, 2, 3}
    assert sum(q.number is not None for q in found) >= 3


@every
def test_texts_are_filled_in_and_short(question: Question, page: PageContext) -> None:
    for field, values in texts(question).items():
        for value in values:
            assert "{{" not in expanded(question, field, value, page)
            assert "](" not in plain(question, field, value, ROOT)
    words = len(plain(question, "answer", question.answer, ROOT).split())
    assert 20 <= words <= 140, f"{words} words"


@every
def test_claims_of_an_answer_carry_their_number(question: Question) -> None:
    said = [question.answer, *question.points, *(f.answer for f in question.follow_ups)]
    lines = "\n".join(" ".join(text.split()) for text in said)
    assert [str(p) for p in check_claims(question.file, lines)] == []


@every
def test_proofs_are_there(question: Question, page: PageContext) -> None:
    for proof in question.proof:
        assert proofs.markdown(question, proof, page)


@every
def test_a_misconception_is_refuted_by_more_than_words(question: Question) -> None:
    if question.misconception:
        assert {"test", "result", "code"} & {proof.kind for proof in question.proof}


@every
def test_numbers_evaluate_and_depend_on_the_model(question: Question) -> None:
    number = question.number
    if number is None:
        return
    values = {name: value_for(question, number, name) for name in MODELS}
    assert all(value > 0 for value in values.values())
    assert len(set(values.values())) > 1, "the same for every model"
    for value in values.values():
        shown = show(value, number.unit).partition(" (")[0]
        typed = read_number(shown.replace("\u00a0", " "), number.unit)
        assert is_right(typed, value, number.tolerance), shown


# The misconceptions of M0 to M3 that people bring along; each is refuted by one of the questions.
REFUTED = {
    "m0-merged-qkv-rows": "hidden_size",
    "m0-float32-islands": "float16",
    "m0-load-memory": "RAM",
    "m0-unused-ids": "vocab_size",
    "m1-kv-crossover": "costs the same",
    "m1-cache-without-gain": "always makes decoding faster",
    "m1-filters-never-empty": "90 %",
    "m2-latency-of-a-bigger-batch": "lowers latency",
    "m2-what-to-change": "needs paging",
    "m3-what-is-wasted": "zero waste",
    "m3-equal-prompts": "by themselves",
    "m3-where-the-table-lives": "on the GPU",
    "m3-layout-is-not-a-kernel": "2023",
}


@pytest.mark.parametrize("ident", REFUTED)
def test_known_misconceptions_are_refuted_by_a_test_or_a_measurement(ident: str) -> None:
    question = next(q for q in QUESTIONS if q.id == ident)
    assert REFUTED[ident] in question.misconception
    assert {"test", "result"} & {proof.kind for proof in question.proof}


Mended = Callable[..., Question]


@pytest.fixture
def broken() -> Mended:
    """A question of the repository with something replaced."""

    def make(**changes: object) -> Question:
        return Question(**{**vars(QUESTIONS[0]), **changes})

    return make


@pytest.mark.parametrize(
    "proof, message",
    [
        (Proof("code", "common/gone.py:x"), "no such file"),
        (Proof("code", "common/metrics.py:gone"), "no 'gone' in metrics.py"),
        (Proof("test", "common/tests/test_cli.py"), "a test is path.py::test_name"),
        (Proof("test", "common/tests/test_cli.py::TestAnswers::test_gone"), "no 'TestAnswers"),
        (Proof("test", "common/metrics.py::percentile"), "'percentile' is no test"),
        (Proof("result", "cpu-gone/m1_basic-latency"), "no result file"),
        (Proof("result", "cpu-amd-epyc-2c/m1_basic-latency#gone"), "'gone' matches 0 rows"),
        (Proof("page", "learn/99_gone.md"), "no such page"),
        (Proof("page", "learn/03_paged_kv_cache.md#gone"), "no heading {#gone}"),
    ],
)
def test_a_proof_that_is_not_there(
    proof: Proof, message: str, broken: Mended, page: PageContext
) -> None:
    question = broken(proof=(proof,))
    with pytest.raises(QuestionError) as caught:
        proofs.markdown(question, proof, page)
    assert f"{question.file}: {question.id}: field 'proof': {proof.kind}" in str(caught.value)
    assert message in str(caught.value)


def test_proofs_link_to_what_the_site_shows(page: PageContext) -> None:
    def shown(kind: str, target: str) -> str:
        return proofs.markdown(QUESTIONS[0], Proof(kind, target), page)

    assert shown("code", "common/model_costs.py:kv_bytes") == (
        "[`common/model_costs.py:kv_bytes`](../api/common.md#common.model_costs.kv_bytes)"
    )
    assert shown("code", "common/metrics.py") == (
        "[`common/metrics.py`](../api/common.md#common-metrics)"
    )
    private = "m3_paged/kernels.py:_paged_decode_kernel"
    assert shown("code", private) == f"`{private}`"
    assert shown("result", "cpu-amd-epyc-2c/m1_basic-latency#config").endswith(
        "(../benchmarks/index.md#cpu-amd-epyc-2c-m1-basic-latency)"
    )
    assert shown("page", "learn/03_paged_kv_cache.md#waste") == (
        "[03 · Paged KV cache: What is left of the waste](../learn/03_paged_kv_cache.md#waste)"
    )
    assert shown("page", "learn/constants.md").endswith("(../learn/constants.md)")


def test_a_token_that_points_at_nothing(broken: Mended, page: PageContext) -> None:
    question = broken(answer="{{ constant: gone }}")
    with pytest.raises(QuestionError, match="field 'answer': no constant 'gone'"):
        expanded(question, "answer", question.answer, page)


@pytest.mark.parametrize(
    "expression, message",
    [
        ("kv_bytes(gone)", "no constant 'gone'"),
        ("kv_bytes(1)", "Qwen3-4B: 'int' object has no attribute"),
        ("1 / 0", "division by zero"),
        ("model", "is not a number"),
    ],
)
def test_an_expression_that_does_not_evaluate(
    expression: str, message: str, broken: Mended
) -> None:
    number = Number("{model}?", "bytes", expression, 0.1)
    with pytest.raises(QuestionError, match=r"field 'number\.expression': Qwen3-4B: ") as caught:
        value_for(broken(number=number), number, "Qwen3-4B")
    assert message in str(caught.value)
