"""Products of few rows and programmatic launches, compiled. Skips itself without a GPU."""

from __future__ import annotations

import random as stdlib_random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.request import SamplingParams
from common.testing.conformance import build, ids_of
from common.testing.fixtures import TinyModel
from m4_flash.devices import supports_pdl
from m4_flash.tests.op_cases import captured

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
QWEN3 = [(4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072)]
ODD = [(1000, 1100), (24, 64), (136, 4096)]
# Relative, of the whole result: rounding of the output, and of the products' sum.
BOUND = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 5e-4}


def random(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).cuda()


def distance(ours: Tensor, exact: Tensor) -> float:
    return float((ours.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("pdl", [False, True])
@pytest.mark.parametrize("dtype", list(BOUND), ids=str)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 16])
@pytest.mark.parametrize(("outputs", "inputs"), QWEN3 + ODD)
def test_equals_the_exact_product(
    outputs: int, inputs: int, rows: int, dtype: torch.dtype, pdl: bool
) -> None:
    from m4_flash.kernels.gemv import gemv

    x, weight = random(rows, inputs, dtype=dtype), random(outputs, inputs, dtype=dtype, seed=1)
    bias = random(outputs, dtype=dtype, seed=2)
    exact = F.linear(x.double(), weight.double(), bias.double())
    pdl = pdl and supports_pdl(CUDA)
    assert distance(gemv(x, weight, bias, pdl=pdl), exact) < BOUND[dtype]
    gate, up = exact.chunk(2, dim=-1)
    gated = gemv(x, weight, bias, gated=True, pdl=pdl)
    assert distance(gated, F.silu(gate) * up) < 2 * BOUND[dtype]


def test_a_chain_of_programmatic_launches_is_no_race() -> None:
    """A layer's kernels in a graph, many times over, on inputs that change in between."""
    from m4_flash.kernels.gemv import gemv
    from m4_flash.kernels.norm import add_rms_norm

    weights = [random(1024, 1024, seed=i) / 32 for i in range(16)]
    norm = random(1024, seed=99)
    x, residual = random(2, 1024), random(2, 1024, seed=1)

    def chain(pdl: bool) -> Tensor:
        a, b = x, residual
        for weight in weights:
            a, b = add_rms_norm(a, b, norm, 1e-6, pdl=pdl)
            a = gemv(a, weight, None, pdl=pdl)
        return a + b

    pdl = supports_pdl(CUDA)
    graph, out = captured(lambda: chain(pdl))
    for turn in range(100):
        x.copy_(random(2, 1024, seed=turn + 7))
        residual.copy_(random(2, 1024, seed=turn + 1000))
        graph.replay()
        assert out.equal(chain(False)), f"turn {turn}"


def test_pdl_is_used(tiny: TinyModel) -> None:
    on, off = (
        build("m4_flash", tiny, device="cuda", num_blocks=64, programmatic_launch=switch)
        for switch in (True, False)
    )
    able = torch.cuda.get_device_capability() >= (9, 0)
    assert supports_pdl(CUDA) == able
    assert on.runner.backend.pdl == on.runner.batch.pdl == able
    assert on.model.layers[0].attn.qkv.pdl == on.model.layers[0].attn.ops.pdl == able
    assert not off.runner.backend.pdl
    assert not off.runner.batch.pdl
    assert not off.model.layers[0].attn.qkv.pdl
    assert not off.model.layers[0].attn.ops.pdl


def test_the_engine_takes_them(tiny: TinyModel) -> None:
    from m4_flash.gemv_linear import GemvLinear

    kinds = {
        backend: type(
            build("m4_flash", tiny, device="cuda", num_blocks=64, linear_backend=backend)
            .model.layers[0].mlp.down
        ).__name__
        for backend in ("auto", "torch")
    }  # fmt: skip
    assert kinds == {"auto": GemvLinear.__name__, "torch": "DenseLinear"}


SWITCHES: list[dict[str, Any]] = [
    {},
    {"programmatic_launch": False},
    {"linear_backend": "torch"},
    {"enforce_eager": True},
    {"programmatic_launch": False, "linear_backend": "torch", "enforce_eager": True},
]


@pytest.mark.parametrize("options", SWITCHES, ids=str)
@pytest.mark.parametrize("stage", ["m4_flash", "m5_chunked", "m6_prefix"])
def test_ids_do_not_depend_on_a_switch(
    tiny: TinyModel, stage: str, options: dict[str, Any]
) -> None:
    """Greedy and seeded ids of 21 requests, with batches above and below every kernel's rows."""
    rng = stdlib_random.Random(3)
    prompts = [[rng.randrange(256) for _ in range(rng.randint(1, 40))] for _ in range(21)]
    params = [
        SamplingParams(temperature=0.8 * (i % 2), seed=i, max_tokens=3 + 2 * i, ignore_eos=True)
        for i in range(21)
    ]

    def run(**given: Any) -> Any:
        engine = build(stage, tiny, device="cuda", num_blocks=256, max_num_seqs=24, **given)
        return ids_of(engine.generate(prompts, params))

    assert run(**options) == run(
        programmatic_launch=False, linear_backend="torch", enforce_eager=True
    )
