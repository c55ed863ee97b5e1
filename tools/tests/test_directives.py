from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tools.docs_build import directives, pivot
from tools.docs_build.context import PageContext
from tools.docs_build.errors import DocsError
from tools.docs_build.results import Result
from tools.tests.conftest import RESULT_NAME

Write = Callable[[str, str], Path]


def expand(line: str, context: PageContext) -> list[str]:
    parsed = directives.parse(line)
    assert parsed is not None
    return directives.expand(parsed[1], context)


def test_parse_reads_argument_options_and_indent() -> None:
    parsed = directives.parse('  <!-- figure: a b caption="x = 1" key=2 -->')
    assert parsed is not None
    indent, directive = parsed
    assert indent == "  "
    assert (directive.name, directive.argument) == ("figure", "a b")
    assert directive.options == {"caption": "x = 1", "key": "2"}


@pytest.mark.parametrize(
    "line",
    ["text", "<!-- a plain comment -->", "text <!-- source: a -->", "<!-- /output -->"],
)
def test_other_lines_are_no_directives(line: str) -> None:
    assert directives.parse(line) is None


@pytest.mark.parametrize("name", ["benchmarks", "glossary", "targets", "vllm"])
def test_directives_without_an_argument_refuse_one(context: PageContext, name: str) -> None:
    with pytest.raises(DocsError, match=f"directive {name!r} takes no argument"):
        expand(f"<!-- {name}: all -->", context)


@pytest.mark.parametrize(
    "line, message",
    [
        ("<!-- sorce: a.py -->", "unknown directive 'sorce'"),
        ('<!-- source: "a.py -->', "No closing quotation"),
    ],
)
def test_broken_directives_are_refused(line: str, message: str) -> None:
    with pytest.raises(DocsError, match=message):
        directives.parse(line)


def test_source_is_titled_with_its_place(context: PageContext, write: Write) -> None:
    write("m1/a.py", '\n\ndef f():\n    """Doc."""\n    return 1\n')
    block = expand("<!-- source: m1/a.py:f docstring=no -->", context)
    assert block[0] == '```python title="m1/a.py, lines 3–5 · f"'
    assert block[1:] == ["def f():", "    return 1", "```"]
    block = expand("<!-- source: m1/a.py:f from=return -->", context)
    assert block[:2] == ['```python title="m1/a.py, line 5 · f"', "return 1"]


@pytest.mark.parametrize(
    "line, message",
    [
        ("<!-- source: gone.py:f -->", r"no file 'gone\.py'"),
        ("<!-- source: gone.py colour=red -->", "no option colour"),
        ("<!-- output: gone -->", "no recorded output"),
        ("<!-- bench: gone -->", "no result file"),
        ('<!-- figure: gone caption="x" -->', "no figure 'gone'"),
        ("<!-- figure: staircase -->", "needs a caption"),
        ('<!-- figure: staircase caption="x" zoom=2 -->', "no option zoom"),
        ("<!-- stages: gone -->", "unknown view"),
        ("<!-- api: gone -->", "no modules"),
        ("<!-- constants: gone_ -->", "no constant starts with"),
        ("<!-- options: engine gone -->", "no stage 'gone'"),
        ("<!-- benchmarks: x=1 y=2 -->", "no option x, y"),
    ],
)
def test_what_is_missing_is_named(context: PageContext, line: str, message: str) -> None:
    with pytest.raises(DocsError, match=message):
        expand(line, context)


def test_output_shows_command_and_provenance(context: PageContext, write: Write) -> None:
    write("docs/outputs/x.txt", "$ echo hi\n#: show make hi\n#: recorded a laptop\nhi\n")
    assert expand("<!-- output: x -->", context) == [
        "```console",
        "$ make hi",
        "hi",
        "```",
        "",
        "Recorded on a laptop.",
        "{ .folo-caption }",
    ]
    assert expand("<!-- output: x command=no -->", context)[:3] == ["```text", "hi", "```"]


@pytest.mark.usefixtures("result_file")
def test_bench_pivots_rows(context: PageContext) -> None:
    block = expand(f"<!-- bench: {RESULT_NAME} metrics=ttft across=engine -->", context)
    assert block[:4] == [
        "| prompt tokens | m1_basic: TTFT (s) | transformers: TTFT (s) |",
        "| ---: | ---: | ---: |",
        "| 128 | 0.200 | 0.300 |",
        "| 512 | 0.800 | 1.20 |",
    ]
    assert "commit 0123456789" in block[5]


