"""Notebooks from their sources: ``notebooks/source/NN_name.py`` to ``notebooks/NN_name.ipynb``.

The source is jupytext's percent format, which reads and diffs as Python; the notebook is committed
with its outputs, so that readers see them without running anything.

``python -m tools.notebooks build [NAME …]`` runs sources and writes notebooks; ``check`` only
compares their cells.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

from tools.check_docs.problem import Problem

FOLDER = "notebooks"
TIMEOUT = 120
_MATPLOTLIBRC = Path(__file__).parent / "notebooks.matplotlibrc"
_METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def sources(root: Path) -> list[Path]:
    """Return the notebook sources of a checkout, sorted."""
    return sorted((root / FOLDER / "source").glob("*.py"))


def read_source(path: Path) -> Any:
    """Read a source as a notebook without outputs."""
    import jupytext

    notebook = jupytext.read(path, fmt="py:percent")
    notebook.metadata = {"kernelspec": _KERNEL, "language_info": {"name": "python"}}
    return notebook


def build(path: Path, root: Path) -> Path:
    """Run a source from the repository's folder and write its notebook.

    Execution times and cell ids that change from run to run are left out, so that building twice
    gives the same file where the outputs are the same.

    Returns:
        The notebook's path.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell failed.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = read_source(path)
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT,
        resources={"metadata": {"path": str(root)}},
        extra_arguments=["--InlineBackend.figure_formats=svg"],  # drawings stay drawings
    )
    client.execute(env={**os.environ, "MATPLOTLIBRC": str(_MATPLOTLIBRC)})
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            _level(output)
    notebook.metadata = {"kernelspec": _KERNEL, "language_info": {"name": "python"}}
    target = root / FOLDER / f"{path.stem}.ipynb"
    nbformat.write(notebook, target)
    return target


def _level(output: Any) -> None:
    """Take the date out of a drawing."""
    data = output.get("data", {})
    if "image/svg+xml" in data:
        data["image/svg+xml"] = _METADATA.sub("", data["image/svg+xml"])


def problems(root: Path) -> list[Problem]:
    """Return every source without an up-to-date notebook, and every notebook without a source."""
    import nbformat

    found = []
    stems = {path.stem for path in sources(root)}
    for path in sources(root):
        place = path.relative_to(root).as_posix()
        target = root / FOLDER / f"{path.stem}.ipynb"
        if not target.is_file():
            found.append(Problem(place, 0, "has no notebook: python -m tools.notebooks build"))
            continue
        built = nbformat.read(target, as_version=4)
        if _cells(built) != _cells(read_source(path)):
            message = "differs from its notebook: python -m tools.notebooks build"
            found.append(Problem(place, 0, message))
    for path in sorted((root / FOLDER).glob("*.ipynb")):
        if path.stem not in stems:
            place = path.relative_to(root).as_posix()
            found.append(Problem(place, 0, f"has no source in {FOLDER}/source"))
    return found


def _cells(notebook: Any) -> list[tuple[str, str, tuple[str, ...]]]:
    return [
        (cell.cell_type, cell.source.strip(), tuple(cell.metadata.get("tags", [])))
        for cell in notebook.cells
    ]


def main() -> int:
    """Build or check the notebooks of this checkout."""
    parser = argparse.ArgumentParser(prog="python -m tools.notebooks")
    parser.add_argument("action", choices=["build", "check"])
    parser.add_argument("names", nargs="*", help="stems (default: all)")
    args = parser.parse_args()
    root = Path.cwd()
    if args.action == "check":
        found = problems(root)
        for problem in found:
            print(problem, file=sys.stderr)
        return 1 if found else 0
    for path in sources(root):
        if not args.names or path.stem in args.names:
            print(f"built {build(path, root).relative_to(root)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
