from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.trace import Trace
from tools import chromium
from tools.docs_build.context import PageContext
from tools.docs_build.errors import DocsError
from tools.docs_build.players import player_files, render_player, render_rules
from tools.docs_build.results import Results
from tools.docs_build.site import pages_of
from tools.scenarios.__main__ import main
from tools.scenarios.catalogue import CATALOGUE, SIDES, TRACES_DIR, Mark, load_catalogue, scenario
from tools.scenarios.questions import question
from tools.scenarios.record import make_model, record
from tools.scenarios.rules import RULES, Rule, rules_json, uses

ROOT = Path(__file__).resolve().parents[2]
SCENARIOS = load_catalogue(ROOT)
Write = Callable[[str, str], Path]

ONE = """
[[scenario]]
id = "one"
title = "t"
sees = "s"
run = [{ stage = "m3_paged", label = "M3", options = { block_size = 4, num_blocks = 8 } }]
request = [{ prompt = "a:5", max_tokens = 2 }]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("scenarios"))


@pytest.fixture
def lab(context: PageContext) -> PageContext:
    return PageContext(ROOT, "docs/lab/x.md", "lab/x.md", Results(ROOT), pages_of(ROOT))


@pytest.mark.parametrize("name", SCENARIOS)
def test_recording_again_gives_the_same_trace(name: str, model: Path) -> None:
    item = SCENARIOS[name]
    assert record(item, model) == list(item.traces(ROOT))


@pytest.mark.parametrize("name", SCENARIOS)
def test_what_a_scenario_shows_is_in_its_traces(name: str) -> None:
    item = SCENARIOS[name]
    traces = item.traces(ROOT)
    for trace, run in zip(traces, item.run, strict=True):
        trace.validate()
        assert trace.info.stage == run.stage
    assert item.start < max(map(len, traces))
    assert item.mark, "a scenario asks at least one question"
    for mark in item.mark:
        asked = question(traces[SIDES.index(mark.side)], mark)
        assert mark.step > item.start, "the first frame would give the answer away"
        assert asked.answer in asked.choices if asked.choices else asked.answer.isdigit()


def test_both_engines_of_a_scenario_give_the_same_tokens() -> None:
    for item in SCENARIOS.values():
        first, *others = item.traces(ROOT)
        for other in others:
            assert list(other.requests) == list(first.requests)
            for seq_id in first.sequences:
                assert other.output_token_ids(seq_id) == first.output_token_ids(seq_id), item.id


def test_the_lab_page_plays_every_scenario_once() -> None:
    page = (ROOT / "docs/lab/traces.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"<!-- player: ([\w-]+) -->", page)) == sorted(SCENARIOS)


def fork() -> Trace:
    return SCENARIOS["fork"].traces(ROOT)[0]


@pytest.mark.parametrize(
    "mark, message",
    [
        (Mark(0, "admitted"), "nothing comes before it"),
        (Mark(99, "admitted"), "nothing comes before it"),
        (Mark(1, "tokens"), "needs about = seq_id"),
        (Mark(2, "hits", about=0), "request 0/0 does not begin in step 2"),
    ],
)
def test_a_question_without_an_answer_is_refused(mark: Mark, message: str) -> None:
    with pytest.raises(DocsError, match=re.escape(message)):
        question(fork(), mark)


def test_answers_by_hand() -> None:
    preempted = question(SCENARIOS["out-of-blocks"].traces(ROOT)[0], Mark(7, "preempted"))
    assert (preempted.choices, preempted.answer) == (("0", "1", "none"), "1")
    assert question(SCENARIOS["eviction"].traces(ROOT)[0], Mark(8, "evicted")).answer == "7"
    assert question(SCENARIOS["eviction"].traces(ROOT)[0], Mark(9, "evicted")).answer == "none"
    hits = question(SCENARIOS["prefix-hit"].traces(ROOT)[1], Mark(5, "hits", about=1))
    assert (hits.choices, hits.answer, hits.rule) == ((), "20", "hit")
    assert question(fork(), Mark(1, "copies")).answer == "2"
    assert question(fork(), Mark(3, "preempted")).answer == "none"


@pytest.mark.parametrize(
    "text, message",
    [
        ("x", CATALOGUE),
        (ONE + ONE, "two scenarios are called 'one'"),
        (ONE.replace("title", "name"), "unknown key 'name'"),
        (ONE.replace('"m3_paged"', "3"), "run[0].stage must be str"),
        (re.sub(r"run = .*", "run = []", ONE), "needs one run or two, has 0"),
        (ONE + 'mark = [{ step = 1, kind = "why" }]', "kind must be one of"),
        (ONE + 'mark = [{ step = 1, kind = "copies", side = "b" }]', "has no side 'b'"),
        (ONE + "mark = [" + 2 * '{ step = 1, kind = "copies" },' + "]", "twice before the same"),
    ],
)
def test_a_broken_catalogue_is_told(tmp_path: Path, write: Write, text: str, message: str) -> None:
    write(CATALOGUE, text)
    with pytest.raises(DocsError, match=re.escape(message)):
        load_catalogue(tmp_path)


def test_a_checkout_without_a_catalogue_has_no_players(tmp_path: Path) -> None:
    assert player_files(tmp_path) == {}
    with pytest.raises(DocsError, match="no scenario 'fork'"):
        scenario(tmp_path, "fork")


@pytest.mark.parametrize(
    "prompt, message",
    [("a", "prompt part 'a'"), ("a:x", "prompt part 'a:x'"), ("answer:0", "which has none")],
)
def test_a_prompt_that_cannot_be_read(
    tmp_path: Path, write: Write, model: Path, prompt: str, message: str
) -> None:
    write(CATALOGUE, ONE.replace("a:5", prompt).replace("= 8 }", "= 8, max_model_len = 32 }"))
    with pytest.raises(DocsError, match=message):
        record(scenario(tmp_path, "one"), model)


def test_the_command_records_then_checks(
    tmp_path: Path,
    write: Write,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = ONE.replace("= 8 }", "= 8, max_model_len = 32 }")
    write(CATALOGUE, text + 'mark = [{ step = 1, kind = "step-tokens" }]\n')
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> int:
        monkeypatch.setattr(sys, "argv", ["scenarios", *args])
        return main()

    assert run("check") == 1
    assert run("record", "one") == 0
    assert run("check") == 0
    assert "ok        one.json" in capsys.readouterr().out
    write(CATALOGUE, text.replace("a:5", "a:6"))
    assert run("check") == 1
    assert run("check", "gone") == 1
    assert "no scenario 'gone'" in capsys.readouterr().err


def test_every_event_of_every_scenario_has_a_rule() -> None:
    for item in SCENARIOS.values():
        for trace in item.traces(ROOT):
            kinds = {event.kind for step in trace for event in step.block_events}
            kinds_of_steps = {"admit", "compute", "finish"}
            if any(step.preempted for step in trace):
                kinds_of_steps.add("preempt")
            assert kinds | kinds_of_steps <= set(RULES[trace.info.stage]), item.id


def test_rules_name_their_place_in_the_source() -> None:
    evict = rules_json(ROOT)["m6_prefix"]["evict"]
    assert evict["href"] == "lab/rules/#m6_prefix-block_pool-blockpool-_evict"
    assert evict["symbol"] == "BlockPool._evict"
    path, _, line = evict["place"].partition(", line ")
    source = (ROOT / path).read_text(encoding="utf-8").splitlines()
    assert source[int(line) - 1].strip().startswith("def _evict")


@pytest.mark.parametrize(
    "rule", [Rule("m3_paged/gone.py", "f"), Rule("m3_paged/scheduler.py", "f")]
)
def test_a_rule_that_is_not_in_the_source_breaks_the_build(
    rule: Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.scenarios.rules.RULES", {"m3_paged": {"alloc": rule}})
    with pytest.raises(DocsError, match=r"no "):
        rules_json(ROOT)


def test_the_rules_page_has_every_link_target(lab: PageContext) -> None:
    text = "\n".join(render_rules(lab))
    for rule in uses():
        assert f"{{#{rule.anchor}}}" in text
    assert "Decides: an eviction (M6, M7)." in text
    assert "def _evict(self) -> KVCacheBlock:" in text


def test_a_player_holds_figures_for_readers_without_scripts(lab: PageContext) -> None:
    text = "\n".join(render_player("long-prompt", lab))
    assert text.count("<svg") == 3  # two timelines, and the blocks of M5
    assert '<trace-player id="player-long-prompt" data-player="{&quot;id&quot;' in text
    assert "&quot;src&quot;:&quot;../../traces/long-prompt-a.json&quot;" in text
    assert "python -m tools.scenarios record long-prompt" in text
    assert not re.search(r"\n\s*\n", text), "a blank line would end the HTML block"
    with pytest.raises(DocsError, match="no scenario 'gone'"):
        render_player("gone", lab)


def test_the_site_holds_what_players_load() -> None:
    files = player_files(ROOT)
    assert "assets/trace-rules.json" in files
    assert files["traces/fork.json"] == (ROOT / TRACES_DIR / "fork.json").read_bytes()


def test_the_browser_is_found_or_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHROMIUM", sys.executable)
    assert chromium.main() == 0
    assert capsys.readouterr().out.strip() == sys.executable
    monkeypatch.delenv("CHROMIUM")
    monkeypatch.setattr("tools.chromium.NAMES", ("no-such-browser",))
    monkeypatch.setattr("tools.chromium.os.geteuid", lambda: 1000)
    assert chromium.main() == 2
    assert "apt-get install chromium" in capsys.readouterr().err