@pytest.mark.usefixtures("result_file")
def test_bench_leaves_constant_labels_out_and_shows_spread(context: PageContext) -> None:
    line = f"<!-- bench: {RESULT_NAME} where=engine=m1_basic,prompt_tokens=512 spread=yes -->"
    assert expand(line, context)[:3] == [
        "| TTFT (ms) | throughput (tok/s) |",
        "| ---: | ---: |",
        "| 800 <small>720–960</small> | 14.2 <small>12.8–17.1</small> |",
    ]


@pytest.mark.usefixtures("result_file")
def test_bench_can_put_metrics_in_lines(context: PageContext) -> None:
    block = expand(f"<!-- bench: {RESULT_NAME} across=engine long=yes -->", context)
    assert block[:5] == [
        "| metric | prompt tokens | m1_basic | transformers |",
        "| --- | ---: | ---: | ---: |",
        "| TTFT (s) | 128 | 0.200 | 0.300 |",
        "| TTFT (s) | 512 | 0.800 | 1.20 |",
        "| throughput (tok/s) | 512 | 14.2 | – |",
    ]


def test_the_baseline_s_label_goes_across() -> None:
    rows = [
        {"cache": "on", "batch": 1, "loader": "ours"},
        {"cache": "off", "batch": 2, "loader": "transformers"},
    ]
    assert pivot.default_across(rows) == "loader"
    assert pivot.default_across([{"cache": "on", "batch": 1}, {"cache": "off"}]) == "cache"
    assert pivot.default_across([{"batch": 1}, {"batch": 2}]) == ""


def test_on_and_off_are_named_after_their_label() -> None:
    measured = {"metric": "time", "unit": "s", "median": 1, "min": 1, "max": 1, "spread": 0, "n": 1}
    rows = [{"cache": state, **measured} for state in ("on", "off")]
    table = pivot.pivot(Result("d/x", {"rows": rows}), pivot.TableOptions(across="cache"))
    assert table[0] == "| cache on: time (s) | cache off: time (s) |"


@pytest.mark.usefixtures("result_file")
@pytest.mark.parametrize(
    "options, message",
    [
        ("where=engine=gone", "no row"),
        ("metrics=tpot", "no metric tpot"),
        ("across=batch", "no label 'batch'"),
        ("spread=maybe", "yes or no"),
    ],
)
def test_bench_refuses(context: PageContext, options: str, message: str) -> None:
    with pytest.raises(DocsError, match=message):
        expand(f"<!-- bench: {RESULT_NAME} {options} -->", context)


@pytest.mark.usefixtures("result_file")
def test_benchmarks_page_holds_every_result(context: PageContext) -> None:
    text = "\n".join(expand("<!-- benchmarks -->", context))
    assert "## Test CPU (2 cores) {#cpu-test-2c}" in text
    assert "### m1_basic · latency {#cpu-test-2c-m1-basic-latency}" in text
    assert "| prompt tokens | m1_basic: TTFT (s) |" in text
    assert 'aria-label="Chart of TTFT by prompt tokens; the table below' in text
    assert "Chart of throughput" not in text  # it has one point only
    assert "- Random weights of the full shape." in text
    assert f"[JSON](../benchmarks/results/{RESULT_NAME}.json)" in text
    assert "workload fixed: 4 requests" in text


@pytest.mark.usefixtures("result_file")
@pytest.mark.parametrize("directive", ["bench: {}", "figure: bars result={}"])
def test_a_run_that_is_not_there_may_have_something_in_its_place(
    context: PageContext, directive: str
) -> None:
    absent, there = directive.format("gpu/x"), directive.format(RESULT_NAME)
    more = "" if directive.startswith("bench") else " metric=ttft by=prompt_tokens caption=TTFT"
    assert expand(f'<!-- {absent}{more} missing="Not measured." -->', context) == ["Not measured."]
    assert expand(f'<!-- {absent}{more} missing="" -->', context) == []
    shown = expand(f'<!-- {there}{more} missing="Not measured." -->', context)
    assert len(shown) > 3
    assert "Not measured." not in shown
    with pytest.raises(DocsError, match="no result file"):
        expand(f"<!-- {absent}{more} -->", context)


def test_benchmarks_page_without_results_says_so(context: PageContext) -> None:
    assert expand("<!-- benchmarks -->", context) == [
        "This checkout holds no result files (`docs/benchmarks/results`)."
    ]


def test_figure_is_inline_and_captioned(context: PageContext) -> None:
    line = '<!-- figure: staircase caption="Cache: {{ constant: kv_bytes_per_token | bytes }}." -->'
    block = expand(line, context)
    assert block[0].startswith('<div class="folo-figure" role="img" aria-label="Cache: ."')
    assert "" not in block[: block.index("</div>")]
    assert block[-2:] == ["Cache: 112\u00a0KiB.", "{ .folo-caption }"]
    assert context.figures == 1


