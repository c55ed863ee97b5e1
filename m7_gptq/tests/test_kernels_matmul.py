"""Products with packed weights, interpreted in float32, against the dense weight."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from common.errors import ConfigError
from m7_gptq.kernels import gemm as gemm_module
from m7_gptq.kernels import gemv as gemv_module
from m7_gptq.kernels import matmul, tiles
from m7_gptq.kernels.gemm import GemmConfig, dequantise, gemm
from m7_gptq.kernels.gemv import GemvConfig, gemv
from m7_gptq.kernels.matmul import CROSSOVER, Crossover, w4a16_matmul
from m7_gptq.packing import Format
from m7_gptq.tests.kernel_cases import Order, StoredLayer, activations, stored_layer

Product = Callable[..., Tensor]
BOTH = pytest.mark.parametrize("product", [gemv, gemm])
CASES = [
    # inputs, outputs, bits, group size, form, symmetric, order
    (128, 8, 4, 128, "gptq", True, "plain"),
    (256, 24, 4, -1, "gptq_v2", False, "plain"),
    (152, 8, 4, 16, "gptq", False, "plain"),
    (200, 8, 4, 48, "gptq", False, "plain"),  # groups that end inside a tile, a ragged last one
    (176, 8, 4, 128, "gptq", False, "plain"),  # a ragged last group
    (96, 8, 4, 32, "gptq_v2", False, "act-order"),
    (72, 8, 4, 24, "gptq", False, "uneven"),  # padded groups
    (64, 20, 8, 32, "gptq", True, "plain"),
    (100, 12, 8, 64, "gptq_v2", False, "plain"),
    (68, 4, 8, -1, "gptq", False, "act-order"),
    (80, 4, 8, 16, "gptq_v2", False, "act-order"),
]
LAYERS = pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
Case = tuple[int, int, int, int, Format, bool, Order]


def layer_of(case: Case) -> StoredLayer:
    inputs, outputs, bits, group_size, form, sym, order = case
    return stored_layer(
        inputs, outputs, bits=bits, group_size=group_size, form=form, sym=sym, order=order
    )


def assert_close(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=2e-5)


@BOTH
@LAYERS
def test_equals_the_product_with_the_dense_weight(product: Product, case: Case) -> None:
    layer = layer_of(case)
    x, bias = activations(1, case[0]), torch.randn(case[1])
    assert_close(product(x, layer.packed(), bias), x @ layer.dense().T + bias)


@LAYERS
def test_dequantised_weights_are_equal_bit_for_bit(case: Case) -> None:
    layer = layer_of(case)
    assert torch.equal(dequantise(layer.packed(), torch.float32), layer.dense())


@pytest.mark.parametrize("rows", [1, 2, 5, 16])
@BOTH
def test_rows(product: Product, rows: int) -> None:
    layer, x = stored_layer(72, 8, bits=8), activations(rows, 72)
    assert_close(product(x, layer.packed()), x @ layer.dense().T)


def test_more_rows_than_a_tile() -> None:
    layer, x = stored_layer(136, 24), activations(70, 136)
    packed, expected = layer.packed(), x @ layer.dense().T
    assert_close(gemm(x, packed), expected)
    assert_close(gemm(x, packed, config=GemmConfig(16, 16, 2, 4, 1)), expected)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("splits", [1, 2, 9])
def test_k_cut_between_programs(splits: int, bias: bool) -> None:
    """Of 3 tiles; 2 do not divide them, 9 are more than there are."""
    layer, x = stored_layer(180, 8, bits=8, group_size=64), activations(2, 180)
    added = torch.randn(8) if bias else None
    expected = x @ layer.dense().T + (added if added is not None else 0)
    assert_close(gemm(x, layer.packed(), added, GemmConfig(16, 16, splits, 4, 1)), expected)


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize(("warps", "depth"), [(1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (1, 8)])
@pytest.mark.parametrize("order", ["plain", "act-order"])
def test_every_shape_of_a_program(order: Order, warps: int, depth: int, blocks: int) -> None:
    """Of 5 tiles and 20 outputs: one group of chunks or several, the last one whole or not."""
    layer = stored_layer(300, 20, bits=8, group_size=64, order=order)
    x, bias = activations(2, 300), torch.randn(20)
    config = GemvConfig(blocks, warps, depth)
    assert_close(gemv(x, layer.packed(), bias, config), x @ layer.dense().T + bias)


@pytest.mark.parametrize("group_size", [16, 32, 48, 64, 128, -1])
def test_groups_of_a_deep_weight(group_size: int) -> None:
    """7 tiles of 128: parts of a tile, across tiles, and all of it, in two groups of chunks."""
    layer, x = stored_layer(848, 8, group_size=group_size), activations(1, 848)
    config = GemvConfig(1, 2, 2)
    assert_close(gemv(x, layer.packed(), None, config), x @ layer.dense().T)


def gated(y: Tensor) -> Tensor:
    """``silu(gate) · up`` in two steps."""
    gate, up = y.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("case", CASES[:3] + CASES[5:8], ids=lambda case: "-".join(map(str, case)))
def test_gated_equals_two_steps(case: Case, rows: int, bias: bool) -> None:
    """Halves of 4 to 12 outputs: not a whole number of programs."""
    layer, x = layer_of(case), activations(rows, case[0])
    added = torch.randn(case[1]) if bias else None
    expected = gated(x @ layer.dense().T + (added if added is not None else 0))
    out = gemv(x, layer.packed(), added, gated=True)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def test_gated_over_several_groups_of_chunks() -> None:
    layer, x = stored_layer(300, 40, bits=8, group_size=64), activations(1, 300)
    out = gemv(x, layer.packed(), None, GemvConfig(2, 2, 2), gated=True)
    torch.testing.assert_close(out, gated(x @ layer.dense().T), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("outputs", "config"), [(20, GemvConfig(1, 1, 1)), (4, None)])
def test_gated_needs_two_blocks(outputs: int, config: GemvConfig | None) -> None:
    packed = stored_layer(64, outputs, bits=8).packed()
    if config is None:  # two halves of 2 outputs are fine
        assert gemv(activations(1, 64), packed, gated=True).shape == (1, 2)
    else:
        with pytest.raises(AssertionError, match="blocks=1"):
            gemv(activations(1, 64), packed, None, config, gated=True)


@BOTH
def test_early_launches_are_asked_for(product: Product, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every kernel, the sum over parts of K too. The interpreter has none to make."""
    asked: list[bool] = []

    def options(pdl: bool) -> dict[str, bool]:
        asked.append(pdl)
        return {}

    for module in (gemv_module, gemm_module, tiles):
        monkeypatch.setattr(module, "launch_options", options)
    layer, x = stored_layer(512, 8), activations(2, 512)
    product(x, layer.packed())
    assert asked == [False] * (1 if product is gemv else 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_scales_of_other_types_and_half_precision(dtype: torch.dtype) -> None:
    """The result is rounded to x's dtype once."""
    layer = stored_layer(128, 8, group_size=128, scale_dtype=torch.float32)
    x = activations(2, 128, dtype)
    expected = (x.double() @ layer.dense().double().T).to(dtype)
    bound = 2e-3 if dtype is torch.float16 else 1e-5
    for product in (gemv, gemm):
        out = product(x, layer.packed())
        assert out.dtype is dtype
        torch.testing.assert_close(out, expected, rtol=bound, atol=bound)


@BOTH
def test_rows_with_a_stride(product: Product) -> None:
    """Columns of a wider matrix, whose neighbours must not be read."""
    layer, wide = stored_layer(72, 8), torch.full((3, 200), float("nan"))
    x = wide[:, 40:112]
    x.copy_(activations(3, 72))
    assert_close(product(x, layer.packed()), x @ layer.dense().T)


@BOTH
def test_padding_is_not_multiplied(product: Product) -> None:
    """Beyond the last input lies what belongs to others, NaN here; 0 · NaN would show."""
    layer, flat = stored_layer(72, 8, group_size=24), torch.full((400,), float("nan"))
    x = flat[:72].view(1, 72)
    x.copy_(activations(1, 72))
    assert_close(product(x, layer.packed()), x @ layer.dense().T)


class TestChoice:
    def test_by_rows(self) -> None:
        chosen = Crossover(gemv_rows=2, gemm_rows=5)
        assert [chosen.path(rows) for rows in (1, 2, 3, 5, 6)] == [
            "gemv", "gemv", "gemm", "gemm", "dense",
        ]  # fmt: skip
        without = Crossover(gemv_rows=0, gemm_rows=0)
        assert without.path(1) == "dense"
        assert Crossover(gemv_rows=4, gemm_rows=0).path(4) == "gemv"

    @pytest.mark.parametrize(("gemv_rows", "gemm_rows"), [(17, 20), (-1, 20), (1, -1)])
    def test_ranges(self, gemv_rows: int, gemm_rows: int) -> None:
        with pytest.raises(ConfigError, match=r"must be .* got"):
            Crossover(gemv_rows, gemm_rows)

    @pytest.mark.parametrize("rows", [1, 2, 3, 5, 6, 17])
    def test_every_path_computes_the_same(self, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[str] = []

        def spy(name: str) -> Product:
            real: Product = getattr(matmul, name)

            def call(*args: object, **options: object) -> Tensor:
                seen.append(name)
                return real(*args, **options)

            return call

        for name in ("gemv", "gemm", "dequantise"):
            monkeypatch.setattr(matmul, name, spy(name))
        layer, x = stored_layer(96, 8, order="act-order"), activations(rows, 96)
        crossover = Crossover(gemv_rows=2, gemm_rows=5)
        out = w4a16_matmul(x, layer.packed(), torch.ones(8), crossover)
        assert_close(out, x @ layer.dense().T + 1)
        assert seen == ["gemv" if rows <= 2 else "gemm" if rows <= 5 else "dequantise"]

    def test_both_widths_have_a_choice(self) -> None:
        for bits in (4, 8):
            layer, x = stored_layer(64, 8, bits=bits), activations(1, 64)
            assert_close(w4a16_matmul(x, layer.packed()), x @ layer.dense().T)
        assert set(CROSSOVER) == {4, 8}


class TestShapes:
    @pytest.mark.parametrize("lead", [(), (3,), (2, 3), (0,), (2, 0)], ids=str)
    def test_any_leading_shape(self, lead: tuple[int, ...]) -> None:
        layer, x = stored_layer(64, 8, bits=8), torch.randn(*lead, 64)
        out = w4a16_matmul(x, layer.packed())
        assert out.shape == (*lead, 8)
        assert_close(out, x @ layer.dense().T)

    def test_inputs_that_are_not_adjacent(self) -> None:
        layer, x = stored_layer(64, 8), torch.randn(64, 3).T
        assert_close(w4a16_matmul(x, layer.packed()), x @ layer.dense().T)

    @BOTH
    def test_another_width_is_our_mistake(self, product: Product) -> None:
        with pytest.raises(AssertionError):
            product(torch.zeros(1, 72), stored_layer(64, 8).packed())

    @pytest.mark.parametrize("rows", [0, 17])
    def test_a_gemv_takes_1_to_16_rows(self, rows: int) -> None:
        with pytest.raises(AssertionError, match=str(rows)):
            gemv(torch.zeros(rows, 64), stored_layer(64, 8).packed())


class TestLaunches:
    """Launches depend on shapes, and fill 132 multiprocessors."""

    @pytest.mark.parametrize(
        ("outputs", "tiles", "gated", "expected"),
        [(4096, 8, False, (1, 4, 2)), (1024, 16, False, (1, 8, 2)), (6144, 8, False, (1, 4, 2)),
         (6144, 8, True, (2, 4, 2)), (1024, 24, False, (1, 8, 3)), (8192, 64, False, (2, 4, 4)),
         (151936, 16, False, (2, 4, 4)), (1024, 112, False, (1, 8, 7)), (64, 1, False, (1, 1, 1)),
         (64, 3, False, (1, 4, 1))],
    )  # fmt: skip
    def test_one_row(
        self, outputs: int, tiles: int, gated: bool, expected: tuple[int, int, int]
    ) -> None:
        """At most 8 reads of a thread in flight, in groups of one size."""
        config = gemv_module.default_config(1, outputs, tiles, 132, gated=gated)
        assert config == GemvConfig(*expected)

    def test_many_sums_leave_one_block(self) -> None:
        blocks = [gemv_module.default_config(rows, 65536, 64, 132).blocks for rows in (2, 3)]
        assert blocks == [2, 1]

    @pytest.mark.parametrize(("rows", "depth"), [(1, 8), (2, 4), (4, 2), (8, 1), (16, 1)])
    def test_many_rows_take_fewer_chunks_at_a_time(self, rows: int, depth: int) -> None:
        assert gemv_module.default_config(rows, 1024, 64, 132).depth == depth

    @pytest.mark.parametrize(
        ("rows", "outputs", "tiles", "block_m", "splits"),
        [(2, 1024, 8, 16, 4), (17, 4096, 8, 32, 4), (64, 1024, 24, 64, 12), (256, 8192, 64, 64, 1),
         (1, 64, 1, 16, 1)],
    )  # fmt: skip
    def test_many_rows(
        self, rows: int, outputs: int, tiles: int, block_m: int, splits: int
    ) -> None:
        config = gemm_module.default_config(rows, outputs, tiles, 132)
        assert (config.block_m, config.splits) == (block_m, splits)

    @pytest.mark.parametrize("values", [(4, 8, 1), (0, 8, 1), (1, 6, 1), (1, 64, 1), (1, 8, 0)])
    def test_gemv_ranges(self, values: tuple[int, int, int]) -> None:
        with pytest.raises(ConfigError, match=r"must be .* got"):
            GemvConfig(*values)

    @pytest.mark.parametrize(
        "values", [(8, 16, 1, 4, 1), (64, 24, 1, 4, 1), (64, 16, 0, 4, 1), (64, 16, 1, 4, 0)]
    )
    def test_gemm_ranges(self, values: tuple[int, int, int, int, int]) -> None:
        with pytest.raises(ConfigError, match=r"must be .* got"):
            GemmConfig(*values)
