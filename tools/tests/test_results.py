from __future__ import annotations

from pathlib import Path

import pytest

from tools.docs_build.errors import DocsError
from tools.docs_build.results import RESULTS_DIR, Results, select, walk
from tools.tests.conftest import RESULT_NAME, result_data

pytestmark = pytest.mark.usefixtures("result_file")


def test_names_and_provenance(tmp_path: Path) -> None:
    results = Results(tmp_path)
    assert results.names() == [RESULT_NAME]
    result = results.get(f"{RESULT_NAME}.json")
    assert result.provenance == "Test CPU (2 cores), 2026-11-23, commit 0123456789"
    assert result.anchor == "cpu-test-2c-m1-basic-latency"


def test_a_metric_with_labels_is_its_median(tmp_path: Path) -> None:
    _, value, unit = Results(tmp_path).value(
        f"{RESULT_NAME}#ttft[engine=m1_basic,prompt_tokens=512]"
    )
    assert (value, unit) == (0.8, "s")


def test_other_keys_of_a_row(tmp_path: Path) -> None:
    results = Results(tmp_path)
    assert results.value(f"{RESULT_NAME}#throughput.max")[1:] == (14.25 * 1.2, "tok/s")
    assert results.value(f"{RESULT_NAME}#throughput.n")[1:] == (3, "")


def test_a_path_of_keys(tmp_path: Path) -> None:
    results = Results(tmp_path)
    assert results.value(f"{RESULT_NAME}#workload.num_requests")[1] == 4
    assert results.value(f"{RESULT_NAME}#rows[0].median")[1] == 0.2
    assert (
        results.value(f"{RESULT_NAME}#rows[engine=m1_basic,metric=throughput].unit")[1] == "tok/s"
    )


@pytest.mark.parametrize(
    "reference, message",
    [
        ("gone/x#ttft", r"no result file docs/benchmarks/results/gone/x\.json"),
        (RESULT_NAME, "file#metric"),
        (f"{RESULT_NAME}#ttft[engine=m1_basic]", "matches 2 rows"),
        (f"{RESULT_NAME}#tpot", r"matches 0 rows .*metrics: ttft, throughput"),
        (f"{RESULT_NAME}#workload.gone", r"no 'gone' .*has name, hash"),
        (f"{RESULT_NAME}#rows[engine=m1_basic].median", "matches 3 rows"),
        (f"{RESULT_NAME}#rows[99].median", "no '99'"),
    ],
)
def test_bad_references_say_what_is_missing(tmp_path: Path, reference: str, message: str) -> None:
    with pytest.raises(DocsError, match=message):
        Results(tmp_path).value(reference)


def test_a_file_that_is_no_result_is_refused(tmp_path: Path) -> None:
    (tmp_path / RESULTS_DIR / "cpu-test-2c" / "bad.json").write_text('{"schema": "other"}')
    with pytest.raises(DocsError, match="schema must be"):
        Results(tmp_path).get("cpu-test-2c/bad")


def test_selector_compares_as_text_and_reads_dotted_keys() -> None:
    rows = [{"a": {"b": 1}, "on": True}, {"a": {"b": 2}, "on": False}]
    assert select(rows, "a.b=2") == [rows[1]]
    assert select(rows, "on=true") == [rows[0]]
    assert select(rows, "") == rows


def test_a_value_may_hold_commas() -> None:
    rows = [{"over": "float, plain", "batch": 1}, {"over": "float", "batch": 1}]
    assert select(rows, "over=float, plain,batch=1") == [rows[0]]
    assert select(rows, "batch=1, over=float") == [rows[1]]
    assert select(rows, "over=float, pla") == []


def test_a_pointer_that_cannot_be_read() -> None:
    with pytest.raises(DocsError, match="cannot read the pointer"):
        walk(result_data(), "rows]x", "here")
