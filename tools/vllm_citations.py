"""``python -m tools.vllm_citations FOLDER``: is everything cited of vLLM really there?

``FOLDER`` is an unpacked vLLM, the one that holds ``v1/``. The site does not need it: this is run
when a citation is written or the pinned version moves. It reads ``docs/data/vllm.toml``, and every
file that the tables of the notes cite.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from tools.docs_build.errors import DocsError
from tools.docs_build.vllm_pairs import load
from tools.markdown import lines

_CITED = re.compile(r"`((?:[\w-]+/)+[\w-]+\.py)`")
_COLUMN = 2
"""Of ours | vLLM | why, split at the bars."""

_FOLDERS = ("", "v1", "model_executor")
"""A note says above its table below which of them its files lie."""


def missing(root: Path, vllm: Path) -> Iterator[str]:
    """Yield a complaint for every citation that points at nothing.

    Args:
        root: The checkout.
        vllm: The package's folder.
    """
    for pair in load(root).pairs:
        for cited in pair.vllm:
            path, _, symbol = cited.partition(":")
            if not (vllm / path).is_file():
                yield f"no file {path}"
            elif symbol and not has_symbol(vllm / path, symbol):
                yield f"no {symbol} in {path}"
    for page in sorted((root / "docs/learn").glob("[0-9]*.md")):
        for number, path in _note_citations(page.read_text(encoding="utf-8")):
            if not any((vllm / folder / path).is_file() for folder in _FOLDERS):
                yield f"{page.relative_to(root).as_posix()}:{number}: no file {path}"


def _note_citations(text: str) -> Iterator[tuple[int, str]]:
    """Files of vLLM in the second column of the tables whose head names vLLM."""
    inside = False
    for line in lines(text):
        row = line.text.strip()
        if not row.startswith("|"):
            inside = False
        elif "| vLLM" in row:
            inside = True
        elif inside:
            cell = row.split("|")[_COLUMN]
            yield from ((line.number, path) for path in _CITED.findall(cell))


def has_symbol(path: Path, symbol: str) -> bool:
    """Return whether a file defines a class or function, or ``Class.method``."""
    body: list[ast.stmt] = ast.parse(path.read_text(encoding="utf-8")).body
    for name in symbol.split("."):
        kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = next((n for n in body if isinstance(n, kinds) and n.name == name), None)
        if found is None:
            return False
        body = found.body
    return True


def main() -> int:
    """Check the checkout in the current folder; print every complaint and return 1 on any."""
    parser = argparse.ArgumentParser(prog="python -m tools.vllm_citations")
    parser.add_argument("folder", type=Path, help="the unpacked package, which holds v1/")
    args = parser.parse_args()
    if not (args.folder / "v1").is_dir():
        parser.error(f"{args.folder} holds no v1/: is it the package's folder?")
    try:
        complaints = list(missing(Path.cwd(), args.folder))
    except DocsError as error:
        complaints = [str(error)]
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
