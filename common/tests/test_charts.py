import math
from collections.abc import Iterator

import pytest

from common.charts import comparison_bars, grouped, heatmap, line_with_floor
from common.errors import ConfigError
from common.plot_style import Axes, point
from common.results import row
from common.timing import Measurement

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    plt.close("all")


def texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


def legend_labels(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_bars_have_values_and_ranges() -> None:
    ax = comparison_bars(
        {"m1": {128: Measurement((40.0, 43.0, 44.0)), 512: 35.0}, "hf": {128: 38.0}},
        unit="tok/s",
    )
    assert [patch.get_height() for patch in ax.patches] == [43.0, 35.0, 38.0]
    assert texts(ax) == ["43", "35", "38"]
    assert ax.get_ylim()[0] == 0
    assert len(ax.containers) == 3  # two groups of bars, one with an error bar
    assert legend_labels(ax) == ["m1", "hf"]


def test_rows_of_a_result_are_values() -> None:
    rows = [
        row("tpot", "s", [1.0, 2.0, 3.0], engine="m1", prompt_tokens=128),
        row("tpot", "s", 4.0, engine="hf", prompt_tokens=128),
    ]
    series = grouped(rows, "prompt_tokens")
    assert list(series) == ["m1", "hf"]
    assert point(series["m1"][128]) == (2.0, 1.0, 3.0)
    assert [p.get_height() for p in comparison_bars(series, unit="s").patches] == [2.0, 4.0]
    with pytest.raises(ConfigError, match="two rows for engine m1 at prompt_tokens 128"):
        grouped([*rows, rows[0]], "prompt_tokens")


def test_floor_is_dashed() -> None:
    ax = line_with_floor(
        {"on": {1: 2.0, 4: 3.0}}, {1: 1.0, 4: 1.5}, xlabel="x", ylabel="y", log_x=True
    )
    assert [line.get_linestyle() for line in ax.lines] == ["-", "--"]
    assert list(ax.lines[1].get_ydata()) == [1.0, 1.5]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "4"]
    assert ax.get_ylim()[0] == 0
    level = line_with_floor({"on": {1: 2.0}}, 0.5, xlabel="x", ylabel="y", log_y=True)
    assert list(level.lines[1].get_ydata()) == [0.5, 0.5]


def test_heatmap_writes_numbers_and_leaves_zeros_empty() -> None:
    ax = heatmap(
        [[0.0, 1.0], [10.0, 100.0]],
        row_labels=["a", "b"],
        column_labels=["x", "y"],
        value_label="max",
        log=True,
    )
    assert texts(ax) == ["0", "1", "10", "1e+02"]
    mesh = ax.collections[0].get_array()
    assert mesh.mask.tolist() == [[True, False], [False, False]]


@pytest.mark.parametrize(
    "matrix", [[], [[1.0]], [[1.0, 2.0, 3.0]], [[math.nan, 1.0]], [[-1.0, 1.0]]]
)
def test_heatmap_refusals(matrix: list[list[float]]) -> None:
    with pytest.raises(ConfigError):
        heatmap(matrix, row_labels=["a"], column_labels=["x", "y"], value_label="v", log=True)


def test_nothing_to_draw() -> None:
    with pytest.raises(ConfigError, match="at least one value"):
        comparison_bars({}, unit="s")
    with pytest.raises(ConfigError, match="at least one point"):
        line_with_floor({"a": {}}, xlabel="x", ylabel="y")
