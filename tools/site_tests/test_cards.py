"""The flash cards in a browser: flip, grade, filter, and what is kept when the page is left."""

from __future__ import annotations

from typing import Any

import pytest

from tools.interview.schema import Question, load_questions
from tools.site_tests.conftest import ROOT

ADDRESS = "interview/cards/"
CARD = "flash-cards .fc-card"
STATUS = "flash-cards .fc-status"


QUESTIONS: tuple[Question, ...] = load_questions(ROOT)


def by_stage(stage: str) -> list[str]:
    return [question.id for question in QUESTIONS if question.stage == stage]


def card_id(page: Any) -> str:
    found: str = page.locator(CARD).get_attribute("data-card")
    return found


@pytest.mark.parametrize("width", [360, 1280])
def test_every_question_is_a_card_and_turns(open_page: Any, width: int) -> None:
    page = open_page(ADDRESS, width=width)
    status = page.locator(STATUS)
    assert status.get_attribute("data-total") == str(len(QUESTIONS))
    assert page.locator(CARD).get_attribute("data-side") == "front"
    assert page.locator("flash-cards .fc-answer").is_hidden()
    page.locator("flash-cards [data-action=flip]").click()
    assert page.locator(CARD).get_attribute("data-side") == "back"
    assert page.locator("flash-cards .fc-answer").inner_text().strip()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_stage_is_dealt_in_its_order_to_the_end(open_page: Any) -> None:
    page = open_page(f"{ADDRESS}?stage=m6")
    wanted, seen = by_stage("m6"), []
    assert len(wanted) > 10
    for _ in wanted:
        seen.append(card_id(page))
        page.locator(CARD).focus()
        page.keyboard.press("Space")
        page.keyboard.press("k")
    assert seen == wanted
    assert card_id(page) == ""
    assert page.locator(STATUS).get_attribute("data-known") == str(len(wanted))


def test_what_is_known_survives_a_reload_and_again_comes_back(open_page: Any) -> None:
    page = open_page(f"{ADDRESS}?stage=m3")
    first, second, *_ = by_stage("m3")
    page.locator(CARD).focus()
    page.keyboard.press("Space")
    page.keyboard.press("k")
    assert card_id(page) == second
    page.keyboard.press("Space")
    page.keyboard.press("a")
    page.reload()
    assert card_id(page) == second
    assert page.locator(STATUS).get_attribute("data-known") == "1"
    page.locator("flash-cards [data-filter=show]").select_option("again")
    assert page.locator(STATUS).inner_text().startswith("Card 1 of 1 ")
    page.locator("flash-cards [data-filter=show]").select_option("all")
    assert card_id(page) == first
    forget = page.locator("flash-cards [data-action=forget]")
    forget.click()
    assert page.locator(STATUS).get_attribute("data-known") == "1", "the first press only asks"
    forget.click()
    assert page.locator(STATUS).get_attribute("data-known") == "0"


def test_a_filter_by_theme(open_page: Any) -> None:
    page = open_page(ADDRESS)
    page.locator("flash-cards [data-filter=theme]").select_option("scheduling")
    wanted = [question.id for question in QUESTIONS if question.theme == "scheduling"]
    assert page.locator(STATUS).get_attribute("data-total") == str(len(wanted))
    assert card_id(page) == wanted[0]


def test_without_scripts_the_list_is_there(open_page: Any) -> None:
    page = open_page(ADDRESS, java_script_enabled=False)
    assert page.locator("details[data-question]").count() == len(QUESTIONS)
    assert page.locator("details[data-question] summary").first.is_visible()