def test_options_table_reads_a_dataclass(context: PageContext, write: Write) -> None:
    write(
        "common/x.py",
        "@dataclass\nclass P:\n"
        '    """P.\n\n    Attributes:\n        top_k: Keep k,\n            or all.\n'
        '        n: How many | much.\n    """\n\n'
        "    n: int\n    top_k: int | None = field(default=None)\n",
    )
    table = expand("<!-- options: common/x.py:P -->", context)
    assert table[2:] == [
        "| `n`<br>`--n` | `int` | required | How many \\| much. |",
        "| `top_k`<br>`--top-k` | `int | None` | `None` | Keep k, or all. |",
    ]
    assert len(expand("<!-- options: common/x.py:P only=n -->", context)) == 3
    with pytest.raises(DocsError, match="no field gone"):
        expand("<!-- options: common/x.py:P omit=gone -->", context)


def test_options_table_wants_every_field_described(context: PageContext, write: Write) -> None:
    write("common/x.py", 'class P:\n    """P."""\n\n    n: int = 1\n')
    with pytest.raises(DocsError, match="'n' of P is not described"):
        expand("<!-- options: common/x.py:P -->", context)


def test_engine_options_are_the_stage_s_own(context: PageContext) -> None:
    table = "\n".join(expand("<!-- options: engine m1_basic -->", context))
    assert "`--max-model-len`" in table
    assert "block_size" not in table


def test_constants_table(context: PageContext) -> None:
    table = expand("<!-- constants: kv_bytes_per_token -->", context)
    assert table[2].startswith("| `kv_bytes_per_token` | 112\u00a0KiB (114,688\u00a0B) | K and V")


def test_api_lists_public_modules(context: PageContext, write: Write) -> None:
    for name in (
        "a.py",
        "_b.py",
        "__init__.py",
        "model/c.py",
        "tests/test_a.py",
        "benchmarks/d.py",
    ):
        write(f"pkg/{name}", "")
    assert expand("<!-- api: pkg -->", context) == [
        "## `pkg.a` {#pkg-a}",
        "",
        "::: pkg.a",
        "",
        "## `pkg.model.c` {#pkg-model-c}",
        "",
        "::: pkg.model.c",
        "",
    ]


def test_stages_link_only_what_is_there(context: PageContext, write: Write) -> None:
    for name in ("m1_basic/__init__.py", "m1_basic/README.md", "docs/learn/01_basic_inference.md"):
        write(name, "")
    context.pages = {
        "docs/learn/01_basic_inference.md": "learn/01_basic_inference.md",
        "m1_basic/README.md": "stages/m1_basic.md",
    }
    cards = "\n".join(expand("<!-- stages: cards -->", context))
    assert "[Note](01_basic_inference.md) · [Code](../stages/m1_basic.md)\n" in cards
    assert cards.count("not built yet") == 7
    table = expand("<!-- stages: learn -->", context)
    assert len(table) == 2 + 8
    assert table[3].endswith("| [Note](01_basic_inference.md) | – |")
    assert table[4].endswith("| – | – |")


DRILL = """\
[[drill]]
id = "add"
target = "sums.py:add"
title = "Add"
teaches = "adding"
task = "Add two numbers."
minutes = 5
hints = ["Think.", "a + b."]
tests = ["test_sums.py"]
"""


def test_drills_are_a_table_with_folded_hints(context: PageContext, write: Write) -> None:
    write("m3_paged/drills.toml", DRILL)
    write("m3_paged/drills_wrong.toml", "")
    page = expand("<!-- drills: m3_paged -->", context)
    assert page[2] == "| Add<br>`add` | adding | 5 |"
    assert page[4:7] == ['??? tip "Tasks and hints"', "", '    ??? note "add"']
    assert "        1. a + b." in page
    assert expand("<!-- drills -->", context)[2:] == [
        "| [M3 · Paged KV cache](#m3) | 1 | 5 |",
        "| all | 1 | 5 |",
    ]


@pytest.mark.parametrize(
    "name, message",
    [("m9_none", "'m9_none' has no drills.toml"), ("m3_paged", "missing or unknown: teaches")],
)
def test_drills_that_cannot_be_read(
    context: PageContext, write: Write, name: str, message: str
) -> None:
    write("m3_paged/drills.toml", DRILL.replace('teaches = "adding"\n', ""))
    write("m3_paged/drills_wrong.toml", "")
    with pytest.raises(DocsError, match=message):
        expand(f"<!-- drills: {name} -->", context)
