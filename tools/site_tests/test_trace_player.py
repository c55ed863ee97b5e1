from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page

from common.plot_parts import sequence_name
from common.trace import Trace
from common.trace_replay import replay
from tools.scenarios.catalogue import SIDES, TRACES_DIR, Scenario, load_catalogue
from tools.scenarios.questions import question
from tools.site_tests.conftest import ROOT, OpenPage

CATALOGUE = load_catalogue(ROOT)
LAB = "lab/traces/"

# Steps one player from its first step to its last and reads what each panel shows, in one go.
READ = """player => {
  const panel = (side) => {
  const ids = (list) => [...list].map((item) => Number(item.dataset.seq));
  const queues = {};
  for (const list of side.querySelectorAll("[data-queue]"))
    queues[list.dataset.queue] = ids(list.querySelectorAll("[data-seq]"));
  const names = [...side.querySelectorAll(".tp-chip")].map((item) => item.querySelector("b").textContent);
  const slices = [...side.querySelectorAll(".tp-slice")].map((item) => [
    Number(item.dataset.seq), Number(item.dataset.tokens), item.dataset.phase]);
  const blocks = [...side.querySelectorAll("[data-block]")].map((item) => ({
    owners: item.dataset.owners.split(" ").filter(Boolean).map(Number),
    fill: Number(item.dataset.fill),
    shared: item.classList.contains("tp-shared"),
    cached: item.classList.contains("tp-cached"),
    evicted: item.classList.contains("tp-evicted"),
  }));
  const heights = [...side.querySelectorAll(".tp-bar")].map((bar) =>
    [...bar.children].map((part) => parseFloat(part.style.height)));
  const links = [...side.querySelectorAll(".tp-events li")].map((item) => [
    item.dataset.rule, item.querySelector("a")?.getAttribute("href") ?? null]);
  return { queues, names, slices, blocks, heights, links };
  };
  const shown = [], next = player.querySelector(".tp-next");
  player.querySelector(".tp-first").click();
  for (;;) {
    const sides = [...player.querySelectorAll(".tp-side")].map(panel);
    shown.push({ step: Number(player.dataset.step), sides });
    if (next.disabled) return shown;
    next.click();
  }
}"""


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


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a panel must show after a step, computed from the trace by ``common.trace_replay``."""

    queues: dict[str, list[int]]
    slices: list[list[Any]]
    blocks: list[dict[str, Any]]


def expected(trace: Trace) -> list[Expected]:
    frames, lost, ended = [], set[int](), list[int]()
    for state in replay(trace):
        step = trace[state.step]
        lost |= set(step.preempted)
        lost -= {item.seq_id for item in (*step.admitted, *step.finished)}
        ended += [item.seq_id for item in step.finished]
        waiting = step.waiting_after
        queues = {
            "waiting": [seq for seq in waiting if seq not in lost],
            "running": list(step.running_after),
            "preempted": [seq for seq in waiting if seq in lost],
            "finished": list(ended),
        }
        slices = [[part.seq_id, part.num_tokens, part.phase] for part in step.slices]
        frames.append(Expected(queues, slices, blocks(trace, state.step, state)))
    return frames


def blocks(trace: Trace, step: int, state: Any) -> list[dict[str, Any]]:
    size = trace.info.block_size
    if size is None or trace.info.num_blocks is None:
        return []
    fill: dict[int, float] = {}
    for seq_id, table in state.blocks.tables.items():
        for at, block in enumerate(table):
            tokens = min(max(state.num_computed.get(seq_id, 0) - at * size, 0), size)
            fill[block] = max(fill.get(block, 0.0), tokens / size)
    evicted = {event.block for event in trace[step].block_events if event.kind == "evict"}
    return [
        {
            "owners": list(state.blocks.owners.get(block, [])),
            "fill": fill.get(block, 0.0),
            "shared": len(state.blocks.owners.get(block, [])) > 1,
            "cached": block in state.blocks.cached,
            "evicted": block in evicted,
        }
        for block in range(trace.info.num_blocks)
    ]


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


def check_panel(got: dict[str, Any], want: Expected, trace: Trace, at: int, where: str) -> None:
    assert got["queues"] == want.queues, where
    assert got["slices"] == want.slices, where
    assert got["blocks"] == want.blocks, where
    order = [seq for queue in want.queues.values() for seq in queue]
    assert got["names"] == [sequence_name(trace, seq) for seq in order], where
    drawn = [len(bar) > 0 for bar in got["heights"]]
    assert drawn[: at + 1] == [bool(step.slices) for step in trace.steps[: at + 1]], where
    assert not any(drawn[at + 1 :]), f"{where}: a bar of a step that is still to come"
    assert all(link for _, link in got["links"]), (where, got["links"])


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
        case "shape":
            data["steps"][0]["admitted"] = [None]
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
    broken("shape"): "It does not follow the format of a trace.",
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
