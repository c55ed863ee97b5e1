from __future__ import annotations

import math
from pathlib import Path

import pytest

from tools.docs_build.results import Results
from tools.figures import registry
from tools.figures.flash_attention import deal, online_softmax
from tools.figures.launches import OTHERS, PRODUCTS, count_launches


def drawn(name: str) -> str:
    root = Path()
    return registry.draw(name, registry.FigureInput(root, Results(root), {}, {}), "p")


@pytest.mark.parametrize("name", ["m4-tiles", "m4-score-bytes"])
def test_figures_without_data_draw(name: str) -> None:
    assert drawn(name).startswith("<svg ")


@pytest.mark.parametrize("tile", [1, 2, 3, 8])
def test_the_online_softmax_is_the_softmax(tile: int) -> None:
    scores, values = (1.0, 2.0, 0.0, 1.0, 4.0, 3.0, 2.0, 4.0), tuple(map(float, range(1, 9)))
    weights = [math.exp(score) for score in scores]
    expected = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    steps = online_softmax(scores, values, tile)
    assert len(steps) == -(-8 // tile)
    assert steps[-1].m == 4.0
    assert steps[-1].acc / steps[-1].total == pytest.approx(expected)


def test_a_larger_maximum_rescales_what_is_there() -> None:
    first, second = online_softmax((0.0, 1.0), (1.0, 1.0), 1)
    assert (first.m, first.total, first.acc) == (0.0, 1.0, 1.0)
    assert second.rescale == pytest.approx(math.exp(-1))
    assert second.total == pytest.approx(1 + math.exp(-1))


def test_the_table_ends_with_the_softmax() -> None:
    assert "O / l = 6.069" in drawn("m4-online-softmax")


def test_places_are_dealt_as_the_kernel_says() -> None:
    """The example of ``m4_flash/kernels/decode.py``: 13 of 16 places taken."""
    parts = deal((40, 3, 2, 3), 4)
    assert [len(part) for part in parts] == [10, 1, 1, 1]
    assert [sum(part) for part in parts] == [40, 3, 2, 3]
    assert deal((3, 3, 3), 2) == [[3], [3], [3]]


def test_the_longest_program_is_named() -> None:
    svg = drawn("m4-split-decode")
    assert "longest: 40" in svg
    assert "longest: 4<" in svg


def test_a_fused_layer_is_ten_launches() -> None:
    """Two norms, four products, QK-norm with RoPE and store, decode, merge, activation."""
    counts = count_launches(fused=True)
    assert counts[PRODUCTS] == 28 * 4 + 1
    assert counts[OTHERS] == 28 * 6 + 3  # and the embedding, the rope table's rows, the final norm
    plain = count_launches(fused=False)
    assert plain[PRODUCTS] == counts[PRODUCTS]
    assert plain[OTHERS] > 2 * counts[OTHERS]
    assert f">{sum(plain.values())}<" in drawn("m4-launches")
