"""The calculators: their scripts give Python's numbers, and their pages work without scripts."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from common.environment import REPOSITORY
from common.model_costs import gptq_model_bytes, weight_bytes
from common.qwen3 import QWEN3_0_6B
from tools.calculators.page import render_calculator
from tools.calculators.parity import FORMULAS, RUN, Case, cases, mismatches
from tools.docs_build.context import PageContext
from tools.docs_build.directives import expand, parse
from tools.docs_build.errors import DocsError
from tools.docs_build.results import Results

NAMES = ("kv-memory", "roofline", "chunk-size", "gptq-bytes")
PAGE = "docs/lab/calculators.md"


@pytest.fixture
def context() -> PageContext:
    """The page of the calculators in this repository."""
    return PageContext(REPOSITORY, PAGE, "lab/calculators.md", Results(REPOSITORY))


def facts_of(lines: list[str]) -> dict[str, Any]:
    """What the element of a rendered calculator is given."""
    (found,) = re.findall(r'data-facts="([^"]*)"', "\n".join(lines))
    facts: dict[str, Any] = json.loads(html.unescape(found))
    return facts


class TestParity:
    def test_every_function_of_the_script_is_in_the_grid(self) -> None:
        script = (REPOSITORY / FORMULAS).read_text(encoding="utf-8")
        # The pool's bytes are inside its tokens.
        assert set(re.findall(r"^export function (\w+)", script, re.MULTILINE)) == {
            case.function for case in cases()
        } | {"kvPoolBytes"}

    @pytest.mark.skipif(shutil.which("node") is None, reason="the site's test runs the script")
    def test_the_script_agrees_with_python_within_a_tenth_of_a_per_cent(self) -> None:
        module = (REPOSITORY / FORMULAS).as_uri()
        program = (
            "import { readFileSync, writeFileSync } from 'node:fs';"
            # As data, so that its type needs no package.json beside the site's scripts.
            f"const text = readFileSync(new URL('{module}')).toString('base64');"
            "const module = await import('data:text/javascript;base64,' + text);"
            f"const run = {RUN};"
            "const cases = JSON.parse(readFileSync(0, 'utf8'));"
            "writeFileSync(1, JSON.stringify(run(module, cases)));"
        )
        given = cases()
        done = subprocess.run(
            ["node", "--input-type=module", "-e", program],
            input=json.dumps([[case.function, case.arguments] for case in given]),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert mismatches(given, json.loads(done.stdout)) == []

    def test_differences_are_reported(self) -> None:
        given = [Case("a", [{}, 1], 100.0), Case("b", [], [1.0, 2.0]), Case("c", [], None)]
        assert mismatches(given, [100.05, [1.0, 2.001], None]) == []
        assert mismatches(given, [100.2, [1.0], 0.0]) == [
            "a([1]): 100.2, expected 100.0",
            "b([]): [1.0], expected [1.0, 2.0]",
            "c([]): 0.0, expected None",
        ]
        assert mismatches(given, [100.0]) == ["1 answers to 3 cases"]


class TestDirective:
    @pytest.mark.parametrize("name", NAMES)
    def test_an_element_with_a_table_inside(self, name: str, context: PageContext) -> None:
        parsed = parse(f"<!-- calculator: {name} -->")
        assert parsed is not None
        lines = expand(parsed[1], context)
        assert lines[0].startswith("<div ")
        assert lines[1].startswith(f'<folo-calculator name="{name}" data-facts="')
        assert lines[-2:] == ["</folo-calculator>", "</div>"]
        text = "\n".join(lines)
        head, *rows = re.findall(r"<tr>(.*?)</tr>", text)
        columns = head.count("<th")
        assert len(rows) >= 4
        for row in rows:
            assert row.startswith('<th scope="row">')
            assert row.count("<th") + row.count("<td>") == columns

    def test_all_are_on_the_page(self) -> None:
        text = (REPOSITORY / PAGE).read_text(encoding="utf-8")
        assert tuple(re.findall(r"<!-- calculator: ([a-z-]+) -->", text)) == NAMES

    def test_the_table_shows_python_s_numbers(self, context: PageContext) -> None:
        text = "\n".join(render_calculator("gptq-bytes", context))
        saved = 1 - gptq_model_bytes(QWEN3_0_6B) / weight_bytes(QWEN3_0_6B)
        assert f"<td>{saved:.1%}</td>" in text
        assert "654,320" in "\n".join(render_calculator("kv-memory", context))

    def test_unknown(self, context: PageContext) -> None:
        with pytest.raises(DocsError, match="no calculator 'rope' \\(known: kv-memory, roofline"):
            render_calculator("rope", context)


class TestFacts:
    def test_models_and_devices(self, context: PageContext) -> None:
        facts = facts_of(render_calculator("roofline", context))
        assert list(facts["models"]) == ["Qwen3-0.6B", "Qwen3-1.7B", "Qwen3-4B", "Qwen3-8B"]
        assert facts["models"]["Qwen3-8B"]["tied"] is False
        assert list(facts["devices"])[facts["device"]] == "h100"

    def test_measured_points_lie_where_the_result_says(self, context: PageContext) -> None:
        result = context.results.get("nvidia-h100-80gb-hbm3/m2_batching-throughput")
        rows = [
            row
            for row in result.rows
            if row["metric"] == "tpot_p50" and row["engine"] == "m2_batching"
        ]
        points = facts_of(render_calculator("roofline", context))["measured"]
        assert [(p["x"], p["y"]) for p in points] == [
            (row["batch"], pytest.approx(row["median"] * 1e3)) for row in rows
        ]
        assert {(p["model"], p["device"], p["href"]) for p in points} == {
            ("Qwen3-0.6B", "h100", "../benchmarks/")
        }

    def test_bytes_are_those_of_any_device(self, context: PageContext) -> None:
        (point,) = facts_of(render_calculator("kv-memory", context))["measured"]
        assert point["device"] is None
        # 112 KiB a token: the point lies on the curve.
        assert point["y"] == pytest.approx(point["x"] * 112 / 1024**2)

    def test_a_later_result_of_chunks_adds_its_points(
        self, tmp_path: Path, context: PageContext
    ) -> None:
        kept = "docs/benchmarks/results/cpu-amd-epyc-2c/m5_chunked-chunk_size.json"
        data = json.loads((REPOSITORY / kept).read_text(encoding="utf-8"))
        data["config"]["model"] = "qwen3-0.6b-random"
        for folder in ("nvidia-h100-80gb-hbm3", "nvidia-unknown"):
            path = tmp_path / "docs/benchmarks/results" / folder / "m5_chunked-chunk_size.json"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps(data), encoding="utf-8")
        given = PageContext(tmp_path, PAGE, context.target, Results(tmp_path))
        points = facts_of(render_calculator("chunk-size", given))["measured"]
        assert {point["device"] for point in points} == {"h100"}
        assert [point["x"] for point in points] == [32, 64, 128, 256, 8192] * 2
        assert points[0]["label"] == "m5_chunked, budget 32, longest gap"
