from typing import Any

import pytest

from common.environment import DeviceInfo
from common.result_compare import compare, format_comparison, format_result
from common.results import ResultError, row
from common.tables import format_number, format_table
from common.tests.sample_results import COMMIT, result
from common.workload import fixed


class TestCompare:
    def test_two_runs_of_one_stage(self) -> None:
        rows = compare(result(), result(tpot=0.01))
        assert [(item.get("engine"), item["b/a"]) for item in rows] == [
            ("m1_basic", 0.5),
            ("transformers", 1.0),
            (None, 1.0),
        ]
        assert rows[0]["noise"] == pytest.approx(0.1)

    def test_two_stages_compare_their_own_engines(self) -> None:
        rows = compare(result(), result("m2_batching", tpot=0.005))
        assert [(item["metric"], item["b/a"]) for item in rows] == [
            ("tpot", 0.25),
            ("peak_memory", 1.0),
        ]
        assert "engine" not in rows[0]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"commit": "f" * 40}, "different commits: 0123456789 and ffffffffff"),
            ({"commit": f"{COMMIT}-dirty.01234567"}, "and 0123456789-dirty.01234567"),
            (
                {"device": DeviceInfo("cpu", "Apple M4", 10, 16 * 2**30)},
                "different machines: AMD EPYC (2 cores, 8 GiB) and Apple M4 (10 cores, 16 GiB)",
            ),
            ({"workload": fixed(2, 3, 5).info}, "different workloads: fixed-2x3+4"),
            ({"workload": None}, "different workloads: fixed-2x3+4"),
            ({"rows": (row("other", "s", 1.0),)}, "no row in common"),
        ],
    )
    def test_refusals(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(ResultError) as caught:
            compare(result(), result(**change))
        assert message in str(caught.value)

    def test_an_unknown_commit_is_not_the_same_as_another(self) -> None:
        unknown = result(commit="unknown")
        with pytest.raises(ResultError, match="without a commit"):
            compare(unknown, unknown)

    def test_the_same_dirty_tree_is_comparable(self) -> None:
        dirty = result(commit=f"{COMMIT}-dirty.01234567")
        assert compare(dirty, dirty)

    def test_zero_has_no_ratio(self) -> None:
        zero = result(rows=(row("hits", "1", 0.0),))
        assert compare(zero, zero)[0]["b/a"] is None

    def test_other_versions_are_noted(self) -> None:
        text = format_comparison(result(), result(versions={"python": "3.12.3"}))
        assert "note: python differs: 3.11.7 and 3.12.3" in text
        assert "note: torch differs: 2.13.0 and None" in text


class TestFormat:
    def test_numbers(self) -> None:
        assert format_number(1234567) == "1,234,567"
        assert format_number(12345.6) == "12,346"
        assert format_number(0.0123456) == "0.01235"
        assert format_number(None) == "–"
        assert format_number(True) == "True"

    def test_table(self) -> None:
        rows = [{"name": "a", "n": 5}, {"name": "long", "n": 1234, "x": 0.5}]
        assert format_table(rows) == (
            "name      n    x\n"
            "----  -----  ---\n"
            "a         5    –\n"
            "long  1,234  0.5"
        )  # fmt: skip
        assert format_table(rows, ["n", "name"], markdown=True) == (
            "| n | name |\n| ---: | --- |\n| 5 | a |\n| 1,234 | long |"
        )

    def test_markdown_cells_cannot_break_the_table(self) -> None:
        assert "a\\|b" in format_table([{"x": "a|b"}], markdown=True)

    def test_result(self) -> None:
        text = format_result(result())
        for part in (
            "m1_basic-latency · AMD EPYC (2 cores, 8 GiB)",
            "commit 0123456789 · 2026-11-23T12:00:00Z · python -m m1_basic.benchmarks",
            "torch 2.13.0",
            "2 requests, 6 prompt and at most 8 output tokens, seed 0",
            "dtype=float32",
            "note: random weights",
        ):
            assert part in text
