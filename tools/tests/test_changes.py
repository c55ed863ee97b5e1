from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tools.docs_build import changes, diffs
from tools.docs_build.changes_page import render_changes
from tools.docs_build.context import PageContext
from tools.docs_build.errors import DocsError
from tools.docs_build.parts import HEAD, Parts
from tools.docs_build.results import Results

Write = Callable[[str, str], Path]

LOWER = '''\
"""The lower engine. It has more to say."""


class Loop:
    """A loop."""

    depth = 0
    """How deep."""

    def step(self) -> int:
        """One step."""
        return 1

    def stop(self) -> None:
        # nothing to stop
        pass


class Cache:
    def read(self) -> int:
        return 1

    def clear(self) -> None:
        pass


def helper() -> int:
    return 1


def _private() -> None:
    pass
'''
UPPER = '''\
"""The upper engine (Somebody et al., 2022)."""

from m1_one.engine import Loop, helper


class FastLoop(Loop):
    def step(self) -> int:
        return helper() + 1


class Cache:
    def read(self) -> int:
        return 1

    def write(self) -> None:
        pass


class Pool:
    """A pool."""

    def take(self) -> int:
        return 2


def brand_new() -> None:
    pass
'''
NOTES = """\
["m2_two.engine.FastLoop"]
why = "It is faster."

["m2_two.engine.Cache"]
why = "It can be
 written."

["m2_two.engine.Pool"]
replaces = "m1_one.engine.helper"
why = "One for all."
""".replace("be\n written", "be written")


@pytest.fixture
def checkout(tmp_path: Path, write: Write) -> Path:
    write("common/base.py", '"""Base."""\n\n\nclass Face(Protocol):\n    pass\n')
    for stage, text in (("m1_one", LOWER), ("m2_two", UPPER)):
        write(f"{stage}/__init__.py", "")
        write(f"{stage}/engine.py", text)
        write(f"{stage}/tests/test_engine.py", "class Unseen:\n    pass\n")
    write(f"{changes.NOTES_DIR}/m2_two.toml", NOTES)
    return tmp_path


def test_parts_leave_out_docstrings_comments_and_private_names(checkout: Path) -> None:
    parts = Parts(checkout)
    assert parts.packages == ("common", "m1_one", "m2_two")
    (module,) = parts.modules("m1_one")
    assert (module.summary, list(module.parts)) == (
        "The lower engine.",
        ["Loop", "Cache", "helper"],
    )
    loop = module.parts["Loop"]
    assert loop.members[HEAD] == "class Loop:\n    depth = 0\n"
    assert loop.members["step"] == "    def step(self) -> int:\n        return 1\n"
    assert loop.lines == 6
    assert parts.find("m1_one.engine.helper") is module.parts["helper"]
    assert parts.find("m1_one.engine._private") is None
    assert parts.find("torch.nn.Module") is None


def test_a_summary_does_not_end_at_an_abbreviation(checkout: Path) -> None:
    (module,) = Parts(checkout).modules("m2_two")
    assert module.summary == "The upper engine (Somebody et al., 2022)."


def test_changed_is_by_base_name_and_note_and_the_rest_is_new(checkout: Path) -> None:
    found = changes.changes_of("m2_two", Parts(checkout))
    assert [(c.new.name, c.old.symbol, c.inherits) for c in found.changed] == [
        ("FastLoop", "m1_one.engine.Loop", True),
        ("Cache", "m1_one.engine.Cache", False),
        ("Pool", "m1_one.engine.helper", False),
    ]
    assert [[part.name for part in new] for _, new in found.new] == [["brand_new"]]
    assert found.reused == {
        "m1_one.engine.Loop": ("m2_two.engine",),
        "m1_one.engine.helper": ("m2_two.engine",),
    }


@pytest.mark.parametrize(
    "before, after, message",
    [
        ("m2_two.engine.FastLoop", "m2_two.engine.Gone", "a note for m2_two.engine.Gone"),
        ("m1_one.engine.helper", "m1_one.engine.gone", "Pool replaces m1_one.engine.gone"),
        ('replaces = "m1_one.engine.helper"', "", "Pool has a note, but takes no part's place"),
        ('["m2_two.engine.Cache"]\nwhy = "It can be written."', "", "a note must say why"),
        ('why = "One for all."', 'reason = "x"', "'why' and at most 'replaces'"),
        ('["m2_two.engine.Pool"]', '["m2_two.engine.Pool"', "at line"),
    ],
)
def test_notes_and_code_must_agree(
    checkout: Path, write: Write, before: str, after: str, message: str
) -> None:
    assert before in NOTES
    write(f"{changes.NOTES_DIR}/m2_two.toml", NOTES.replace(before, after))
    with pytest.raises(DocsError, match=message) as caught:
        changes.changes_of("m2_two", Parts(checkout))
    assert caught.value.page == f"{changes.NOTES_DIR}/m2_two.toml"


