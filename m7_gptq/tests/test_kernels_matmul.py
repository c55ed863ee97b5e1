"""Products with packed weights, interpreted in float32, against the dense weight."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from common.errors import ConfigError
from m7_gptq.kernels import few_rows as few_rows_module
from m7_gptq.kernels import gemm as gemm_module
from m7_gptq.kernels import gemv as gemv_module
from m7_gptq.kernels import held, matmul, tiles
from m7_gptq.kernels.few_rows import few_rows
from m7_gptq.kernels.gemm import GemmConfig, dequantise, gemm
from m7_gptq.kernels.gemv import gemv
from m7_gptq.kernels.held import HeldConfig
from m7_gptq.kernels.matmul import CROSSOVER, Crossover, can_gate, w4a16_matmul
from m7_gptq.packing import Format
from m7_gptq.tests.kernel_cases import Order, StoredLayer, activations, stored_layer

Product = Callable[..., Tensor]
ALL = pytest.mark.parametrize("product", [gemv, few_rows, gemm])
HELD = pytest.mark.parametrize("product", [gemv, few_rows])
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


@ALL
@LAYERS
def test_equals_the_product_with_the_dense_weight(product: Product, case: Case) -> None:
    layer = layer_of(case)
    x, bias = activations(1, case[0]), torch.randn(case[1])
    assert_close(product(x, layer.packed(), bias), x @ layer.dense().T + bias)


@LAYERS
def test_dequantised_weights_are_equal_bit_for_bit(case: Case) -> None:
    layer = layer_of(case)
    assert torch.equal(dequantise(layer.packed(), torch.float32), layer.dense())


@pytest.mark.parametrize("rows", [1, 2, 5, 9, 16, 32])
@ALL
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


@HELD
@pytest.mark.parametrize("blocks", [1, 2, 4])
@pytest.mark.parametrize(("warps", "depth"), [(1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (1, 8)])
@pytest.mark.parametrize("order", ["plain", "act-order"])
def test_every_shape_of_a_program(
    order: Order, warps: int, depth: int, blocks: int, product: Product
) -> None:
    """Of 5 tiles and 20 outputs: one group of chunks or several, the last one whole or not."""
    layer = stored_layer(300, 20, bits=8, group_size=64, order=order)
    x, bias = activations(2, 300), torch.randn(20)
    config = HeldConfig(blocks, warps, depth)
    if product is few_rows and blocks == 1:  # a tensor core takes 16 outputs
        with pytest.raises(AssertionError, match="blocks=1"):
            few_rows(x, layer.packed(), bias, config)
        return
    assert_close(product(x, layer.packed(), bias, config), x @ layer.dense().T + bias)


@HELD
@pytest.mark.parametrize("group_size", [16, 32, 48, 64, 128, -1])
@pytest.mark.parametrize("bits", [4, 8])
def test_groups_of_a_deep_weight(bits: int, group_size: int, product: Product) -> None:
    """7 or 14 tiles: parts of a tile, across tiles, and all of it, in groups of chunks."""
    layer, x = stored_layer(848, 8, bits=bits, group_size=group_size), activations(1, 848)
    config = HeldConfig(2, 2, 2)
    assert_close(product(x, layer.packed(), None, config), x @ layer.dense().T)


def gated(y: Tensor) -> Tensor:
    """``silu(gate) · up`` in two steps."""
    gate, up = y.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("case", CASES[:3] + CASES[5:8], ids=lambda case: "-".join(map(str, case)))
@HELD
def test_gated_equals_two_steps(product: Product, case: Case, rows: int, bias: bool) -> None:
    """Halves of 4 to 12 outputs: not a whole number of programs."""
    layer, x = layer_of(case), activations(rows, case[0])
    added = torch.randn(case[1]) if bias else None
    expected = gated(x @ layer.dense().T + (added if added is not None else 0))
    out = product(x, layer.packed(), added, gated=True)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


@HELD
@pytest.mark.parametrize("blocks", [2, 4])
def test_gated_over_several_groups_of_chunks(blocks: int, product: Product) -> None:
    layer, x = stored_layer(300, 40, bits=8, group_size=64), activations(3, 300)
    out = product(x, layer.packed(), None, HeldConfig(blocks, 2, 2), gated=True)
    torch.testing.assert_close(out, gated(x @ layer.dense().T), rtol=1e-4, atol=1e-4)


@HELD
def test_gated_needs_both_halves(product: Product) -> None:
    packed = stored_layer(64, 20, bits=8).packed()
    with pytest.raises(AssertionError, match="blocks=1"):
        product(activations(1, 64), packed, None, HeldConfig(1, 1, 1), gated=True)
    two_of_two = stored_layer(64, 4, bits=8).packed()
    assert product(activations(1, 64), two_of_two, gated=True).shape == (1, 2)


@ALL
def test_early_launches_are_asked_for(product: Product, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every kernel, the sum over parts of K too. The interpreter has none to make."""
    asked: list[bool] = []

    def options(pdl: bool) -> dict[str, bool]:
        asked.append(pdl)
        return {}

    for module in (held, gemm_module, tiles):
        monkeypatch.setattr(module, "launch_options", options)
    layer, x = stored_layer(512, 8), activations(2, 512)
    product(x, layer.packed())
    assert asked == [False] * (2 if product is gemm else 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_scales_of_other_types_and_half_precision(dtype: torch.dtype) -> None:
    """The result is rounded to x's dtype once."""
    layer = stored_layer(128, 8, group_size=128, scale_dtype=torch.float32)
    x = activations(2, 128, dtype)
    expected = (x.double() @ layer.dense().double().T).to(dtype)
    bound = 2e-3 if dtype is torch.float16 else 1e-5
    for product in (gemv, few_rows, gemm):
        out = product(x, layer.packed())
        assert out.dtype is dtype
        torch.testing.assert_close(out, expected, rtol=bound, atol=bound)


@ALL
def test_rows_with_a_stride(product: Product) -> None:
    """Columns of a wider matrix, whose neighbours must not be read."""
    layer, wide = stored_layer(72, 8), torch.full((3, 200), float("nan"))
    x = wide[:, 40:112]
    x.copy_(activations(3, 72))
    assert_close(product(x, layer.packed()), x @ layer.dense().T)


@ALL
def test_padding_is_not_multiplied(product: Product) -> None:
    """Beyond the last input lies what belongs to others, NaN here; 0 · NaN would show."""
    layer, flat = stored_layer(72, 8, group_size=24), torch.full((400,), float("nan"))
    x = flat[:72].view(1, 72)
    x.copy_(activations(1, 72))
    assert_close(product(x, layer.packed()), x @ layer.dense().T)


class TestChoice:
    def test_by_rows(self) -> None:
        chosen = Crossover(gemv_rows=1, few_rows=3, gemm_rows=5)
        assert [chosen.path(rows, torch.bfloat16) for rows in (1, 2, 3, 4, 5, 6)] == [
            "gemv", "few_rows", "few_rows", "gemm", "gemm", "dense",
        ]  # fmt: skip
        assert Crossover(0, 0, 0).path(1, torch.bfloat16) == "dense"
        assert Crossover(4, 2, 0).path(4, torch.bfloat16) == "gemv"
        assert Crossover(0, 4, 0).path(1, torch.float16) == "few_rows"

    def test_float32_is_not_rounded_for_the_tensor_cores(self) -> None:
        chosen = Crossover(1, 3, 5)
        assert [chosen.path(rows, torch.float32) for rows in (1, 2, 3, 4)] == [
            "gemv", "gemv", "gemv", "gemm",
        ]  # fmt: skip

    def test_one_row_of_a_large_weight(self) -> None:
        chosen = Crossover(1, 3, 5)
        assert chosen.path(1, torch.bfloat16, matmul.LARGE - 1) == "gemv"
        assert chosen.path(1, torch.bfloat16, matmul.LARGE) == "few_rows"
        assert chosen.path(1, torch.float32, matmul.LARGE) == "gemv"
        assert Crossover(1, 0, 5).path(1, torch.bfloat16, matmul.LARGE) == "gemv"

    @pytest.mark.parametrize("values", [(33, 16, 20), (-1, 16, 20), (1, 33, 20), (1, 16, -1)])
    def test_ranges(self, values: tuple[int, int, int]) -> None:
        with pytest.raises(ConfigError, match=r"must be .* got"):
            Crossover(*values)

    @pytest.mark.parametrize("rows", [1, 2, 3, 5, 6, 17])
    def test_every_path_computes_the_same(self, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[str] = []

        def spy(name: str) -> Product:
            real: Product = getattr(matmul, name)

            def call(*args: object, **options: object) -> Tensor:
                seen.append(name)
                return real(*args, **options)

            return call

        for name in ("gemv", "few_rows", "gemm", "dequantise"):
            monkeypatch.setattr(matmul, name, spy(name))
        layer, x = stored_layer(96, 8, order="act-order"), activations(rows, 96, torch.float16)
        out = w4a16_matmul(x, layer.packed(), torch.ones(8), Crossover(1, 2, 5))
        expected = x.float() @ layer.dense().T + 1
        torch.testing.assert_close(out.float(), expected, rtol=4e-3, atol=4e-3)
        path = {1: "gemv", 2: "few_rows", 3: "gemm", 5: "gemm"}.get(rows, "dequantise")
        assert seen == [path]

    def test_which_rows_can_be_gated(self) -> None:
        chosen = Crossover(1, 2, 5)
        can = [can_gate(rows, 4, torch.bfloat16, chosen) for rows in range(5)]
        assert can == [False, True, True, False, False]
        layer, x = stored_layer(64, 8), activations(3, 64, torch.float16)
        assert w4a16_matmul(x[:2], layer.packed(), None, chosen, gated=True).shape == (2, 4)
        with pytest.raises(AssertionError, match="3"):
            w4a16_matmul(x, layer.packed(), None, chosen, gated=True)

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

    @ALL
    def test_another_width_is_our_mistake(self, product: Product) -> None:
        with pytest.raises(AssertionError):
            product(torch.zeros(1, 72), stored_layer(64, 8).packed())

    @pytest.mark.parametrize("rows", [0, 33])
    def test_the_tensor_cores_take_1_to_32_rows(self, rows: int) -> None:
        with pytest.raises(AssertionError, match=str(rows)):
            few_rows(torch.zeros(rows, 64), stored_layer(64, 8).packed())


class TestLaunches:
    """Launches depend on shapes, and fill 132 multiprocessors."""

    @pytest.mark.parametrize(
        ("tiles", "bits", "expected"),
        [(8, 4, (2, 8, 1)), (16, 4, (2, 8, 2)), (24, 4, (2, 8, 3)), (64, 4, (2, 8, 2)),
         (16, 8, (2, 8, 2)), (112, 4, (2, 8, 2)), (1, 4, (2, 1, 1)), (3, 4, (2, 4, 1))],
    )  # fmt: skip
    def test_one_row(self, tiles: int, bits: int, expected: tuple[int, int, int]) -> None:
        """As many chunks as registers hold, in groups of one size."""
        assert gemv_module.default_config(tiles, bits) == HeldConfig(*expected)

    @pytest.mark.parametrize(
        ("outputs", "tiles", "bits", "expected"),
        [(4096, 8, 4, (4, 4, 2)), (1024, 16, 4, (2, 4, 4)), (6144, 8, 4, (4, 4, 2)),
         (1024, 24, 4, (2, 8, 3)), (8192, 64, 4, (4, 4, 2)), (151936, 16, 8, (2, 2, 1)),
         (64, 1, 4, (2, 1, 1))],
    )  # fmt: skip
    def test_few_rows(
        self, outputs: int, tiles: int, bits: int, expected: tuple[int, int, int]
    ) -> None:
        """All of K at once if 4 or 8 warps can; many small programs for very many outputs."""
        assert few_rows_module.default_config(outputs, tiles, bits, 132) == HeldConfig(*expected)

    @pytest.mark.parametrize(
        ("rows", "outputs", "tiles", "block_m", "splits"),
        [(2, 1024, 8, 16, 4), (17, 4096, 8, 32, 4), (64, 1024, 24, 64, 12), (256, 8192, 64, 64, 1),
         (64, 6144, 24, 64, 5), (1, 64, 1, 16, 1)],
    )  # fmt: skip
    def test_many_rows(
        self, rows: int, outputs: int, tiles: int, block_m: int, splits: int
    ) -> None:
        config = gemm_module.default_config(rows, outputs, tiles, 132)
        assert (config.block_m, config.splits) == (block_m, splits)

    @pytest.mark.parametrize("values", [(16, 8, 1), (0, 8, 1), (1, 6, 1), (1, 64, 1), (1, 8, 0)])
    def test_held_ranges(self, values: tuple[int, int, int]) -> None:
        with pytest.raises(ConfigError, match=r"must be .* got"):
            HeldConfig(*values)

    @pytest.mark.parametrize(
        "values", [(8, 16, 1, 4, 1), (64, 24, 1, 4, 1), (64, 16, 0, 4, 1), (64, 16, 1, 4, 0)]
    )
    def test_gemm_ranges(self, values: tuple[int, int, int, int, int]) -> None:
        with pytest.raises(ConfigError, match=r"must be .* got"):
            GemmConfig(*values)
