"""The kernels compiled: Qwen3-0.6B's layers, every format, CUDA graphs. Skips without a GPU.

The reference is float64 on the CPU's integers, with x as it was rounded. Tolerance: the output is
rounded to its dtype once (half a unit in the last place); sums are float32, and outputs have a
deviation of about sqrt(in) / 2, so cancelling leaves an absolute error that grows with it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.profiling import profile_kernels
from common.results import read_result
from m1_basic.benchmarks.command import bench
from m4_flash.devices import supports_pdl
from m4_flash.tests.op_cases import captured
from m7_gptq.benchmarks import kernels
from m7_gptq.kernels.few_rows import few_rows
from m7_gptq.kernels.gemm import dequantise, gemm
from m7_gptq.kernels.gemv import gemv
from m7_gptq.kernels.held import HeldConfig
from m7_gptq.kernels.lookup import lookup
from m7_gptq.kernels.matmul import Crossover, w4a16_matmul
from m7_gptq.tests.kernel_cases import Order, StoredLayer, activations, stored_layer

pytestmark = pytest.mark.gpu

Product = Callable[..., Tensor]
ALL = pytest.mark.parametrize("product", [gemv, few_rows, gemm])
HELD = pytest.mark.parametrize("product", [gemv, few_rows])
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bfloat16", "float16", "float32"]
)
SHAPES = pytest.mark.parametrize(
    ("outputs", "inputs"), [(4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072)]
)
OWN = [Crossover(16, 0, 0), Crossover(0, 16, 0), Crossover(0, 0, 64)]
"""Each of our kernels in turn."""
RELATIVE = {torch.bfloat16: 2**-8, torch.float16: 2**-10, torch.float32: 1e-5}
ABSOLUTE = 2e-5
"""Times the deviation of the outputs."""


def layer_on_gpu(inputs: int, outputs: int, **options: object) -> StoredLayer:
    return stored_layer(inputs, outputs, device="cuda", **options)  # type: ignore[arg-type]


def assert_product(out: Tensor, x: Tensor, layer: StoredLayer, bias: Tensor | None = None) -> None:
    """Within one rounding of the exact product."""
    expected = x.double() @ layer.dense().double().T
    if bias is not None:
        expected += bias.double()
    atol = ABSOLUTE * float(expected.std())
    torch.testing.assert_close(
        out.double(), expected, rtol=RELATIVE[out.dtype], atol=max(atol, 1e-6)
    )


@DTYPES
@SHAPES
@pytest.mark.parametrize("rows", [1, 4, 9, 16, 17, 100])
def test_qwen3_shapes(outputs: int, inputs: int, rows: int, dtype: torch.dtype) -> None:
    """Groups of 128, as they are served."""
    layer = layer_on_gpu(inputs, outputs, group_size=128, sym=True, form="gptq")
    packed, x = layer.packed(), activations(rows, inputs, dtype).cuda()
    bias = torch.randn(outputs, device="cuda").to(dtype)
    products: list[Product] = [gemm]
    if rows <= 32:
        products += [gemv] if dtype is torch.float32 else [gemv, few_rows]
    for product in products:
        out = product(x, packed, bias)
        assert out.dtype is dtype
        assert_product(out, x, layer, bias)


@ALL
@pytest.mark.parametrize(
    ("group_size", "order"),
    [(16, "plain"), (24, "uneven"), (32, "plain"), (48, "plain"), (64, "act-order"),
     (128, "plain"), (128, "act-order"), (-1, "plain")],
)  # fmt: skip
@pytest.mark.parametrize("bits", [4, 8])
def test_every_format(bits: int, group_size: int, order: Order, product: Product) -> None:
    """Asymmetric, ragged last groups and tiles, outputs that fill no program."""
    layer = layer_on_gpu(1000, 328, bits=bits, group_size=group_size, order=order)
    x = activations(3, 1000, torch.bfloat16).cuda()
    assert_product(product(x, layer.packed()), x, layer)


@DTYPES
@pytest.mark.parametrize("order", ["plain", "act-order"])
@pytest.mark.parametrize("bits", [4, 8])
def test_dequantised_weights_are_equal(bits: int, order: Order, dtype: torch.dtype) -> None:
    layer = layer_on_gpu(1000, 328, bits=bits, group_size=128, order=order)
    assert torch.equal(dequantise(layer.packed(), dtype), layer.dense().to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("rows", [1, 16, 256])
def test_paths_agree_with_the_dense_product(rows: int, dtype: torch.dtype) -> None:
    """The dense path is cuBLAS on the rounded weight, and equals that product bit for bit."""
    layer = layer_on_gpu(1024, 4096, group_size=128)
    packed, x = layer.packed(), activations(rows, 1024, dtype).cuda()
    dense = torch.nn.functional.linear(x, layer.dense().to(dtype))
    assert torch.equal(w4a16_matmul(x, packed, None, Crossover(0, 0, 0)), dense)
    # Here the weights are rounded too, each by up to half a unit: errors add up as a random walk.
    bound = 4 * RELATIVE[dtype] * float(dense.float().std())
    for chosen in (Crossover(16, 0, 0), Crossover(0, 16, 0), Crossover(0, 0, 256)):
        out = w4a16_matmul(x, packed, None, chosen)
        torch.testing.assert_close(out.float(), dense.float(), rtol=2 * RELATIVE[dtype], atol=bound)


@pytest.mark.parametrize("crossover", [*OWN, Crossover(0, 0, 0)], ids=str)
@pytest.mark.parametrize("rows", [1, 16, 64])
def test_replay_in_a_graph(rows: int, crossover: Crossover) -> None:
    """A replay reads what x holds now; with our own kernels it equals an eager call bit for bit."""
    layer = layer_on_gpu(2048, 1024, group_size=128, order="act-order")
    packed, x = layer.packed(), activations(rows, 2048, torch.bfloat16).cuda()
    bias = torch.randn(1024, device="cuda", dtype=torch.bfloat16)
    graph, out = captured(lambda: w4a16_matmul(x, packed, bias, crossover))
    for scale in (1.0, -2.0):
        x.copy_(activations(rows, 2048, torch.bfloat16) * scale)
        graph.replay()
        eager = w4a16_matmul(x, packed, bias, crossover)
        if crossover.path(rows, x.dtype) == "dense":  # cuBLAS may choose another algorithm
            torch.testing.assert_close(out, eager, rtol=2**-7, atol=0.1)
        else:
            assert torch.equal(out, eager)


@ALL
def test_repeated_calls_are_equal(product: Product) -> None:
    """Parts of K are added in one order: no atomics."""
    layer = layer_on_gpu(8192, 64, group_size=128)  # few outputs, so K is cut
    packed, x = layer.packed(), activations(4, 8192, torch.bfloat16).cuda()
    first = product(x, packed)
    assert all(torch.equal(product(x, packed), first) for _ in range(20))


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """Of NaN; the same row in another place gives the same bits."""
    packed = layer_on_gpu(1024, 1024, group_size=128).packed()
    x = activations(4, 1024, torch.bfloat16).cuda()
    for product in (gemv, few_rows, gemm):
        alone = product(x, packed)
        changed = x.clone()
        changed[1:] = float("nan")
        assert torch.equal(product(changed, packed)[0], alone[0])


@ALL
def test_rows_of_a_wider_matrix(product: Product) -> None:
    layer = layer_on_gpu(1000, 64)
    wide = torch.full((3, 1500), float("nan"), device="cuda", dtype=torch.bfloat16)
    x = wide[:, 25:1025]  # neither aligned to 16 bytes nor to the next row
    x.copy_(activations(3, 1000, torch.bfloat16))
    assert_product(product(x, layer.packed()), x, layer)


@HELD
@pytest.mark.parametrize("blocks", [2, 4])
@pytest.mark.parametrize(("warps", "depth"), [(1, 1), (4, 2), (8, 2), (2, 3), (4, 1)])
def test_every_launch(warps: int, depth: int, blocks: int, product: Product) -> None:
    """All of K in registers, or in groups of chunks, the last one whole or not."""
    layer = layer_on_gpu(2048, 512, group_size=128)
    packed, x = layer.packed(), activations(2, 2048, torch.bfloat16).cuda()
    assert_product(product(x, packed, None, HeldConfig(blocks, warps, depth)), x, layer)


@DTYPES
@HELD
@pytest.mark.parametrize(("bits", "order"), [(4, "plain"), (4, "act-order"), (8, "plain")])
@pytest.mark.parametrize("rows", [1, 3, 16])
def test_gated(rows: int, bits: int, order: Order, product: Product, dtype: torch.dtype) -> None:
    """Gate and up of Qwen3-0.6B, against both halves in float64."""
    if product is few_rows and dtype is torch.float32:
        pytest.skip("the tensor cores are not for float32")
    layer = layer_on_gpu(1024, 6144, bits=bits, group_size=128, order=order)
    packed, x = layer.packed(), activations(rows, 1024, dtype).cuda()
    gate, up = (x.double() @ layer.dense().double().T).chunk(2, dim=-1)
    expected = torch.nn.functional.silu(gate) * up
    out = product(x, packed, gated=True)
    # An error of a half is multiplied by the other half, which may be several deviations.
    atol = 16 * ABSOLUTE * float(expected.std())
    torch.testing.assert_close(out.double(), expected, rtol=RELATIVE[dtype], atol=atol)


@pytest.mark.skipif("not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0)")
@pytest.mark.parametrize("crossover", OWN, ids=str)
def test_a_chain_of_early_launches(crossover: Crossover) -> None:
    """Each product reads what the one before writes; in a graph, as a step runs them."""
    weights = [layer_on_gpu(1024, 1024, group_size=128, seed=seed).packed() for seed in range(8)]
    gates = layer_on_gpu(1024, 2048, group_size=128, seed=8).packed()
    start = activations(2, 1024, torch.bfloat16).cuda()
    gating = crossover if crossover.gemm_rows == 0 else Crossover(16, 0, 0)

    def run(pdl: bool) -> Tensor:
        x = start
        for weight in weights:
            x = (w4a16_matmul(x, weight, None, crossover, pdl=pdl) / 16).tanh()
            x = (w4a16_matmul(x, gates, None, gating, gated=True, pdl=pdl) / 64).tanh()
            x = w4a16_matmul(x, weight, None, crossover, pdl=pdl) / 16
        return x

    graph, out = captured(lambda: run(True))
    for scale in (1.0, -0.5):
        start.copy_(activations(2, 1024, torch.bfloat16) * scale)
        plain = run(False)
        for _ in range(20):
            graph.replay()
            assert torch.equal(out, plain)


@SHAPES
@pytest.mark.parametrize("rows", [1, 16])
def test_one_launch_for_few_rows(outputs: int, inputs: int, rows: int) -> None:
    """No second kernel, no copy, no fill in a decode step's layers."""
    packed = layer_on_gpu(inputs, outputs, group_size=128).packed()
    x = activations(rows, inputs, torch.bfloat16).cuda()
    w4a16_matmul(x, packed)  # compiled before it is counted
    assert profile_kernels(lambda: w4a16_matmul(x, packed)).num_kernels == 1


