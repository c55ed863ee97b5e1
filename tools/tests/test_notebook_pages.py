from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools.docs_build.errors import DocsError
from tools.docs_build.notebooks import convert

PIXEL = "iVBORw0KGgo="


def write(folder: Path, cells: list[Any]) -> Path:
    path = folder / "01_x.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    return path


def code(source: str, *outputs: Any, tags: tuple[str, ...] = ()) -> Any:
    cell = new_code_cell(source, outputs=list(outputs), execution_count=1)
    cell.metadata["tags"] = list(tags)
    return cell


def display(**data: str) -> Any:
    return new_output("display_data", data={k.replace("_", "/", 1): v for k, v in data.items()})


def test_cells_and_text_outputs(tmp_path: Path) -> None:
    stream = new_output("stream", text="\x1b[31mred\x1b[0m\nold\rnew\n")
    path = write(tmp_path, [new_markdown_cell("# Title\nText."), code("f()", stream)])
    page = convert(path)
    assert page.markdown.startswith(
        '# Title\n\n<a class="folo-download" href="../01_x.ipynb" download>'
    )
    assert "```python\nf()\n```" in page.markdown
    assert "```{ .text .folo-output }\nred\nnew\n```" in page.markdown


def test_images_become_files(tmp_path: Path) -> None:
    path = write(tmp_path, [new_markdown_cell("# T"), code("plot()", display(image_png=PIXEL))])
    page = convert(path)
    assert list(page.files) == ["01_x_files/1_0.png"]
    assert page.files["01_x_files/1_0.png"].startswith(b"\x89PNG")
    assert "![Output of the cell above](01_x_files/1_0.png)" in page.markdown


def test_drawings_are_inline_and_follow_the_scheme(tmp_path: Path) -> None:
    output = new_output(
        "display_data",
        data={
            "image/svg+xml": '<?xml version="1.0"?>\n<svg width="9pt" id="a">\n\n'
            '<path fill="#808182"/></svg>'
        },
    )
    page = convert(write(tmp_path, [new_markdown_cell("# T"), code("plot()", output)]))
    assert page.files == {}
    assert 'id="out1_0-a"' in page.markdown
    assert 'fill="var(--folo-ink, #808182)"' in page.markdown


def test_input_can_be_hidden(tmp_path: Path) -> None:
    stream = new_output("stream", text="shown")
    path = write(
        tmp_path, [new_markdown_cell("# T"), code("secret()", stream, tags=("hide-input",))]
    )
    assert "secret" not in convert(path).markdown
    assert "shown" in convert(path).markdown


def test_html_is_preferred_to_its_text_form(tmp_path: Path) -> None:
    output = new_output("execute_result", data={"text/html": "<b>\n\nx</b>", "text/plain": "plain"})
    page = convert(write(tmp_path, [new_markdown_cell("# T"), code("t", output)]))
    assert '<div class="folo-output-html">\n<b>\nx</b>\n</div>' in page.markdown
    assert "plain" not in page.markdown


def test_a_title_is_needed(tmp_path: Path) -> None:
    with pytest.raises(DocsError, match="first cell"):
        convert(write(tmp_path, [code("1")]))


def test_a_cell_that_never_ran_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, [new_markdown_cell("# T"), new_code_cell("f()")])
    with pytest.raises(DocsError, match="cell 2 was committed without having been run"):
        convert(path)


def test_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.ipynb"
    path.write_text("not json")
    with pytest.raises(DocsError, match="not a notebook"):
        convert(path)
