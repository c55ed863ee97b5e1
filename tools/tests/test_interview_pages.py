from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.docs_build import directives
from tools.docs_build.context import PageContext
from tools.docs_build.errors import DocsError
from tools.docs_build.interview import TITLES
from tools.docs_build.results import Results
from tools.docs_build.site import expand_page, pages_of
from tools.interview.schema import FOLDER, STAGES, THEMES, load_questions

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = load_questions(ROOT)
Write = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def page() -> PageContext:
    target = "interview/by-stage.md"
    return PageContext(ROOT, f"docs/{target}", target, Results(ROOT), pages_of(ROOT))


def expand(line: str, context: PageContext) -> list[str]:
    parsed = directives.parse(line)
    assert parsed is not None
    return directives.expand(parsed[1], context)


def ids_in(lines: list[str]) -> list[str]:
    return re.findall(r'data-question="([^"]+)"', "\n".join(lines))


def test_a_stage_s_questions_are_folded_in_their_order(page: PageContext) -> None:
    lines = expand("<!-- questions: stage=m3 -->", page)
    wanted = [q.id for q in QUESTIONS if q.stage == "m3"]
    assert ids_in(lines) == wanted
    assert lines[0] == (
        '<details class="question folo-question" id="m3-kv-bytes-per-token" '
        'data-question="m3-kv-bytes-per-token" data-stage="m3" data-theme="memory" '
        'data-level="1" markdown>'
    )
    assert '<span class="folo-tags">M3 · memory · warm-up</span></summary>' in lines[1]
    assert "| **Qwen3-0.6B** | 114,688 bytes (112\u00a0KiB) |" in lines
    assert "| Qwen3-8B | 147,456 bytes (144\u00a0KiB) |" in lines
    assert f"[These {len(wanted)} as flash cards](cards.md?stage=m3)" in lines


def test_a_theme_s_questions_come_from_every_stage(page: PageContext) -> None:
    lines = expand("<!-- questions: theme=memory -->", page)
    assert ids_in(lines) == [q.id for q in QUESTIONS if q.theme == "memory"]
    assert len({ident.split("-")[0] for ident in ids_in(lines)}) > 3


def test_cards_hold_every_question_in_a_list_that_the_element_names(page: PageContext) -> None:
    lines = expand("<!-- questions: cards -->", page)
    assert lines[0] == '<div><flash-cards list="interview-questions"></flash-cards></div>'
    assert '<div id="interview-questions" markdown>' in lines
    assert ids_in(lines) == [q.id for q in QUESTIONS]


@pytest.mark.parametrize("view, values", [("stages", STAGES), ("themes", THEMES)])
def test_tables_count_what_there_is(view: str, values: tuple[str, ...], page: PageContext) -> None:
    lines = expand(f"<!-- questions: {view} -->", page)
    assert len(lines) == 2 + len(values)
    totals = [int(line.split(" | ")[1].replace("–", "0")) for line in lines[2:]]
    assert sum(totals) == len(QUESTIONS)
    assert lines[2].startswith(f"| [{TITLES.get(values[0], values[0])}](by-")


@pytest.mark.parametrize("name, key, values", [
    ("by-stage", "stage", STAGES), ("by-theme", "theme", THEMES),
])  # fmt: skip
def test_the_pages_have_a_section_for_everything(
    name: str, key: str, values: tuple[str, ...]
) -> None:
    text = (ROOT / f"docs/interview/{name}.md").read_text(encoding="utf-8")
    for value in values:
        assert re.search(
            rf"^## .+ \{{#{value}\}}\n\n<!-- questions: {key}={value} -->$", text, re.M
        )


@pytest.mark.parametrize(
    "line, message",
    [
        ("<!-- questions: gone -->", "unknown view 'gone'"),
        ("<!-- questions: stage=m9 -->", "no stage 'm9'"),
        ("<!-- questions: theme=gone -->", "no theme 'gone'"),
        ("<!-- questions: stage=m1 theme=memory -->", "takes stage=… or theme=…"),
        ("<!-- questions: level=1 -->", "no option level"),
    ],
)
def test_what_the_directive_refuses(line: str, message: str, page: PageContext) -> None:
    with pytest.raises(DocsError, match=message):
        expand(line, page)


def test_a_stage_without_questions_says_so(context: PageContext) -> None:
    assert expand("<!-- questions: stage=m3 -->", context) == ["There is no question here yet."]


def test_a_broken_question_is_an_error_of_the_page(context: PageContext, write: Write) -> None:
    write(f"{FOLDER}/m3.yaml", "- id: m3-x\n")
    _, errors = expand_page("# X\n\n<!-- questions: stage=m3 -->\n", context)
    assert [(e.page, e.line) for e in errors] == [("docs/learn/a.md", 3)]
    assert "interview/questions/m3.yaml: m3-x: field 'stage': is missing" in errors[0].message
