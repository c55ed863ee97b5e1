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
        lines += [f"## {part} {{#{anchor}}}", ""]
        lines += [f"| Ours | vLLM {comparison.version} | What is simpler, and why |"]
        lines += ["| --- | --- | --- |"]
        for pair in comparison.pairs:
            if pair.part == part:
                lines.append(_row(pair, parts, context))
        lines.append("")
    return lines


def _row(pair: Pair, parts: Parts, context: PageContext) -> str:
    ours = "<br>".join(_ours(symbol, parts, context) for symbol in pair.ours)
    theirs = "<br>".join(_theirs(cited) for cited in pair.vllm) or "none"
    return f"| {ours} | {theirs} | {expand_tokens(pair.simpler, context)} |"


def _ours(symbol: str, parts: Parts, context: PageContext) -> str:
    is_module = (context.root / (symbol.replace(".", "/") + ".py")).is_file()
    part = parts.find(symbol)
    if part is None and not is_module:
        raise DocsError(f"no {symbol} in the code", PAIRS)
    path = symbol.replace(".", "/") + ".py" if part is None else part.path
    name = "" if part is None else f"<br>{context.api_link(symbol)}"
    return f"`{path}`{name}" if name else context.api_link(symbol, path)


def _theirs(cited: str) -> str:
    path, _, symbol = cited.partition(":")
    return f"`{path}`<br>`{symbol}`" if symbol else f"`{path}`"
