"""The fused ops and the KV store compiled, at Qwen3-0.6B's sizes, alone and in CUDA graphs.

Every test skips itself where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.model.interfaces import KVSink
from common.model.ops import TorchOps
from common.profiling import profile_kernels
from common.testing.fixtures import FAMILIES, TinyModel
from m0_init.loader import load
from m1_basic.attention import UncachedAttend
from m4_flash.tests.op_cases import EPS, HeadsCase, assert_stored, captured, heads_case, new_sink

pytestmark = pytest.mark.gpu

DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"]
)
TOKENS = pytest.mark.parametrize("tokens", [1, 2, 7, 64, 512])
HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM = 1024, 3072, 16, 8, 128

# One rounding to the dtype: half a unit in the last place, and some float32 noise before it.
LAST_PLACE = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-10}


@pytest.fixture
def ops() -> Any:
    from m4_flash.ops import TritonOps

    return TritonOps()


class Halves(nn.Module):
    """A merged gate and up projection that returns what it was given."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = x.chunk(2, dim=-1)
        return gate, up


def random(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).cuda()


def assert_rounded(ours: Tensor, reference: Tensor) -> None:
    """Equal to a float32 result up to one rounding."""
    rtol = LAST_PLACE[ours.dtype]
    torch.testing.assert_close(ours.cpu().float(), reference.cpu().float(), rtol=rtol, atol=1e-5)


def run(ops: Any, case: HeadsCase, sink: KVSink | None = None) -> tuple[Tensor, Tensor]:
    q, k = ops.qk_norm_rope(
        case.q, case.k, case.v, case.q_weight, case.k_weight, EPS, case.cos_sin, sink
    )
    return q, k


def qwen3_case(tokens: int, dtype: torch.dtype = torch.bfloat16, **options: Any) -> HeadsCase:
    return heads_case((tokens,), HEADS, KV_HEADS, HEAD_DIM, dtype=dtype, device="cuda", **options)


def slots_of(tokens: int) -> list[int]:
    """Every third token is padding, the others lie in no order."""
    order = torch.randperm(2 * tokens, generator=torch.Generator().manual_seed(1)).tolist()
    return [-1 if token % 3 == 2 else order[token] for token in range(tokens)]


def qwen3_sink(tokens: int, dtype: torch.dtype = torch.bfloat16, block_size: int = 16) -> KVSink:
    return new_sink(
        slots_of(tokens), KV_HEADS, HEAD_DIM, block_size=block_size, dtype=dtype, device="cuda"
    )


@DTYPES
@TOKENS
def test_rms_norm(ops: Any, tokens: int, dtype: torch.dtype) -> None:
    x, weight = random(tokens, HIDDEN, dtype=dtype) * 4, random(HIDDEN, dtype=dtype, seed=1)
    out = ops.rms_norm(x, weight, EPS)
    assert out.dtype is dtype
    assert_rounded(out, TorchOps().rms_norm(x.float(), weight.float(), EPS))


@DTYPES
@TOKENS
def test_add_rms_norm(ops: Any, tokens: int, dtype: torch.dtype) -> None:
    """The sum bit for bit as PyTorch's; the norm of the rounded sum."""
    x, residual = (random(tokens, HIDDEN, dtype=dtype, seed=seed) for seed in (0, 1))
    weight = random(HIDDEN, dtype=dtype, seed=2)
    normed, total = ops.add_rms_norm(x, residual, weight, EPS)
    assert normed.dtype is total.dtype is dtype
    assert torch.equal(total, x + residual)
    assert_rounded(normed, TorchOps().rms_norm(total.float(), weight.float(), EPS))


@pytest.mark.parametrize("width", [1, 100, 576, 896, 2048, 5120, 16384])
def test_norms_of_other_widths(ops: Any, width: int) -> None:
    x, weight = random(3, 5, width), random(width, seed=1)
    assert_rounded(
        ops.rms_norm(x, weight, EPS), TorchOps().rms_norm(x.float(), weight.float(), EPS)
    )
    normed, total = ops.add_rms_norm(x, x, weight, EPS)
    assert torch.equal(total, x + x)
    assert_rounded(normed, TorchOps().rms_norm(total.float(), weight.float(), EPS))


@DTYPES
@TOKENS
def test_silu_mul(ops: Any, tokens: int, dtype: torch.dtype) -> None:
    x = random(tokens, 2 * INNER, dtype=dtype) * 3
    out = ops.mlp_gate_up(Halves(), x)
    assert out.dtype is dtype
    assert_rounded(out, TorchOps().mlp_gate_up(Halves(), x.float()))


def test_silu_mul_of_large_gates(ops: Any) -> None:
    x = torch.tensor([[-1e4, 1e4, -88.0, 0.0, 2.0, 2.0, 2.0, 2.0]], device="cuda")
    expected = torch.tensor([[0.0, 2e4, 0.0, 0.0]], device="cuda")
    torch.testing.assert_close(ops.mlp_gate_up(Halves(), x), expected, rtol=1e-6, atol=1e-6)


@DTYPES
@TOKENS
@pytest.mark.parametrize("norm", [True, False], ids=["qk-norm", "no-norm"])
def test_qk_norm_rope_with_a_sink(ops: Any, norm: bool, tokens: int, dtype: torch.dtype) -> None:
    """Within one rounding of float32; the cache holds exactly what is returned."""
    case, sink = qwen3_case(tokens, dtype, norm=norm), qwen3_sink(tokens, dtype)
    q, k = run(ops, case, sink)
    assert q.dtype is k.dtype is dtype
    for ours, expected in zip((q, k), case.expected(), strict=True):
        assert_rounded(ours, expected)
    assert_stored(sink, k, case.v)


