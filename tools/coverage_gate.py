"""Holds ``common`` and every stage to their coverage, and every exclusion to a GPU test.

``python -m tools.coverage_gate build/coverage.json`` reads what ``make coverage`` measured. A
package's number counts lines and branches, as coverage.py's own total does. The comment
``# gpu-only: path/to/test_file.py::test_name`` leaves a line, or the block it opens, unmeasured;
the named test must exist and carry the marker ``gpu``. No other exclusion is accepted.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.check_docs.problem import Problem

MINIMUM = 85.0
_GPU_ONLY = re.compile(r"^#\s*gpu-only:\s*(?P<test>\S*)")
_OTHER = re.compile(r"^#\s*pragma:\s*no\s*(?:cover|branch)")


@dataclass
class Measured:
    """Sums over one package.

    Attributes:
        covered: Lines and branches that ran.
        total: Lines and branches there are.
    """

    covered: int = 0
    total: int = 0

    @property
    def percent(self) -> float:
        """Covered share in percent; 100 for an empty package."""
        return 100.0 * self.covered / self.total if self.total else 100.0


def packages(root: Path) -> list[str]:
    """Return ``common`` and the stages of a checkout."""
    found = sorted(path.parent.name for path in root.glob("m[0-9]_*/__init__.py"))
    return ["common", *found]


def by_package(report: dict[str, Any], names: list[str]) -> dict[str, Measured]:
    """Sum a report of ``coverage json`` by top-level package."""
    sums = {name: Measured() for name in names}
    for path, entry in report["files"].items():
        package = Path(path).parts[0]
        if package not in sums:
            continue
        summary = entry["summary"]
        sums[package].covered += summary["covered_lines"] + summary.get("covered_branches", 0)
        sums[package].total += summary["num_statements"] + summary.get("num_branches", 0)
    return sums


def check_exclusions(root: Path, names: list[str]) -> Iterator[Problem]:
    """Yield every exclusion that names no GPU test, and every exclusion of another kind."""
    for name in names:
        for path in sorted((root / name).rglob("*.py")):
            place = path.relative_to(root).as_posix()
            for line, comment in _comments(path):
                if match := _GPU_ONLY.match(comment):
                    problem = _named_test(match["test"], root)
                    if problem:
                        yield Problem(place, line, problem)
                elif _OTHER.match(comment):
                    yield Problem(place, line, "only '# gpu-only: <test>' may exclude a line")


def _comments(path: Path) -> Iterator[tuple[int, str]]:
    reader = io.StringIO(path.read_text(encoding="utf-8")).readline
    for token in tokenize.generate_tokens(reader):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def _named_test(test: str, root: Path) -> str:
    """Return what is wrong with a test id, or ""."""
    file, *names = test.split("::")
    if not file or not names:
        return f"'# gpu-only:' needs a test id, path::name, got {test!r}"
    path = root / file
    if not path.is_file():
        return f"no test file {file}"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    marked = _marks_module(tree)
    scope: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef = tree
    for name in names:
        found = [
            node
            for node in scope.body
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and node.name == name
        ]
        if not found:
            return f"no test {test}"
        scope = found[0]
        marked |= any(_is_gpu(decorator) for decorator in scope.decorator_list)
    return "" if marked else f"{test} does not carry @pytest.mark.gpu"


def _marks_module(tree: ast.Module) -> bool:
    return any(
        isinstance(node, ast.Assign)
        and any(isinstance(t, ast.Name) and t.id == "pytestmark" for t in node.targets)
        and any(_is_gpu(inner) for inner in ast.walk(node.value) if isinstance(inner, ast.expr))
        for node in tree.body
    )


def _is_gpu(node: ast.expr) -> bool:
    return ast.unparse(node) == "pytest.mark.gpu"


def main() -> int:
    """Print every package's coverage; return 1 when one is too low or an exclusion is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tools.coverage_gate")
    parser.add_argument("report", type=Path, help="JSON report of coverage.py")
    parser.add_argument("--min", type=float, default=MINIMUM, help="percent (default %(default)g)")
    args = parser.parse_args()
    root = Path.cwd()
    names = packages(root)
    sums = by_package(json.loads(args.report.read_text(encoding="utf-8")), names)
    problems = [str(problem) for problem in check_exclusions(root, names)]
    for name, measured in sums.items():
        low = measured.percent < args.min or measured.total == 0
        print(f"coverage {name:12} {measured.percent:5.1f} %{'  too low' if low else ''}")
        if low:
            problems.append(f"{name}: {measured.percent:.1f} % is below {args.min:g} %")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
