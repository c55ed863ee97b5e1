from __future__ import annotations

from pathlib import Path

import pytest

from m3_paged.kv_cache_manager import KVCacheManager as PagedManager
from m6_prefix.kv_cache_manager import KVCacheManager
from tools.docs_build.results import Results
from tools.figures import registry
from tools.figures.prefix_caching import eviction_states, named_blocks, speedup
from tools.figures.prefix_turns import Turn, chat, chat_lines, same_step_lines


def drawn(name: str) -> str:
    root = Path()
    return registry.draw(name, registry.FigureInput(root, Results(root), {}, {}), "p")


def test_a_turn_computes_what_the_turn_before_left() -> None:
    """640 + 119 tokens have K and V after turn 1: 47 whole blocks are found in turn 2."""
    assert chat(KVCacheManager(128, 16), 2) == [Turn(640, 0, 640), Turn(800, 752, 48)]
    assert chat(PagedManager(128, 16), 2) == [Turn(640, 0, 640), Turn(800, 0, 800)]
    assert chat_lines()[2].split() == ["turn", "2", "800", "800", "752", "48"]


def test_the_chat_shows_both_sums() -> None:
    svg = drawn("m6-chat")
    assert f"M5: {sum(640 + 160 * turn for turn in range(6)):,} prompt tokens computed" in svg
    assert f"M6: {640 + 5 * 48} prompt tokens computed" in svg


def test_two_equal_prompts_of_a_step() -> None:
    assert same_step_lines() == [
        "sequence 0: tokens 0 to 39",
        "sequence 1: tokens 32 to 39",
        "blocks of 0: alloc 0, alloc 1, alloc 2, cache 0, cache 1",
        "blocks of 1: hit 0, hit 1, alloc 3",
    ]


def test_names_depend_on_all_that_comes_before() -> None:
    shared, behind, again = named_blocks([([1] * 4 + [2] * 4, ()), ([3] * 4 + [2] * 4, ()),
                                          ([1] * 4 + [2] * 5, ())], 4)  # fmt: skip
    assert len({block.name for block in (*shared, *behind)}) == 4
    assert [block.hit for block in again] == [True, True, False]
    assert [block.name for block in again] == [*(block.name for block in shared), ""]


def test_the_last_block_of_a_cached_prompt_is_no_hit() -> None:
    first, second = named_blocks([([1] * 8, ()), ([1] * 8, ())], 4)
    assert [block.hit for block in second] == [True, False]
    assert [block.name for block in first] == [block.name for block in second]


def test_a_hue_stands_for_one_hash() -> None:
    """The figure has as many full blocks as there are hues, so none means two things."""
    svg = drawn("m6-names")
    assert svg.count(", hit<") == 6
    assert svg.count("not full: no name") == 1


def test_the_tail_of_the_oldest_goes_first_and_the_hit_last() -> None:
    assert eviction_states()[2:] == [
        ("B ends", ["6", "7"], ["A2·2", "A1·1", "A0·0", "B2·5", "B1·4", "B0·3"]),
        ("C runs, hits A0", ["7"], ["A2·2", "A1·1", "B2·5", "B1·4", "B0·3"]),
        ("C ends", ["6", "7"], ["A2·2", "A1·1", "B2·5", "B1·4", "B0·3", "A0·0"]),
        ("D takes 5 blocks", [], ["B1·4", "B0·3", "A0·0"]),
    ]
    assert "A0·0" in drawn("m6-eviction")


@pytest.mark.parametrize(
    ("fixed", "hit", "gain"), [(0.0, 0.5, 2.0), (0.0, 0.8, 5.0), (1.0, 0.5, 4 / 3), (2.0, 1.0, 1.5)]
)
def test_what_a_hit_is_worth(fixed: float, hit: float, gain: float) -> None:
    assert speedup(fixed, hit) == pytest.approx(gain)


def test_the_model_draws() -> None:
    assert drawn("m6-ttft-model").startswith("<svg ")
