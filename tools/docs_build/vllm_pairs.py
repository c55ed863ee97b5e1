"""Our files beside vLLM's, as data: ``docs/data/vllm.toml``."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.docs_build.context import PageContext
from tools.docs_build.errors import DocsError
from tools.docs_build.parts import Parts
from tools.docs_build.tokens import expand_tokens

PAIRS = "docs/data/vllm.toml"


@dataclass(frozen=True)
class Pair:
    """What does the same job here and there.

    Attributes:
        part: Heading of the table it stands in.
        ours: Public classes, functions or modules.
        vllm: Files below ``vllm/``, a symbol behind a colon; none where vLLM has no such thing.
        simpler: What differs, and why.
    """

    part: str
    ours: tuple[str, ...]
    vllm: tuple[str, ...]
    simpler: str


@dataclass(frozen=True)
class Comparison:
    """All pairs.

    Attributes:
        version: vLLM's.
        pairs: In the order of the file.
    """

    version: str
    pairs: tuple[Pair, ...]


def load(root: Path) -> Comparison:
    """Read the comparison.

    Raises:
        DocsError: The file is missing, or an entry has other keys.
    """
    path = root / PAIRS
    if not path.is_file():
        raise DocsError(f"no file {PAIRS}")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise DocsError(str(error), PAIRS) from error
    return Comparison(data["version"], tuple(_pair(entry) for entry in data["pair"]))


def _pair(entry: dict[str, Any]) -> Pair:
    if set(entry) != {"part", "ours", "vllm", "simpler"}:
        raise DocsError(f"a pair has part, ours, vllm and simpler, not {sorted(entry)}", PAIRS)
    return Pair(entry["part"], tuple(entry["ours"]), tuple(entry["vllm"]), entry["simpler"])


def render_pairs(context: PageContext) -> list[str]:
    """Render the ``vllm`` directive: a table for each part.

    Raises:
        DocsError: Something of ours is not there.
    """
    comparison, parts = load(context.root), Parts(context.root)
    lines: list[str] = []
    for part in dict.fromkeys(pair.part for pair in comparison.pairs):
        anchor = re.sub(r"[^a-z0-9]+", "-", part.lower())
        lines += [f"## {part} {{#{anchor}}}", "", '<div class="folo-rows folo-pairs" markdown>', ""]
        lines += [f"| Ours | vLLM {comparison.version} | What is simpler, and why |"]
        lines += ["| --- | --- | --- |"]
        for pair in comparison.pairs:
            if pair.part == part:
                lines.append(_row(pair, parts, context))
        lines += ["", "</div>", ""]
    return lines


def _row(pair: Pair, parts: Parts, context: PageContext) -> str:
    ours = _files([_ours(symbol, parts, context) for symbol in pair.ours])
    cited = (item.partition(":") for item in pair.vllm)
    theirs = _files([(path, f"`{symbol}`" if symbol else "") for path, _, symbol in cited])
    return f"| {ours} | {theirs or 'none'} | {expand_tokens(pair.simpler, context)} |"


def _ours(symbol: str, parts: Parts, context: PageContext) -> tuple[str, str]:
    """The file of one of our symbols, and the linked symbol; a module is its file."""
    part = parts.find(symbol)
    path = (part.module if part else symbol).replace(".", "/") + ".py"
    if not (context.root / path).is_file():
        raise DocsError(f"no {symbol} in the code", PAIRS)
    return path, context.api_link(symbol)


def _files(items: list[tuple[str, str]]) -> str:
    """Paths that may break behind a slash, each with its symbols."""
    grouped: dict[str, list[str]] = {}
    for path, symbol in items:
        grouped.setdefault(path, []).append(symbol)
    shown = []
    for path, symbols in grouped.items():
        names = ", ".join(symbol for symbol in symbols if symbol)
        code = f"<code>{path.replace('/', '/<wbr>').replace('_', '_<wbr>')}</code>"
        shown.append(f"{code}<br>{names}" if names else code)
    return "<br>".join(shown)
