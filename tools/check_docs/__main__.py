"""``python -m tools.check_docs [--site site]``: print every problem, exit 1 when there is one."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from tools import output_copies, page_commands
from tools.check_docs.built import check_site
from tools.check_docs.claims import check_claims
from tools.check_docs.data import check_data
from tools.check_docs.problem import Problem
from tools.check_docs.structure import check_headings, check_log, check_note
from tools.docs_build.errors import DocsError

_NOTE = re.compile(r"^docs/learn/\d\d_\w+\.md$")
_LOG = re.compile(r"^docs/dev/milestone_\d\.md$")


def sources(root: Path) -> list[Path]:
    """Return the Markdown files that readers see: pages, stage READMEs, the README."""
    found = [p for p in sorted((root / "docs").rglob("*.md")) if "assets" not in p.parts]
    return [*found, *sorted(root.glob("m[0-9]_*/README.md")), *root.glob("README.md")]


def check_sources(root: Path) -> Iterator[Problem]:
    """Yield every problem of the Markdown sources of a checkout."""
    pages = {
        path.relative_to(root).as_posix(): path.read_text(encoding="utf-8")
        for path in sources(root)
    }
    for page, text in pages.items():
        if page.startswith("docs/"):
            yield from check_headings(page, text)
        if _NOTE.match(page):
            yield from check_note(page, text)
        elif _LOG.match(page):
            yield from check_log(page, text, root)
        yield from check_claims(page, text)
        yield from check_copied_outputs(page, text, root)
    yield from check_data(root, pages)
    yield from page_commands.problems(root)


def check_copied_outputs(page: str, text: str, root: Path) -> Iterator[Problem]:
    """Outputs copied into a page (for readers on GitHub) equal the recorded ones."""
    for copy in output_copies.find(text):
        try:
            current = output_copies.is_current(text, copy, root)
        except DocsError as error:
            yield Problem(page, copy.start, error.message)
            continue
        if not current:
            message = "copied output differs from the recording: python -m tools.outputs --copy"
            yield Problem(page, copy.start, message)


def main() -> int:
    """Check the checkout in the current folder."""
    parser = argparse.ArgumentParser(prog="python -m tools.check_docs")
    parser.add_argument("--site", type=Path, help="built site to check as well")
    args = parser.parse_args()
    problems = sorted(check_sources(Path.cwd()))
    if args.site:
        problems += sorted(check_site(args.site))
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"check-docs: {len(problems)} problems" if problems else "check-docs: ok")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
