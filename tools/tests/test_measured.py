from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tools.check_docs.data import check_data
from tools.docs_build import measured
from tools.docs_build.context import PageContext
from tools.docs_build.errors import DocsError
from tools.docs_build.measured_page import render_measured, render_targets
from tools.docs_build.stages import render_stages
from tools.tests.conftest import RESULT_NAME

Write = Callable[[str, str], Path]
TTFT = f"result: {RESULT_NAME}#ttft[engine=m1_basic,prompt_tokens=512]"


def entry(**keys: str) -> str:
    keys = {"stage": "m1_basic", "what": "TTFT", **keys}
    return "[[measure]]\n" + "".join(f'{key} = "{value}"\n' for key, value in keys.items())


@pytest.mark.parametrize(
    "text, value, met",
    [
        (">= 3×", 3.0, True),
        (">= 3×", 2.9, False),
        ("> 60 %", 0.61, True),
        ("< 1 ms", 0.0012, False),
        ("<= 0", 0.0, True),
    ],
)
def test_an_aim_is_held_against_the_number(text: str, value: float, met: bool) -> None:
    assert measured.Aim.parse(text).is_met(value) is met


def test_an_aim_reads_as_words() -> None:
    assert measured.Aim.parse(">= 3×").text == "at least 3×"
    assert measured.Aim.parse("< 1 %").text == "less than 1\u00a0%"
    with pytest.raises(DocsError, match="an aim is a sign and a number"):
        measured.Aim.parse("about 3")


@pytest.mark.usefixtures("result_file")
def test_states(context: PageContext, write: Write) -> None:
    write(
        measured.MEASURED,
        entry(value=TTFT, aim="<= 1")
        + entry(value=TTFT, aim="<= 0.5")
        + entry(value=TTFT)
        + entry(value=TTFT.replace("cpu-test-2c", "gpu"), aim="<= 1")
        + entry(value=TTFT.replace("512", "999"), aim="<= 1")
        + entry(aim="<= 1"),
    )
    items = measured.load(context.root)
    assert [item.state(item.reading(context)) for item in items] == [
        "hit", "missed", "", "not measured yet", "not measured yet", "not measured yet",
    ]  # fmt: skip
    assert [item.line for item in items[:2]] == [1, 6]
    assert items[0].devices(context) == "Test CPU (2 cores)"
    assert (items[3].devices(context), items[5].devices(context)) == ("gpu", "")


@pytest.mark.usefixtures("result_file")
@pytest.mark.parametrize(
    "value, message",
    [
        (TTFT.replace("ttft[", "tpot["), "no metric 'tpot'"),
        (TTFT.replace("prompt_tokens=", "tokens="), "no label 'tokens'"),
        ("nonsense", "not a token"),
        (f"result: {RESULT_NAME}#ttft[engine=m1_basic]", "matches 2 rows"),
        (f"result: {RESULT_NAME}#stage", "not a number"),
    ],
)
def test_a_token_that_can_never_be_right_fails(
    context: PageContext, write: Write, value: str, message: str
) -> None:
    write(measured.MEASURED, entry(value=value))
    with pytest.raises(DocsError, match=message) as caught:
        render_measured("m1_basic", context)
    assert (caught.value.page, caught.value.line) == (measured.MEASURED, 1)


@pytest.mark.parametrize(
    "text, message",
    [
        (entry(devise="x"), "unknown key 'devise'"),
        ('[[measure]]\nstage = "m1_basic"\n', "no 'what'"),
        (entry(aim="3"), "an aim is a sign"),
        ("[[measure]\n", "at line 1"),
    ],
)
def test_broken_entries_are_refused(
    context: PageContext, write: Write, text: str, message: str
) -> None:
    with pytest.raises(DocsError, match="no file"):
        measured.load(context.root)
    write(measured.MEASURED, text)
    with pytest.raises(DocsError, match=message):
        measured.load(context.root)


@pytest.mark.usefixtures("result_file")
def test_targets_count_misses_and_give_reasons(context: PageContext, write: Write) -> None:
    write(
        measured.MEASURED,
        entry(value=TTFT, aim="<= 0.5", reason="A slow | machine.", setting="tiny")
        + entry(stage="ladder", aim="> 10×")
        + entry(value=TTFT),
    )
    text = "\n".join(render_targets(context))
    assert text.startswith("2 aims: 0 hit, 1 missed, 1 still open.")
    assert "TTFT<br><small>tiny · Test CPU (2 cores)</small> | at most 0.5 |" in text
    assert "A slow \\| machine. |" in text
    assert "## M7 against M1 {#ladder}" in text
    assert "## M2" not in text
    assert 'folo-state--missed">missed</span>' in text
    assert "[800\u00a0ms](../benchmarks/index.md#cpu-test-2c-m1-basic-latency)" in text


@pytest.mark.usefixtures("result_file")
def test_targets_without_a_miss_say_so(context: PageContext, write: Write) -> None:
    write(measured.MEASURED, entry(value="calc: 1 + 1", aim=">= 2"))
    text = "\n".join(render_targets(context))
    assert "None of what was measured." in text
    assert "arithmetic" in text


@pytest.mark.usefixtures("result_file")
def test_a_card_shows_the_first_number_that_is_there(context: PageContext, write: Write) -> None:
    for name in ("m1_basic/__init__.py", "m1_basic/README.md", "docs/learn/01_basic_inference.md"):
        write(name, "")
    gpu = TTFT.replace("cpu-test-2c", "gpu")
    write(
        measured.MEASURED,
        entry(value=gpu, card="{} on a GPU.") + entry(value=TTFT, card="{} on a CPU."),
    )
    cards = "\n".join(render_stages("cards", context))
    assert "on a CPU.\n{ .folo-card__delta }" in cards
    assert "on a GPU" not in cards


@pytest.mark.usefixtures("result_file")
def test_a_miss_needs_a_reason_and_a_sentence_its_number(
    context: PageContext, write: Write
) -> None:
    write(
        measured.MEASURED,
        entry(value=TTFT, aim="<= 0.5")
        + entry(value=TTFT, reason="5 times M1's pace.", card="{} is 3× as fast."),
    )
    found = [str(problem) for problem in check_data(context.root, {})]
    assert len(found) == 2
    assert found[0] == f"{measured.MEASURED}:1: 'TTFT' is missed: no reason"
    assert found[1].startswith(f'{measured.MEASURED}:6: claim "5 times M1\'s" without')
    write(measured.MEASURED, "[[measure]\n")
    (problem,) = check_data(context.root, {})
    assert problem.page == measured.MEASURED


def test_this_checkout_s_entries_can_be_read() -> None:
    root = Path.cwd()
    from tools.docs_build.results import Results

    context = PageContext(root, "docs/x.md", "x.md", Results(root))
    items = measured.load(root)
    assert {item.stage for item in items} >= {"m1_basic", "m7_gptq", "ladder"}
    for item in items:
        item.reading(context)
