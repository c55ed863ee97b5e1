"""No file of the repository names a path of somebody's machine, a package host, or unfinished work.

``python -m tools.check_tree`` reads every text file that git tracks or would add.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tools.check_docs.problem import Problem

_VENDORED = ("docs/assets/vendor/", "LICENSE")
# Written in pieces, so that this file passes its own check.
_RULES: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "names a path of one machine",
        re.compile(r"(?<![\w.~$}>*)/-])/(?:work|root)/[\w.-]+"),
    ),
    ("names a folder outside the repository", re.compile(r"\.\./" + "shared")),
    (
        "names a package host",
        re.compile(
            r"(?:files\.python" + r"hosted|py" + r"pi|npm" + r"js|download\.py" + r"torch)\.org"
        ),
    ),
    ("leaves work undone", re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|X" + r"XX)\b")),
)
# Tests of path handling need made-up paths of this kind.
_OUTSIDE_TESTS = (
    "names a path of one machine",
    re.compile(r"(?<![\w.~$}>*)/-])/(?:tmp|home/\w+|Users)/[\w.-]+"),
)


def listed_files(root: Path) -> list[str]:
    """Return the files git tracks or would add; [] where there is no git."""
    command = ["git", "-C", str(root), "ls-files", "-co", "--exclude-standard", "-z"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return []
    return sorted(name for name in done.stdout.split("\0") if name)


def check_text(name: str, text: str) -> Iterator[Problem]:
    """Yield every line of a file that breaks a rule."""
    rules = _RULES if "tests" in Path(name).parts else (*_RULES, _OUTSIDE_TESTS)
    for number, line in enumerate(text.splitlines(), start=1):
        for what, pattern in rules:
            if match := pattern.search(line):
                yield Problem(name, number, f"{what}: {match[0]!r}")


def check_tree(root: Path) -> Iterator[Problem]:
    """Yield the problems of every listed text file; binary and vendored files are passed over."""
    for name in listed_files(root):
        path = root / name
        if name.startswith(_VENDORED) or not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        yield from check_text(name, text)


def main() -> int:
    """Check the checkout in the current folder."""
    problems = list(check_tree(Path.cwd()))
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"check-tree: {len(problems)} problems" if problems else "check-tree: ok")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