def test_a_large_layer() -> None:
    layer = layer_on_gpu(8192, 8192, group_size=128)
    packed = layer.packed()
    for rows in (1, 4, 32):
        x = activations(rows, 8192, torch.bfloat16).cuda()
        assert_product(w4a16_matmul(x, packed), x, layer)


def test_an_output_head_in_8_bits() -> None:
    layer = layer_on_gpu(1024, 151936, bits=8, group_size=128)
    packed, x = layer.packed(), activations(2, 1024, torch.bfloat16).cuda()
    assert_product(w4a16_matmul(x, packed), x, layer)


@pytest.mark.parametrize("pdl", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("bits", [4, 8])
def test_lookup(bits: int, dtype: torch.dtype, pdl: bool) -> None:
    layer = layer_on_gpu(1000, 328, bits=bits, group_size=128)
    ids = torch.tensor([0, 327, 5, 5], device="cuda")
    pdl = pdl and supports_pdl(ids.device)
    out = lookup(ids, layer.packed(), dtype, pdl=pdl)
    assert torch.equal(out, layer.dense().to(dtype)[ids])


def test_benchmark(tmp_path: Path) -> None:
    command = ["--smoke", "--model", "none", "--device", "cuda", "--out", str(tmp_path)]
    assert bench("m7_gptq", ("kernels",), [*command, "--repeat", "1"]) == 0
    (path,) = tmp_path.glob("*/m7_gptq-kernels.json")
    result = read_result(path)
    early = kernels.EARLY if supports_pdl(torch.device("cuda")) else ()
    assert {row["kernel"] for row in result.select(metric="time", batch=1, graphs=True)} == {
        "cublas", "gemv", "few_rows", "gemm", "dense", "read", *early,
    }  # fmt: skip
    assert all(0 < row["median"] < 0.01 for row in result.select(metric="time"))
