from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from common.plot_style import INK
from tools.docs_build.errors import DocsError
from tools.docs_build.results import Results
from tools.figures import registry
from tools.figures.svg import adapt, from_matplotlib
from tools.tests.conftest import RESULT_NAME


def given(root: Path, **options: str) -> registry.FigureInput:
    return registry.FigureInput(root, Results(root), {}, options)


def parsed(svg: str) -> ET.Element:
    """The drawing must be well-formed on its own, as it stands in the page."""
    return ET.fromstring(svg)


def texts(svg: str) -> str:
    return " ".join(
        "".join(node.itertext()) for node in parsed(svg).iter() if node.tag.endswith("text")
    )


@pytest.mark.parametrize("name", ["staircase", "weight-bytes", "kv-growth"])
def test_figures_without_data_draw(tmp_path: Path, name: str) -> None:
    svg = registry.draw(name, given(tmp_path), "p")
    assert parsed(svg).attrib["style"].startswith("max-width:")
    assert "\n\n" not in svg


def test_weights_add_up_to_the_model(tmp_path: Path) -> None:
    shown = texts(registry.draw("weight-bytes", given(tmp_path), "p"))
    assert "1,137 MiB in all" in shown
    assert "297 MiB" in shown


def test_the_staircase_fills_only_finished_stages(tmp_path: Path) -> None:
    assert registry.draw("staircase", given(tmp_path), "p").count("stroke-dasharray") == 8
    for name in ("m0_init/__init__.py", "m0_init/README.md", "docs/learn/00_project_setup.md"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert registry.draw("staircase", given(tmp_path), "p").count("stroke-dasharray") == 7


@pytest.mark.usefixtures("result_file")
def test_bars_and_curves_of_a_result(tmp_path: Path) -> None:
    options = {"result": RESULT_NAME, "metric": "ttft", "by": "prompt_tokens"}
    shown = texts(registry.draw("bars", given(tmp_path, **options), "p"))
    assert "transformers" in shown
    assert "0.8" in shown
    shown = texts(registry.draw("curves", given(tmp_path, **options, log_x="yes"), "p"))
    assert "ttft (s)" in shown
    assert "512" in shown


@pytest.mark.usefixtures("result_file")
@pytest.mark.parametrize(
    "name, options, message",
    [
        ("bars", {}, "needs result="),
        ("bars", {"result": "gone"}, "no result file"),
        ("bars", {"result": RESULT_NAME, "metric": "tpot", "by": "prompt_tokens"}, "no row"),
        ("bars", {"result": RESULT_NAME, "metric": "ttft", "by": "batch"}, "has the label 'batch'"),
        ("bars", {"result": RESULT_NAME, "metric": "ttft", "by": "unit"}, "two rows"),
        ("bars", {"colour": "red"}, "has no option colour"),
        ("step-timeline", {"trace": "gone.json"}, "no trace docs/traces/gone.json"),
        ("gone", {}, "known: .*staircase"),
    ],
)
def test_what_is_missing_is_named(
    tmp_path: Path, name: str, options: dict[str, str], message: str
) -> None:
    with pytest.raises(DocsError, match=message):
        registry.draw(name, given(tmp_path, **options), "p")


def test_a_name_is_taken_once() -> None:
    with pytest.raises(AssertionError, match="two figures are called staircase"):
        registry.figure("staircase")(lambda _: "")


@pytest.fixture
def drawn() -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 3))
    ax = figure.subplots()
    ax.plot([1, 2], [3, 4], color=INK)
    ax.set_title("A title", fontweight="bold", color=INK)
    ax.set_clip_on(True)
    return ax


def test_a_drawing_is_the_same_at_every_run(drawn: Any) -> None:
    assert from_matplotlib(drawn) == from_matplotlib(drawn.figure)


def test_a_drawing_inherits_ink_font_and_size(drawn: Any) -> None:
    svg = adapt(from_matplotlib(drawn), "fig3")
    assert svg.startswith("<svg ")
    assert f"var(--folo-ink, {INK})" in svg
    assert "DejaVu" not in svg
    assert "<style" not in svg
    assert "height=" not in svg.partition(">")[0]
    assert "A title" in texts(svg)


def test_ids_of_two_drawings_do_not_meet(drawn: Any) -> None:
    text = from_matplotlib(drawn)
    ids = [
        {node.attrib["id"] for node in parsed(adapt(text, prefix)).iter() if "id" in node.attrib}
        for prefix in ("fig1", "fig2")
    ]
    assert ids[0]
    assert not ids[0] & ids[1]
    svg = adapt(text, "fig1")
    for reference in {part.partition(")")[0] for part in svg.split("url(#")[1:]}:
        assert f'id="{reference}"' in svg


def test_a_font_shorthand_keeps_size_and_weight() -> None:
    svg = adapt("""<svg><text style="font: bold 12px 'X', serif; fill: red">a</text></svg>""", "p")
    assert 'style="font-size: 12px; font-weight: bold; fill: red"' in svg