@pytest.mark.parametrize("lead", [(4,), (2, 3)], ids=str)
@pytest.mark.parametrize("shape", [(9, 3, 64), (14, 2, 64), (32, 8, 64), (4, 1, 36)], ids=str)
def test_qk_norm_rope_of_other_shapes(
    ops: Any, shape: tuple[int, int, int], lead: tuple[int, ...]
) -> None:
    for norm in (True, False):
        case = heads_case(lead, *shape, norm=norm, dtype=torch.bfloat16, device="cuda")
        for ours, expected in zip(run(ops, case), case.expected(), strict=True):
            assert_rounded(ours, expected)


@DTYPES
@pytest.mark.parametrize("block_size", [16, 32, 256])
def test_store_kv(block_size: int, dtype: torch.dtype) -> None:
    from m4_flash.kernels.store import store_kv

    case, sink = qwen3_case(65, dtype), qwen3_sink(65, dtype, block_size)
    store_kv(case.k, case.v, sink)
    assert_stored(sink, case.k, case.v)


def test_offsets_beyond_32_bits(ops: Any) -> None:
    """The last slot of a cache of more than 2³¹ elements, through both ways of storing."""
    from m4_flash.kernels.store import store_kv

    num_blocks = 2**31 // (16 * KV_HEADS * HEAD_DIM) + 4
    shape = (num_blocks, 16, KV_HEADS, HEAD_DIM)
    free, _ = torch.cuda.mem_get_info()
    if free < 3 * 2 * num_blocks * 16 * KV_HEADS * HEAD_DIM:
        pytest.skip(f"needs 13 GB of free memory, {free / 1e9:.1f} GB are")
    k_cache, v_cache = (torch.zeros(shape, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    last = num_blocks * 16 - 1
    sink = KVSink(k_cache, v_cache, torch.tensor([last, last - 16], device="cuda"))
    case = qwen3_case(2)
    store_kv(case.k, case.v, sink)
    assert torch.equal(k_cache.flatten(0, 1)[[last, last - 16]], case.k)
    assert torch.equal(v_cache.flatten(0, 1)[[last, last - 16]], case.v)
    _, k = run(ops, case, sink)
    assert torch.equal(k_cache.flatten(0, 1)[[last, last - 16]], k)


def test_one_kernel_each(ops: Any) -> None:
    """And no copy, fill or allocation that runs on the device."""
    from m4_flash.kernels.store import store_kv

    x, weight, merged = random(8, HIDDEN), random(HIDDEN), random(8, 2 * INNER)
    case, sink = qwen3_case(8), qwen3_sink(8)
    steps: list[Callable[[], object]] = [
        lambda: ops.rms_norm(x, weight, EPS),
        lambda: ops.add_rms_norm(x, x, weight, EPS),
        lambda: ops.mlp_gate_up(Halves(), merged),
        lambda: run(ops, case),
        lambda: run(ops, case, sink),
        lambda: store_kv(case.k, case.v, sink),
    ]
    for step in steps:
        step()  # compiled before it is counted
        assert profile_kernels(step).num_kernels == 1


@pytest.mark.parametrize("tokens", [1, 64])
def test_norms_and_gate_replay_in_a_graph(ops: Any, tokens: int) -> None:
    x, residual, weight = random(tokens, HIDDEN), random(tokens, HIDDEN), random(HIDDEN)
    merged = random(tokens, 2 * INNER)

    def step() -> tuple[Tensor, ...]:
        first = ops.rms_norm(x, weight, EPS)
        return (
            first,
            *ops.add_rms_norm(x, residual, weight, EPS),
            ops.mlp_gate_up(Halves(), merged),
        )

    graph, out = captured(step)
    for seed in (7, 8):
        x.copy_(random(tokens, HIDDEN, seed=seed))
        residual.copy_(random(tokens, HIDDEN, seed=seed + 10))
        merged.copy_(random(tokens, 2 * INNER, seed=seed))
        graph.replay()
        for replayed, eager in zip(out, step(), strict=True):
            assert torch.equal(replayed, eager)


@pytest.mark.parametrize("tokens", [1, 64])
def test_heads_replay_in_a_graph_with_other_slots(ops: Any, tokens: int) -> None:
    """Padding and slots are values: a replay stores where the slots point now."""
    case, sink = qwen3_case(tokens), qwen3_sink(tokens)
    graph, (q, k) = captured(lambda: run(ops, case, sink))
    for seed in (3, 4):
        other = qwen3_case(tokens, seed=seed)
        for static, new in ((case.q, other.q), (case.k, other.k), (case.v, other.v)):
            static.copy_(new)
        sink.slot_mapping.copy_(sink.slot_mapping.roll(1))
        sink.k_cache.fill_(float("nan"))
        sink.v_cache.fill_(float("nan"))
        graph.replay()
        for replayed, eager in zip((q, k), run(ops, case), strict=True):
            assert torch.equal(replayed, eager)
        assert_stored(sink, k, case.v)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_model(ops: Any, tiny_models: dict[str, TinyModel], family: str) -> None:
    folder = tiny_models[family].folder
    hidden = []
    with torch.inference_mode():
        for chosen in (None, ops):
            model = load(folder, device="cuda", dtype="float32", ops=chosen).model
            ids = torch.tensor([5, 9, 200, 3], device="cuda")
            hidden.append(model(ids, torch.arange(4, device="cuda"), UncachedAttend()))
    torch.testing.assert_close(hidden[1], hidden[0], rtol=1e-4, atol=1e-4)
