from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page

from tools.scenarios.catalogue import SIDES, TRACES_DIR, Scenario, load_catalogue
from tools.scenarios.questions import question
from tools.site_tests.conftest import ROOT, OpenPage
from tools.site_tests.panels import READ, check_panel, expected

CATALOGUE = load_catalogue(ROOT)
LAB = "lab/traces/"


@pytest.fixture
def lab(open_page: OpenPage) -> Page:
    return ready(open_page(LAB))


def ready(page: Page) -> Page:
    page.wait_for_function(
        "n => document.querySelectorAll('trace-player[data-ready]').length === n",
        arg=len(CATALOGUE),
    )
    return page


def player(page: Page, name: str) -> Locator:
    return page.locator(f"#player-{name}")


def test_every_step_shows_what_the_trace_says(lab: Page) -> None:
    lab.evaluate("localStorage.setItem('folo.predictions.off', 'true')")
    for name, scenario in CATALOGUE.items():
        traces = scenario.traces(ROOT)
        element = player(lab, name)
        assert element.get_attribute("data-step") == str(scenario.start), name
        shown = element.evaluate(READ)
        assert [frame["step"] for frame in shown] == list(range(max(map(len, traces)))), name
        for side, trace in enumerate(traces):
            want = expected(trace)
            for frame in shown:
                at = min(frame["step"], len(trace) - 1)
                check_panel(frame["sides"][side], want[at], trace, at, f"{name}, {side}, {at}")


def test_questions_and_answers_are_those_of_python(lab: Page, site_url: str) -> None:
    for scenario in CATALOGUE.values():
        for mark in scenario.mark:
            side = SIDES.index(mark.side)
            want = dataclasses.asdict(question(scenario.traces(ROOT)[side], mark))
            got = lab.evaluate(
                """async ([base, file, mark]) => {
                  const scripts = base + "assets/javascripts/trace-player/";
                  const { readTrace } = await import(scripts + "trace.js");
                  const { question } = await import(scripts + "questions.js");
                  const text = await (await fetch(base + "traces/" + file)).text();
                  return question(readTrace(text), mark);
                }""",
                [site_url, scenario.files()[side], dataclasses.asdict(mark)],
            )
            assert got == {**want, "choices": list(want["choices"])}, (scenario.id, mark)


def at_the_question(page: Page, scenario: Scenario, number: int) -> Locator:
    element = player(page, scenario.id)
    mark = scenario.mark[number]
    slider = element.locator("input[type=range]")
    slider.fill(str(mark.step - 1))
    element.locator(".tp-next").click()
    assert element.locator(".tp-question").is_visible()
    assert element.get_attribute("data-step") == str(mark.step - 1)
    return element


def test_a_number_right_then_wrong_then_a_reload(lab: Page) -> None:
    scenario = CATALOGUE["cache"]
    first, second = (
        question(scenario.traces(ROOT)[SIDES.index(mark.side)], mark) for mark in scenario.mark
    )
    element = at_the_question(lab, scenario, 0)
    field = element.locator("input[type=number]")
    assert field.evaluate("item => item === document.activeElement")
    field.fill(first.answer)
    field.press("Enter")
    assert element.locator(".tp-feedback").inner_text() == f"Right: {first.answer}."
    assert element.get_attribute("data-step") == str(scenario.mark[0].step)

    element = at_the_question(lab, scenario, 1)
    element.locator("input[type=number]").fill("999")
    element.locator(".tp-check").click()
    feedback = element.locator(".tp-feedback")
    assert f"No: the answer is {second.answer}, not 999." in feedback.inner_text()
    href = feedback.locator("a").get_attribute("href")
    assert href is not None
    assert "1 right, 1 wrong, 0 skipped of 2" in element.locator(".tp-tally").inner_text()

    lab.reload()
    element = player(ready(lab), "cache")
    assert "1 right, 1 wrong, 0 skipped of 2" in element.locator(".tp-tally").inner_text()
    element.locator("input[type=range]").fill(str(scenario.mark[0].step - 1))
    element.locator(".tp-next").click()
    assert element.locator(".tp-question").count() == 0, "asked twice"
    element.locator(".tp-again").click()
    assert "2 predictions to make" in element.locator(".tp-tally").inner_text()

    lab.goto(href)
    target = href.partition("#")[2]
    assert lab.locator(f"[id='{target}']").count() == 1


def test_a_choice_and_a_skip(lab: Page) -> None:
    scenario = CATALOGUE["out-of-blocks"]
    asked = question(scenario.traces(ROOT)[0], scenario.mark[0])
    element = at_the_question(lab, scenario, 0)
    assert element.locator(".tp-choice").all_inner_texts() == list(asked.choices)
    element.locator(".tp-choice", has_text=asked.answer).first.click()
    assert element.locator(".tp-feedback.tp-right").is_visible()
    element = at_the_question(lab, scenario, 1)
    element.locator(".tp-skip").click()
    assert "The answer is" in element.locator(".tp-feedback.tp-skipped").inner_text()
    assert "1 right, 0 wrong, 1 skipped" in element.locator(".tp-tally").inner_text()


