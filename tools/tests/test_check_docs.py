from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.check_docs import structure
from tools.check_docs.__main__ import check_sources
from tools.check_docs.claims import check_claims

Write = Callable[[str, str], Path]


def note() -> str:
    """A note that has everything."""
    parts = {part: f"Text of {part}." for part in structure.NOTE_PARTS}
    parts["idea"] = '<!-- figure: staircase caption="Stairs." -->'
    parts["code-walk"] = "<!-- source: a.py:f -->\n" * 3
    parts["vs-vllm"] = (
        "vLLM 0.33.0.\n\n| ours | vLLM | why simpler |\n| --- | --- | --- |\n| a | b | c |"
    )
    parts["measured"] = "Numbers.\n\n### When it does not help {#when-it-does-not-help}\n\nOften."
    questions = (f"### Why {n}? {{#q-{n}}}\n\nBecause {n}.\n" for n in range(10))
    parts["interview"] = "\n".join(questions)
    sections = (f"## Part {part} {{#{part}}}\n\n{text}\n" for part, text in parts.items())
    return "# Note\n\n" + "\n".join(sections)


def messages(text: str) -> list[str]:
    return [p.message for p in structure.check_note("n.md", text)]


def test_a_whole_note_passes() -> None:
    assert messages(note()) == []
    assert list(structure.check_headings("n.md", note())) == []


@pytest.mark.parametrize("part", structure.NOTE_PARTS)
def test_every_part_is_needed(part: str) -> None:
    text = note().replace(f"{{#{part}}}", f"{{#not-{part}}}")
    assert f"no part '## … {{#{part}}}'" in messages(text)


def test_parts_keep_their_order() -> None:
    text = (
        note()
        .replace("{#maths}", "{#tmp}")
        .replace("{#idea}", "{#maths}")
        .replace("{#tmp}", "{#idea}")
    )
    assert any(m.startswith("parts are in the order") for m in messages(text))


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("Text of changes.", "", "part 'changes' is empty"),
        ("<!-- source: a.py:f -->\n" * 3, "<!-- source: a.py:f -->\n", "1 source snippets"),
        ("<!-- figure: staircase", "<!-- figur staircase", "no generated figure"),
        ("| ours | vLLM |", "| ours | theirs |", "needs a table"),
        ("vLLM 0.33.0.", "vLLM of today.", "pinned version"),
        ("{#when-it-does-not-help}", "{#limits}", "When it does not help"),
        ("Often.", "", "is empty"),
        ("### Why 3? {#q-3}", "#### Why 3? {#q-3}", "9 questions"),
        ("### Why 3? {#q-3}", "### Why 3 {#q-3}", "ends with '?'"),
        ("Because 3.", "", "no answer"),
    ],
)
def test_what_a_note_must_hold(old: str, new: str, message: str) -> None:
    text = note()
    assert old in text
    found = messages(text.replace(old, new))
    assert any(message in m for m in found), found


def test_a_snippet_inside_code_does_not_count() -> None:
    text = note().replace(
        "<!-- source: a.py:f -->\n" * 3, "```\n" + "<!-- source: a.py:f -->\n" * 3 + "```\n"
    )
    assert "0 source snippets; a note has at least 3" in messages(text)


def test_headings_need_unique_ids() -> None:
    text = "# T\n\n## A\n\n## B {#b}\n\n### C {#b}\n"
    found = [(p.line, p.message) for p in structure.check_headings("p.md", text)]
    assert found == [(3, "heading 'A' needs an id: {#…}"), (7, "id 'b' is taken by line 5")]


def log(problems: str = "Nothing.") -> str:
    body = dict.fromkeys(structure.LOG_PARTS, "Text.") | {"problems": problems}
    return "# Log\n\n" + "\n".join(f"## P {{#{part}}}\n\n{text}\n" for part, text in body.items())


