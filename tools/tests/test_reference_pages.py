from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tools import vllm_citations
from tools.check_docs.data import check_data
from tools.docs_build import glossary, vllm_pairs
from tools.docs_build.context import PageContext
from tools.docs_build.errors import DocsError
from tools.docs_build.site import pages_of

Write = Callable[[str, str], Path]

TERM = """\
["KV block"]
text = "A row of places, {{ constant: kv_bytes_per_token | bytes }} each."
code = "m3_paged.pool.Block"
note = "docs/learn/a.md#idea"
also = ["page"]
never = ["KV page"]

[pool]
text = "All blocks."
code = "m3_paged.pool"
note = "docs/learn/a.md#idea"
"""
PAIRS = """\
version = "0.33.0"

[[pair]]
part = "KV memory"
ours = ["m3_paged.pool.Block", "m3_paged.pool"]
vllm = ["v1/core/block_pool.py:BlockPool.free", "v1/core/block_pool.py:BlockPool", "v1/x.py"]
simpler = "No groups."

[[pair]]
part = "None"
ours = ["m3_paged.pool"]
vllm = []
simpler = "No counterpart."
"""


@pytest.fixture
def checkout(context: PageContext, write: Write) -> PageContext:
    write("m3_paged/__init__.py", "")
    write("m3_paged/pool.py", '"""The pool."""\n\n\nclass Block:\n    """One."""\n')
    write("docs/learn/a.md", "# 03 · Paging: blocks\n\n## The idea {#idea}\n")
    write(glossary.GLOSSARY, TERM)
    write(vllm_pairs.PAIRS, PAIRS)
    context.pages = {**context.pages, "docs/api/m3_paged.md": "api/m3_paged.md"}
    return context


def test_terms_are_sorted_linked_and_filled_in(checkout: PageContext) -> None:
    text = "\n".join(glossary.render_glossary(checkout))
    assert text.startswith("KV block { #kv-block }\n:   A row of places, 112\u00a0KiB each.")
    assert "each. Elsewhere: page.\n" in text
    code = "[`m3_paged.pool.Block`](../api/m3_paged.md#m3_paged.pool.Block)"
    assert f"    {code} · [03 · Paging, The idea](a.md#idea)\n" in text
    assert text.index("KV block") < text.index("pool { #pool }")


@pytest.mark.parametrize(
    "before, after, message",
    [
        ("m3_paged.pool.Block", "m3_paged.pool.Gone", "no m3_paged.pool.Gone in the code"),
        ("a.md#idea", "a.md#gone", "no heading docs/learn/a.md#gone"),
        ("a.md#idea", "gone.md#idea", "no heading docs/learn/gone.md#idea"),
        ("also =", "alias =", "needs text, code and note"),
        ("[pool]", "[pool", "at line"),
    ],
)
def test_a_term_that_points_at_nothing_is_refused(
    checkout: PageContext, write: Write, before: str, after: str, message: str
) -> None:
    write(glossary.GLOSSARY, TERM.replace(before, after, 1))
    with pytest.raises(DocsError, match=message) as caught:
        glossary.render_glossary(checkout)
    assert caught.value.page == glossary.GLOSSARY


def test_one_word_for_each_idea(checkout: PageContext) -> None:
    pages = {"docs/x.md": "# T\n\nTwo KV pages and a `KV page`.\n\n```text\nKV page\n```\n"}
    found = [str(problem) for problem in check_data(checkout.root, pages)]
    assert found == ["docs/x.md:3: 'KV page' is called 'KV block' here"]


def test_pairs_group_symbols_by_file(checkout: PageContext) -> None:
    lines = vllm_pairs.render_pairs(checkout)
    assert "## KV memory {#kv-memory}" in lines
    assert "| Ours | vLLM 0.33.0 | What is simpler, and why |" in lines
    (row,) = [line for line in lines if "No groups." in line]
    assert "`BlockPool.free`, `BlockPool`<br><code>v1/<wbr>x.py</code> |" in row
    assert row.startswith("| <code>m3_<wbr>paged/<wbr>pool.py</code><br>[`Block`](")
    assert any("| none | No counterpart. |" in line for line in lines)


def test_a_pair_without_our_side_is_refused(checkout: PageContext, write: Write) -> None:
    write(vllm_pairs.PAIRS, PAIRS.replace("pool.Block", "pool.Gone"))
    with pytest.raises(DocsError, match=r"no m3_paged\.pool\.Gone in the code"):
        vllm_pairs.render_pairs(checkout)
    write(vllm_pairs.PAIRS, PAIRS.replace("simpler", "why"))
    with pytest.raises(DocsError, match="a pair has part, ours, vllm and simpler"):
        vllm_pairs.load(checkout.root)


@pytest.fixture
def vllm(write: Write) -> Path:
    write("vllm/v1/core/block_pool.py", "class BlockPool:\n    def free(self): ...\n")
    return write("vllm/v1/x.py", "").parents[1]


def test_citations_are_looked_up(checkout: PageContext, write: Write, vllm: Path) -> None:
    table = "| Ours | vLLM 0.33.0 | Why |\n| --- | --- | --- |\n| `a/b.py` | `core/{}.py` | |\n"
    write("docs/learn/03_x.md", table.format("block_pool") + "\n`no/table.py`\n")
    assert list(vllm_citations.missing(checkout.root, vllm)) == []
    write("docs/learn/03_x.md", table.format("gone"))
    write(vllm_pairs.PAIRS, PAIRS.replace("BlockPool.free", "Pool.free").replace("v1/x", "v1/y"))
    assert list(vllm_citations.missing(checkout.root, vllm)) == [
        "no Pool.free in v1/core/block_pool.py",
        "no file v1/y.py",
        "docs/learn/03_x.md:3: no file core/gone.py",
    ]


def test_the_command_needs_the_package_s_folder(
    checkout: PageContext,
    vllm: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(checkout.root)
    monkeypatch.setattr(sys, "argv", ["vllm_citations", str(vllm)])
    assert vllm_citations.main() == 0
    (vllm / "v1/x.py").unlink()
    assert vllm_citations.main() == 1
    assert "no file v1/x.py" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["vllm_citations", str(vllm / "v1")])
    with pytest.raises(SystemExit):
        vllm_citations.main()


def test_every_link_of_this_checkout_s_glossary_and_comparison_resolves() -> None:
    from tools.docs_build.results import Results

    root = Path.cwd()
    page = "docs/reference/glossary.md"
    context = PageContext(root, page, "reference/glossary.md", Results(root), pages_of(root))
    assert glossary.render_glossary(context)
    assert vllm_pairs.render_pairs(context)
