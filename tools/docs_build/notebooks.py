"""Notebooks as pages: cells and their committed outputs to Markdown, images to files beside it."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.docs_build.errors import DocsError
from tools.figures.svg import adapt
from tools.outputs import tidy

_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_IMAGES = {"image/png": "png", "image/jpeg": "jpg"}


@dataclass
class NotebookPage:
    """A converted notebook.

    Attributes:
        stem: The notebook's stem.
        markdown: The page.
        files: Extracted images by path beside the page (``<stem>_files/3_0.png``).
    """

    stem: str
    markdown: str = ""
    files: dict[str, bytes] = field(default_factory=dict)


def convert(path: Path) -> NotebookPage:
    """Convert a notebook with the outputs it was committed with.

    Drawings (SVG) go into the page, so that they follow its colour scheme; other images become
    files. A code cell tagged ``hide-input`` shows its outputs only.

    Raises:
        DocsError: It is not a notebook, has no title, or a cell was never run.
    """
    import nbformat

    try:
        notebook = nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        raise DocsError(f"{path.name} is not a notebook: {error}") from error
    _check(notebook, path)
    page = NotebookPage(path.stem)
    parts: list[str] = []
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            parts.append(cell.source.strip())
        elif cell.cell_type == "code" and cell.source.strip():
            if "hide-input" not in cell.metadata.get("tags", []):
                parts.append(f"```python\n{cell.source.strip()}\n```")
            parts += [
                _rendered(output, f"{number}_{index}", page)
                for index, output in enumerate(cell.outputs)
            ]
    title, _, rest = "\n\n".join(part for part in parts if part).partition("\n")
    # The page becomes a folder of its own, so the file lies one level up.
    link = f'<a class="folo-download" href="../{path.name}" download>Download this notebook</a>'
    page.markdown = f"{title}\n\n{link}\n\n{rest.strip()}\n"
    return page


def _check(notebook: Any, path: Path) -> None:
    first = notebook.cells[0] if notebook.cells else None
    if first is None or first.cell_type != "markdown" or not first.source.startswith("# "):
        raise DocsError(f"{path.name}: the first cell must be Markdown and start with '# title'")
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type == "code" and cell.source.strip() and cell.execution_count is None:
            raise DocsError(f"{path.name}: cell {number} was committed without having been run")


def _rendered(output: Any, ident: str, page: NotebookPage) -> str:
    if output.output_type == "stream":
        return _text(output.text)
    if output.output_type == "error":
        return _text("\n".join(output.traceback))
    if "image/svg+xml" in output.data:
        svg = adapt(output.data["image/svg+xml"], f"out{ident}")
        return f'<div class="folo-figure" data-search-exclude>\n{svg}\n</div>'
    for kind, suffix in _IMAGES.items():
        if kind in output.data:
            name = f"{page.stem}_files/{ident}.{suffix}"
            page.files[name] = base64.b64decode(output.data[kind])
            return f"![Output of the cell above]({name})"
    if "text/html" in output.data:
        html = _COMMENT.sub("", output.data["text/html"])
        html = "\n".join(line for line in html.splitlines() if line.strip())
        return f'<div class="folo-output-html">\n{html}\n</div>'
    if "text/markdown" in output.data:
        return str(output.data["text/markdown"])
    return _text(str(output.data.get("text/plain", "")))


def _text(text: str) -> str:
    text = tidy(text).strip("\n")
    return f"```{{ .text .folo-output }}\n{text}\n```" if text else ""