def test_a_stage_without_notes_or_of_another_name_is_refused(checkout: Path) -> None:
    with pytest.raises(DocsError, match=r"no notes docs/data/changes/m1_one\.toml"):
        changes.changes_of("m1_one", Parts(checkout))
    with pytest.raises(DocsError, match="no stage 'm9_nine'"):
        changes.changes_of("m9_nine", Parts(checkout))


def test_a_class_over_a_base_of_its_own_stage_takes_no_name_s_place(
    checkout: Path, write: Write
) -> None:
    text = UPPER.replace("class Cache:", "class Cache(FastLoop):")
    write("m2_two/engine.py", text)
    write(
        f"{changes.NOTES_DIR}/m2_two.toml",
        NOTES.replace('["m2_two.engine.Cache"]\nwhy = "It can be written."', ""),
    )
    found = changes.changes_of("m2_two", Parts(checkout))
    assert [c.new.name for c in found.changed] == ["FastLoop", "Pool"]


def test_members_are_compared_one_by_one() -> None:
    old = {HEAD: "class A:\n", "a": "a1\na2\na3\na4\n", "b": "b\n", "c": "c\n"}
    new = {HEAD: "class A:\n", "a": "a1\na2\na9\na4\n", "b": "b\n", "d": "d\n"}
    diff = diffs.compare(old, new, inherits=False)
    assert (diff.rewritten, diff.added, diff.gone, diff.kept) == (("a",), ("d",), ("c",), ("b",))
    assert diff.lines == (
        "@@ a @@", " a1", " a2", "-a3", "+a9", " a4", "@@ d @@", "+d", "@@ c @@", "-c",
    )  # fmt: skip
    assert diff.counts == (2, 2)


def test_what_a_subclass_does_not_mention_is_inherited() -> None:
    diff = diffs.compare({"a": "a\n", "b": "b\n"}, {"a": "x\n"}, inherits=True)
    assert (diff.gone, diff.inherited) == ((), ("b",))
    assert diff.lines == ("@@ a @@", "-a", "+x")


def test_unlike_texts_stand_one_after_the_other() -> None:
    old = {"f": "def f():\n    one()\n    two()\n    return 1\n    x\n    y\n"}
    new = {
        "f": "def f():\n    three()\n    four()\n    return 2\n    return 1\n    z\n    w\n    v\n"
    }
    lines = diffs.compare(old, new, inherits=False).lines
    assert lines[:2] == ("@@ f @@", " def f():")
    signs = "".join(line[0] for line in lines[2:])
    assert signs == "-" * 5 + "+" * 7


def test_a_long_diff_is_folded_and_a_short_one_open() -> None:
    short = diffs.compare({}, {"f": "x\n"}, inherits=False)
    long = diffs.compare({}, {"f": "x\n" * diffs.SHORT}, inherits=False)
    assert diffs.render(short)[0] == '???+ diff "Diff: 1 line added, 0 removed"'
    assert diffs.render(long)[0].startswith("??? diff")
    assert diffs.render(short)[2] == "    ```diff"


def test_the_page_has_why_diff_new_and_reused_parts(checkout: Path) -> None:
    pages = {"docs/api/m1_one.md": "api/m1_one.md"}
    context = PageContext(checkout, "docs/stages/x.md", "stages/x.md", Results(checkout), pages)
    text = "\n".join(render_changes("m2_two", context))
    assert "| Lines of code | 14 in 1 module |" in text
    assert "### `FastLoop` {#m2-two-engine-fastloop}" in text
    linked = "[`m1_one.engine.Loop`](../api/m1_one.md#m1_one.engine.Loop)"
    assert f"`m2_two.engine.FastLoop` subclasses {linked}. Rewritten: `step`. Inherited" in text
    assert "It is faster." in text
    assert "    +        return helper() + 1" in text
    assert "| `engine` | The upper engine (Somebody et al., 2022). | `brand_new` | 2 |" in text
    assert "| [`m1_one.engine`](../api/m1_one.md#m1_one-engine) |" in text


def test_the_notes_of_this_checkout_agree_with_its_code() -> None:
    parts = Parts(Path.cwd())
    for stage in parts.packages[2:]:
        assert changes.changes_of(stage, parts).changed
