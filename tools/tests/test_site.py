from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.docs_build.errors import DocsError
from tools.docs_build.nav import BEYOND, navigation
from tools.docs_build.questions import fold_questions
from tools.docs_build.site import build_site, expand_page, write_site

Write = Callable[[str, str], Path]


@pytest.fixture
def checkout(tmp_path: Path, write: Write) -> Path:
    write("docs/index.md", "# Home\n\n[note](learn/01_basic_inference.md)\n")
    write("docs/learn/01_basic_inference.md", "# Note\n\n<!-- source: m1_basic/a.py:f -->\n")
    write("docs/assets/x.css", "a {}\n")
    write("docs/outputs/demo.txt", "$ true\n")
    write("m1_basic/a.py", "def f():\n    return 1\n")
    write("m1_basic/README.md", "# M1\n\n[note](../docs/learn/01_basic_inference.md)\n")
    return tmp_path


def test_site_has_pages_assets_and_navigation(checkout: Path) -> None:
    site = build_site(checkout)
    assert set(site.files) == {
        "index.md",
        "learn/01_basic_inference.md",
        "assets/x.css",
        "stages/m1_basic.md",
    }
    assert b"def f():" in site.files["learn/01_basic_inference.md"]
    assert b"(../learn/01_basic_inference.md)" in site.files["stages/m1_basic.md"]
    nav = json.loads(site.config.partition("nav: ")[2])
    assert nav == [
        {"Home": "index.md"},
        {"Learn": ["learn/01_basic_inference.md"]},
        {"Stages": ["stages/m1_basic.md"]},
    ]


def test_every_error_is_reported_with_page_and_line(checkout: Path, write: Write) -> None:
    write("docs/setup.md", "# S\n\n<!-- source: gone.py:f -->\n\n{{ constant: gone }}\n")
    with pytest.raises(ExceptionGroup) as caught:
        build_site(checkout)
    places = [str(error) for error in caught.value.exceptions]
    assert places[0].startswith("docs/setup.md:3: no file 'gone.py'")
    assert places[1].startswith("docs/setup.md:5: no constant 'gone'")


def test_writing_touches_only_what_changed_and_removes_what_is_gone(checkout: Path) -> None:
    assert write_site(build_site(checkout), checkout) == 5
    assert write_site(build_site(checkout), checkout) == 0
    (checkout / "docs/assets/x.css").unlink()
    assert write_site(build_site(checkout), checkout) == 1
    assert not (checkout / "build/docs/assets/x.css").exists()


def test_a_page_outside_every_tab_is_refused() -> None:
    with pytest.raises(DocsError, match="no place in the navigation for odd/page"):
        navigation(["index.md", "odd/page.md"])


def test_tabs_keep_their_order_and_take_new_pages() -> None:
    pages = ["learn/02_continuous_batching.md", "learn/zoo.md", "learn/index.md", "setup.md"]
    assert navigation(pages) == [
        {"Start": ["setup.md"]},
        {"Learn": ["learn/index.md", "learn/02_continuous_batching.md", "learn/zoo.md"]},
    ]


def test_pages_beyond_m7_stand_in_the_order_of_their_index() -> None:
    folder = Path("docs/beyond")
    listed = re.findall(
        r"^\| \[[^\]]+\]\((\w+)\.md\)", (folder / "index.md").read_text(), re.MULTILINE
    )
    assert tuple(listed) == BEYOND
    assert {path.stem for path in folder.glob("*.md")} == {"index", *BEYOND}


def test_the_page_about_a_change_stands_between_its_two_stages() -> None:
    pages = ["stages/m1_to_m2.md", "stages/m2_batching.md", "stages/m1_basic.md"]
    assert navigation(pages) == [
        {"Stages": ["stages/m1_basic.md", "stages/m1_to_m2.md", "stages/m2_batching.md"]}
    ]


def test_data_files_are_not_copied(checkout: Path, write: Write) -> None:
    write("docs/data/x.toml", "")
    assert not any(name.endswith(".toml") for name in build_site(checkout).files)


def test_directives_in_code_are_left_alone_and_run_tags_removed(checkout: Path) -> None:
    site_text = (
        '````md\n<!-- source: gone.py -->\n```bash no-run reason="long"\n```\n````\n'
        '```bash no-run reason="needs-gpu"\nmake x\n```\n'
        "- item\n\n    <!-- source: m1_basic/a.py:f -->\n"
    )
    (checkout / "docs/setup.md").write_text(site_text)
    built = build_site(checkout).files["setup.md"].decode()
    assert '<!-- source: gone.py -->\n```bash no-run reason="long"\n' in built
    assert "```bash\nmake x" in built
    assert "    def f():\n        return 1\n" in built


def test_a_copied_output_is_replaced_by_the_recording(checkout: Path, write: Write) -> None:
    write("docs/outputs/demo.txt", "$ make demo\nnew\n")
    write("docs/setup.md", "<!-- output: demo -->\n```console\nold\n```\n<!-- /output -->\nafter\n")
    built = build_site(checkout).files["setup.md"].decode()
    assert built == "```console\n$ make demo\nnew\n```\nafter\n"


def test_questions_fold_and_keep_their_anchors() -> None:
    text = (
        '## Interview {#interview}\nIntro.\n\n### Why `K` and "V"? {#q-kv}\nBecause.\n\n'
        "More.\n### Next? {#q-next}\nYes.\n## After {#after}\n### Not one? {#no}\nText.\n"
    )
    folded = fold_questions(text)
    assert (
        '<a id="q-kv"></a>\n\n??? question "Why `K` and &quot;V&quot;?"\n\n    Because.' in folded
    )
    assert "    More.\n" in folded
    assert folded.count("??? question") == 2
    assert "## After {#after}\n### Not one? {#no}\nText.\n" in folded


def test_a_page_without_interview_is_unchanged() -> None:
    assert fold_questions("# T\n\n### Why? {#q}\n") == "# T\n\n### Why? {#q}\n"


def test_expand_page_collects_errors_instead_of_stopping(context: object) -> None:
    from tools.docs_build.context import PageContext

    assert isinstance(context, PageContext)
    built, errors = expand_page("<!-- x: -->\n\nfine\n{{ nope: 1 }}\n", context)
    assert "fine" in built
    assert [error.line for error in errors] == [1, 4]
