from __future__ import annotations

import pytest

from tools.docs_build.context import PageContext
from tools.docs_build.errors import DocsError
from tools.docs_build.tokens import expand_tokens
from tools.tests.conftest import RESULT_NAME

TTFT = f"{RESULT_NAME}#ttft[engine=m1_basic,prompt_tokens=128]"
OTHER = f"{RESULT_NAME}#ttft[engine=transformers,prompt_tokens=128]"


def test_constant_and_calc_come_from_the_sheet(context: PageContext) -> None:
    line = "{{ constant: kv_bytes_per_token }} = {{ constant: kv_bytes_per_token | bytes }}"
    assert expand_tokens(line, context) == "114,688 = 112\u00a0KiB"
    assert (
        expand_tokens("{{ calc: kv_bytes(QWEN3_0_6B, 2048) | bytes }}", context) == "224\u00a0MiB"
    )


def test_a_table_cell_may_escape_the_bar(context: PageContext) -> None:
    assert expand_tokens(r"| {{ calc: 1024 \| bytes }} |", context) == "| 1\u00a0KiB |"


@pytest.mark.usefixtures("result_file")
def test_a_result_links_to_its_run(context: PageContext) -> None:
    text = expand_tokens(f"TTFT {{{{ result: {TTFT} }}}}.", context)
    assert text.startswith(
        "TTFT [200\u00a0ms](../benchmarks/index.md#cpu-test-2c-m1-basic-latency)"
    )
    assert 'title="Test CPU (2 cores), 2026-11-23, commit 0123456789' in text


@pytest.mark.usefixtures("result_file")
def test_a_result_with_a_format(context: PageContext) -> None:
    assert "[0.20](" in expand_tokens(f"{{{{ result: {TTFT} | .2f }}}}", context)


@pytest.mark.usefixtures("result_file")
def test_a_ratio_divides_medians(context: PageContext) -> None:
    assert "[1.50×](" in expand_tokens(f"{{{{ ratio: {OTHER} / {TTFT} }}}}", context)


@pytest.mark.usefixtures("result_file")
@pytest.mark.parametrize(
    "token, message",
    [
        ("{{ konstant: a }}", "unknown token 'konstant'"),
        ("{{ constant: gone }}", "no constant 'gone'"),
        (f"{{{{ ratio: {TTFT} }}}}", "separated by ' / '"),
        (f"{{{{ ratio: {TTFT} / {RESULT_NAME}#throughput }}}}", "cannot divide s by tok/s"),
        (f"{{{{ ratio: {RESULT_NAME}#stage / {RESULT_NAME}#stage }}}}", "cannot divide"),
        ("{{ result: gone#ttft }}", "no result file"),
    ],
)
def test_bad_tokens(context: PageContext, token: str, message: str) -> None:
    with pytest.raises(DocsError, match=message):
        expand_tokens(token, context)


def test_code_and_other_braces_are_left_alone(context: PageContext) -> None:
    line = r"`{{ constant: gone }}` and $\frac{{a}}{b}$"
    assert expand_tokens(line, context) == line