def test_who_does_not_want_to_be_asked_is_not(lab: Page) -> None:
    element = player(lab, "cache")
    element.locator(".tp-toggle input").uncheck()
    for _ in range(3):
        element.locator(".tp-next").click()
    assert element.get_attribute("data-step") == "4"
    assert not element.locator(".tp-question").count()


def test_keys_and_playing(lab: Page) -> None:
    element = player(lab, "abort")
    element.locator(".tp-play").focus()
    lab.keyboard.press("Home")
    lab.keyboard.press("ArrowRight")
    lab.keyboard.press("ArrowRight")
    lab.keyboard.press("ArrowLeft")
    assert element.get_attribute("data-step") == "1"
    said = element.locator(".tp-said")
    assert said.get_attribute("aria-live") == "polite"
    assert said.inner_text() == "Step 1: requests 0 and 1 decode."
    lab.keyboard.press("Enter")
    assert element.locator(".tp-play").get_attribute("aria-label") == "Pause"
    element.locator(".tp-question").wait_for()  # at step 4 it stops to ask
    assert element.locator(".tp-play").get_attribute("aria-label") == "Play"
    assert element.get_attribute("data-step") == "3"


def opened(page: Page, *paths: Path) -> Locator:
    page.locator("trace-file input[type=file]").set_input_files(list(paths))
    return page.locator("trace-file")


def test_own_files_open_beside_each_other(lab: Page) -> None:
    folder = ROOT / TRACES_DIR
    element = opened(lab, folder / "prefix-hit-a.json", folder / "m3-fork.json")
    element.locator("trace-player[data-ready]").wait_for()
    labels = element.locator(".tp-head strong").all_inner_texts()
    assert labels == ["prefix-hit-a.json (m5_chunked)", "m3-fork.json (m3_paged)"]
    element.locator(".tp-last").click()
    assert element.locator(".tp-counters").nth(1).inner_text().startswith("done after")


def broken(change: str) -> str:
    data = json.loads((ROOT / TRACES_DIR / "fork.json").read_text(encoding="utf-8"))
    match change:
        case "schema":
            data["schema"] = "other"
        case "version":
            data["version"] = 2
        case "block":
            data["steps"][0]["block_events"].append({"kind": "free", "block": 9, "seq_id": 0})
        case "sequence":
            data["steps"][0]["running"] = [17]
        case "order":
            del data["steps"][0]
        case "request":
            data["requests"] = [None]
        case "slice":
            del data["steps"][0]["slices"][0]["token_ids"]
    return json.dumps(data)


BROKEN = {
    "{": "This is not a JSON file.",
    "[]": 'is not "folovllm.trace"',
    broken("schema"): 'is not "folovllm.trace"',
    broken("version"): "This is version 2 of the format",
    broken("block"): "free of block 9, but sequence 0 does not own it",
    broken("sequence"): "names sequence 17, which the trace does not list",
    broken("order"): "Step 0 is missing or out of order",
    broken("slice"): "a slice of sequence 0 is incomplete",
    broken("request"): "A request has no id or no prompt.",
}


def test_a_broken_file_is_told_in_words(lab: Page, tmp_path: Path) -> None:
    for number, (text, message) in enumerate(BROKEN.items()):
        path = tmp_path / f"mine{number}.json"
        path.write_text(text, encoding="utf-8")
        error = opened(lab, path).locator(".tp-error", has_text=path.name)
        error.wait_for()
        assert message in error.inner_text()
        assert lab.locator("trace-file trace-player").count() == 0


def test_without_scripts_the_figures_stand_there(open_page: OpenPage) -> None:
    page = open_page(LAB, java_script_enabled=False)
    for name, scenario in CATALOGUE.items():
        element = player(page, name)
        assert element.locator(".folo-figure svg").count() >= len(scenario.run)
        assert element.locator(".folo-figure svg").first.is_visible()
        assert element.locator(".tp-sees").is_visible()
    assert page.locator("trace-file").get_by_text("needs JavaScript").is_visible()


@pytest.mark.parametrize("width", [360, 1280])
def test_targets_are_large_enough(open_page: OpenPage, width: int) -> None:
    page = ready(open_page(LAB, width))
    at_the_question(page, CATALOGUE["out-of-blocks"], 0)
    small = page.locator("#player-out-of-blocks").evaluate(
        """element => [...element.querySelectorAll("button, input:not([type=checkbox]), label")]
          .map((item) => [item.className, item.getBoundingClientRect()])
          .filter(([, box]) => box.height && (box.height < 44 || box.width < 44))
          .map(([name, box]) => `${name} ${box.width}x${box.height}`)"""
    )
    assert small == []