def git(folder: Path, *args: str) -> str:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", "-C", str(folder), *who, *args], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_log_names_a_commit_once_there_is_one(tmp_path: Path) -> None:
    assert list(structure.check_log("l.md", log(), tmp_path)) == []
    git(tmp_path, "init", "-q")
    assert list(structure.check_log("l.md", log(), tmp_path)) == []
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert list(structure.check_log("l.md", log(f"Fixed in `{commit[:10]}`."), tmp_path)) == []
    for text in ("Nothing.", "Fixed in 0123456789."):
        (problem,) = structure.check_log("l.md", log(text), tmp_path)
        assert problem.message == "names no commit of this repository"


def test_a_log_has_its_parts(tmp_path: Path) -> None:
    text = log().replace("{#structure}", "{#layout}")
    assert [p.message for p in structure.check_log("l.md", text, tmp_path)] == [
        "no part '## … {#structure}'"
    ]


@pytest.mark.parametrize(
    "line",
    [
        "It is 3× faster.",
        "up to 2.5x the speed",
        "**24×** at 8k",
        "about 3–5× M1's throughput",
        "3 × faster than before",
        "runs 2 times faster",
        "three times as fast",
        "Twice as many sequences fit.",
        "twice the throughput",
        "It took 12 times longer.",
        "5 times M1's pace",
        "ten times that of vLLM",
        "four times its memory",
        "40 % fewer bytes",
        "40% slower",
        "| ours | 3× |",
    ],
)
def test_bare_claims_are_refused(line: str) -> None:
    assert len(list(check_claims("p.md", line))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "2 × 28 × 8 × 128 × 2 bytes",
        "a 1024×2048 matrix in 16×16 tiles",
        "2×layers and 2 × layers × heads",
        "read three times, then twice",
        "`3× faster`",
        "$3× faster$ and $$2×$$",
        "26 % of the parameters",
        "x86 and 0x10, 4x4 tiles",
        "It is {{ ratio: a#b / c#d }} faster, that is 3× faster.",
        "[Orca](https://example.org/orca) reports 36.9× more.",
        "36.9× more [^orca]",
        "36.9× more ([Orca](#ref-orca))",
        "at most 8 times per step",
        "the weights are read 8 times in it",
        "| Measured | {{ result: d/a#ttft }} is three times M1's |",
    ],
)
def test_formulas_shapes_and_evidence_pass(line: str) -> None:
    assert list(check_claims("p.md", line)) == []


def test_claims_in_code_and_display_maths_pass() -> None:
    assert list(check_claims("p.md", "```text\n3× faster\n```\n$$\nx = 3× 2\n$$\n")) == []


def test_claims_name_their_line() -> None:
    (problem,) = check_claims("p.md", "fine\n\n3× faster\n")
    assert (problem.page, problem.line) == ("p.md", 3)


def test_sources_are_checked_by_kind(tmp_path: Path, write: Write) -> None:
    write("docs/learn/01_x.md", "# T\n")
    write("docs/dev/milestone_1.md", "# T\n")
    write("docs/setup.md", "## A\n\n```sh\nls\n```\n")
    write("README.md", "## No id needed here\n\n3× faster\n")
    write("docs/assets/vendor/NOTES.md", "3× faster\n")
    found = [str(problem) for problem in check_sources(tmp_path)]
    assert sum("docs/learn/01_x.md: no part" in p for p in found) == len(structure.NOTE_PARTS)
    assert sum("docs/dev/milestone_1.md: no part" in p for p in found) == len(structure.LOG_PARTS)
    assert "docs/setup.md:1: heading 'A' needs an id: {#…}" in found
    assert any(p.startswith("docs/setup.md:3: call 'sh' blocks bash") for p in found)
    assert any(p.startswith("README.md:3: claim '3×'") for p in found)
    assert not any("heading 'No id needed here'" in p or "vendor" in p for p in found)


def test_a_stale_copy_of_an_output_is_found(tmp_path: Path, write: Write) -> None:
    write("docs/outputs/x.txt", "$ true\nnew\n")
    write("README.md", "<!-- output: x -->\n```console\n$ true\nold\n```\n<!-- /output -->\n")
    assert any("copied output differs" in str(problem) for problem in check_sources(tmp_path))
    write("README.md", "<!-- output: x -->\n```console\n$ true\nnew\n```\n<!-- /output -->\n")
    assert list(check_sources(tmp_path)) == []
