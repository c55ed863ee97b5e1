from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nbformat

from tools import notebooks

SOURCE = """\
# %% [markdown]
# # Title

# %% tags=["hide-input"]
print("one", 1 + 1)

# %%
import matplotlib.pyplot as plt

plt.plot([1, 2], label="text")
plt.legend();
"""


def test_build_runs_and_check_compares(tmp_path: Path, write: Callable[[str, str], Path]) -> None:
    source = write("notebooks/source/01_x.py", SOURCE)
    assert [p.message for p in notebooks.problems(tmp_path)] == [
        "has no notebook: python -m tools.notebooks build"
    ]
    target = notebooks.build(source, tmp_path)
    first = target.read_bytes()
    built = nbformat.read(target, as_version=4)
    assert built.cells[1].outputs[0].text == "one 2\n"
    assert built.cells[1].metadata == {"tags": ["hide-input"]}
    assert "<text" in built.cells[2].outputs[0].data["image/svg+xml"]
    assert notebooks.problems(tmp_path) == []
    assert notebooks.build(source, tmp_path).read_bytes() == first

    write("notebooks/source/01_x.py", SOURCE.replace("1 + 1", "1 + 2"))
    (problem,) = notebooks.problems(tmp_path)
    assert "differs from its notebook" in problem.message


def test_a_notebook_without_a_source_is_found(
    tmp_path: Path, write: Callable[[str, str], Path]
) -> None:
    write("notebooks/02_y.ipynb", "{}")
    (problem,) = notebooks.problems(tmp_path)
    assert problem.page == "notebooks/02_y.ipynb"
    assert "has no source" in problem.message
