"""The calculators in a browser: formulas agree with Python, and the page works by keyboard."""

from __future__ import annotations

from typing import Any

import pytest

from tools.calculators.parity import RUN, cases, mismatches

ADDRESS = "lab/calculators/"
CARD = "folo-calculator[name=chunk-size]"


def test_formulas_agree_with_python(page: Any, site_url: str) -> None:
    given = cases()
    program = (
        "async ([address, cases]) => { const module = await import(address); "
        f"return ({RUN})(module, cases); }}"
    )
    address = site_url + "assets/javascripts/calculators/formulas.js"
    answers = page.evaluate(program, [address, [[c.function, c.arguments] for c in given]])
    assert mismatches(given, answers) == []


@pytest.mark.parametrize("width", [360, 1280])
def test_a_slider_moves_by_keyboard_and_the_address_keeps_it(open_page: Any, width: int) -> None:
    page = open_page(ADDRESS, width=width)
    answer = page.locator(f"{CARD} .calc-answer")
    slider = page.locator(CARD).get_by_label("Token budget of a step")
    assert slider.get_attribute("aria-valuetext") == "512"
    before = answer.inner_text()
    slider.focus()
    slider.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "1,024"
    after = answer.inner_text()
    assert after != before
    assert "chunk-size.budget=1024" in page.url
    page.goto(page.url)
    assert answer.inner_text() == after
    page.locator(f"{CARD} .calc-reset").click()
    assert answer.inner_text() == before
    assert "?" not in page.url
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_wrong_address_gives_the_defaults(open_page: Any) -> None:
    page = open_page(f"{ADDRESS}?chunk-size.budget=513&chunk-size.model=GPT")
    slider = page.locator(CARD).get_by_label("Token budget of a step")
    assert slider.get_attribute("aria-valuetext") == "512"
    assert page.locator(CARD).get_by_label("Model").input_value() == "Qwen3-0.6B"


def test_measured_points_show_for_their_model_alone(open_page: Any) -> None:
    page = open_page(ADDRESS)
    card = page.locator("folo-calculator[name=roofline]")
    assert card.locator("rect.calc-measured").count() > 3
    card.get_by_label("Model").select_option("Qwen3-8B")
    assert card.locator("rect.calc-measured").count() == 0


def test_targets_are_large_enough(open_page: Any) -> None:
    page = open_page(ADDRESS, width=360)
    small = page.evaluate(
        "[...document.querySelectorAll('folo-calculator :is(select, input, button, summary, a)')]"
        ".filter((e) => e.getClientRects().length && e.getBoundingClientRect().height < 44)"
        ".map((e) => e.outerHTML.slice(0, 80))"
    )
    assert small == []


def test_without_scripts_there_is_a_table(open_page: Any) -> None:
    page = open_page(ADDRESS, java_script_enabled=False)
    assert page.locator("folo-calculator table:visible").count() == 4
