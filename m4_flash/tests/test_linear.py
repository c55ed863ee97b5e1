"""Products of a few rows: the same numbers, by another way, and only where it was measured."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from common.model.linear import DenseLinear, TiedHead
from common.step_profiler import read_bytes
from common.testing.conformance import GREEDY, build, ids_of
from common.testing.fixtures import NEW_TOKENS, TinyModel
from m4_flash import linear
from m4_flash.assembly import make_linear, suits_small_batches
from m4_flash.linear import (
    MAX_ROWS,
    SmallBatchHead,
    SmallBatchLinear,
    can_pack,
    few_rows,
    pack,
    product,
)

CPU = torch.device("cpu")
needs_packing = pytest.mark.skipif(not can_pack(), reason="no oneDNN for this processor")


@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (MAX_ROWS,), (MAX_ROWS + 1,), (0,), (2, 2)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=needs_packing)])
def test_equals_the_plain_product(shape: tuple[int, ...], bias: bool, packed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, 24, generator=generator)
    weight = torch.randn(40, 24, generator=generator)
    b = torch.randn(40, generator=generator) if bias else None
    ours = product(x, pack(weight) if packed else weight, b)
    assert ours.is_contiguous()
    torch.testing.assert_close(ours, F.linear(x, weight, b), rtol=1e-5, atol=1e-5)


def test_strided_rows_and_no_change_of_the_input() -> None:
    wide = torch.randn(3, 48, generator=torch.Generator().manual_seed(1))
    rows, before = wide[:, ::2], wide.clone()
    weight = torch.randn(8, 24, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(few_rows(rows, weight), rows @ weight.t(), rtol=1e-5, atol=1e-5)
    assert wide.equal(before)


def test_only_where_it_was_measured() -> None:
    assert suits_small_batches(torch.float32, CPU)
    assert not suits_small_batches(torch.bfloat16, CPU)
    assert not suits_small_batches(torch.float32, torch.device("cuda"))
    factory = make_linear(None, torch.bfloat16, CPU)  # type: ignore[arg-type]
    assert type(factory("a", 4, (8,), False, False)) is DenseLinear


@needs_packing
def test_packed_rows_may_be_strided() -> None:
    wide = torch.randn(40, 48, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(8, 24, generator=torch.Generator().manual_seed(2))
    rows = wide[:, ::2]
    torch.testing.assert_close(
        product(rows, pack(weight), None), rows @ weight.t(), rtol=1e-5, atol=1e-5
    )


@needs_packing
def test_packed_matrices_replace_the_plain_ones(tiny: TinyModel) -> None:
    """Only a tied head costs memory; the embedding stays as it was."""
    packed = build("m4_flash", tiny, num_blocks=64).model
    plain = build("m4_flash", tiny, num_blocks=64, linear_backend="torch").model
    layer = packed.get_submodule("layers.0.mlp.down")
    assert layer.weight.is_mkldnn
    assert layer.weight.to_dense().equal(plain.get_submodule("layers.0.mlp.down").weight)
    assert packed.embed_tokens.weight.equal(plain.embed_tokens.weight)
    copied = plain.embed_tokens.weight.nbytes if plain.config.tie_word_embeddings else 0
    assert packed.weight_bytes() == plain.weight_bytes() + copied
    assert read_bytes(packed) == read_bytes(plain)


def test_without_packing_few_rows_are_turned(
    tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "can_pack", lambda: False)
    engine = build("m4_flash", tiny, num_blocks=64)
    assert type(engine.model.lm_head) is SmallBatchHead
    assert not engine.model.lm_head.weight.is_mkldnn
    expected = [[tuple(tiny.oracle.greedy(tiny.prompts[1], NEW_TOKENS))]]
    assert ids_of(engine.generate(tiny.prompts[1:2], GREEDY)) == expected


def test_the_engine_uses_it_unless_told_otherwise(tiny: TinyModel) -> None:
    """Both ways give transformers' ids, alone (one row) and together (four)."""
    expected = [[tuple(tiny.oracle.greedy(prompt, NEW_TOKENS))] for prompt in tiny.prompts]
    for backend, layer, head in (
        ("auto", SmallBatchLinear, SmallBatchHead), ("torch", DenseLinear, TiedHead),
    ):  # fmt: skip
        engine = build("m4_flash", tiny, num_blocks=64, linear_backend=backend)
        assert type(engine.model.get_submodule("layers.0.mlp.down")) is layer
        tied = engine.model.config.tie_word_embeddings
        assert type(engine.model.lm_head) is (head if tied else layer)
        assert ids_of(engine.generate(tiny.prompts, GREEDY)) == expected
        assert ids_of(engine.generate(tiny.prompts[1:2], GREEDY)) == expected[1:2]
