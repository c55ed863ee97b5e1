"""The fused ops in Triton's interpreter: float32, odd shapes, one launch each.

``test_gpu_ops.py`` runs them compiled, at Qwen3's sizes and in bfloat16.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from common.model.ops import TorchOps
from common.testing.fixtures import FAMILIES, TinyModel
from m0_init.loader import load
from m1_basic.attention import UncachedAttend
from m4_flash.tests.op_cases import EPS, HeadsCase, assert_stored, heads_case, new_sink

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="kernels are compiled here: test_gpu_ops.py"
)

LEADS = [(3,), (2, 3), (1, 1), ()]
# (query heads, KV heads, head_dim): Qwen3's ratio, SmolLM2's 9 over 3, and 18 pairs, no power of 2.
SHAPES = [(4, 2, 32), (9, 3, 16), (10, 1, 36)]


@pytest.fixture
def ops() -> Any:
    from m4_flash.ops import TritonOps

    return TritonOps()


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The grid of every launch."""
    from triton.runtime.interpreter import GridExecutor

    real, grids = GridExecutor.__call__, list[tuple[int, ...]]()

    def spy(self: Any, *args: Any, **kwargs: Any) -> None:
        grids.append(self.grid)
        real(self, *args, **kwargs)

    monkeypatch.setattr(GridExecutor, "__call__", spy)
    return grids


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_equal(ours: Tensor, reference: Tensor) -> None:
    torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)


class Halves(nn.Module):
    """A merged gate and up projection that returns what it was given."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = x.chunk(2, dim=-1)
        return gate, up


class TestNorm:
    @pytest.mark.parametrize("width", [1, 7, 64, 576])
    @pytest.mark.parametrize("lead", LEADS, ids=str)
    def test_rms_norm(self, ops: Any, lead: tuple[int, ...], width: int) -> None:
        x, weight = random(*lead, width) * 5, random(width, seed=1)
        out = ops.rms_norm(x, weight, EPS)
        assert_equal(out, TorchOps().rms_norm(x, weight, EPS))

    @pytest.mark.parametrize("width", [1, 7, 64, 576])
    @pytest.mark.parametrize("lead", LEADS, ids=str)
    def test_add_rms_norm(self, ops: Any, lead: tuple[int, ...], width: int) -> None:
        x, residual, weight = random(*lead, width), random(*lead, width, seed=1), random(width)
        before = x.clone(), residual.clone()
        normed, total = ops.add_rms_norm(x, residual, weight, EPS)
        expected, expected_total = TorchOps().add_rms_norm(x, residual, weight, EPS)
        assert_equal(normed, expected)
        assert torch.equal(total, expected_total)
        assert torch.equal(x, before[0])
        assert torch.equal(residual, before[1])

    def test_the_widest_row_and_one_more(self, ops: Any) -> None:
        x = random(1, 16384)
        weight = torch.ones(16384)
        assert_equal(ops.rms_norm(x, weight, EPS), TorchOps().rms_norm(x, weight, EPS))
        with pytest.raises(AssertionError, match=r"a row of 16385 .* \(16384 at most\)"):
            ops.rms_norm(random(1, 16385), random(16385), EPS)

    def test_rows_of_a_wider_tensor(self, ops: Any) -> None:
        wide, weight = random(2, 3, 40), random(10)
        x, residual = wide[..., 5:15], wide[..., 20:30]
        assert_equal(ops.rms_norm(x, weight, EPS), TorchOps().rms_norm(x, weight, EPS))
        for ours, theirs in zip(
            ops.add_rms_norm(x, residual, weight, EPS),
            TorchOps().add_rms_norm(x, residual, weight, EPS),
            strict=True,
        ):
            assert_equal(ours, theirs)

    def test_epsilon_keeps_a_row_of_zeros_finite(self, ops: Any) -> None:
        out = ops.rms_norm(torch.zeros(2, 8), torch.ones(8), EPS)
        assert torch.equal(out, torch.zeros(2, 8))

    def test_bfloat16_norms_the_rounded_sum(self, ops: Any) -> None:
        """1 + 2⁻⁹ is 1 in bfloat16: the row is all ones, and its norm too."""
        x = torch.full((1, 16), 2.0**-9, dtype=torch.bfloat16)
        one = torch.ones(1, 16, dtype=torch.bfloat16)
        normed, total = ops.add_rms_norm(x, one, one[0], 0.0)
        assert normed.dtype is total.dtype is torch.bfloat16
        assert torch.equal(total, one)
        assert torch.equal(normed, one)

    def test_no_rows(self, ops: Any, launches: list[tuple[int, ...]]) -> None:
        assert ops.rms_norm(random(0, 8), random(8), EPS).shape == (0, 8)

    def test_one_launch_each(self, ops: Any, launches: list[tuple[int, ...]]) -> None:
        x, weight = random(2, 3, 8), random(8)
        ops.rms_norm(x, weight, EPS)
        assert launches == [(6,)]
        ops.add_rms_norm(x, x, weight, EPS)
        assert launches == [(6,), (6,)]


class TestHeads:
    @pytest.mark.parametrize("norm", [True, False], ids=["qk-norm", "no-norm"])
    @pytest.mark.parametrize("lead", LEADS[:3], ids=str)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_without_a_sink(
        self, ops: Any, shape: tuple[int, int, int], lead: tuple[int, ...], norm: bool
    ) -> None:
        case = heads_case(lead, *shape, norm=norm)
        q, k = run(ops, case)
        assert q.shape == case.q.shape
        assert k.shape == case.k.shape
        for ours, expected in zip((q, k), case.expected(), strict=True):
            assert_equal(ours, expected)

    @pytest.mark.parametrize("norm", [True, False], ids=["qk-norm", "no-norm"])
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_fills_its_sink(self, ops: Any, shape: tuple[int, int, int], norm: bool) -> None:
        """k is stored as it is returned, v as it came; padding is not stored but still rotated."""
        case = heads_case((5,), *shape, norm=norm)
        sink = new_sink([9, -1, 2, 3, -1], *shape[1:])
        q, k = run(ops, case, sink)
        for ours, expected in zip((q, k), case.expected(), strict=True):
            assert_equal(ours, expected)
        assert_stored(sink, k, case.v)

    def test_weights_of_q_and_k_are_not_confused(self, ops: Any) -> None:
        case = heads_case((2,), 2, 2, 8)
        assert case.q_weight is not None
        double = HeadsCase(case.q, case.k, case.v, case.q_weight * 2, case.k_weight, case.cos_sin)
        q, k = run(ops, case)
        q2, k2 = run(ops, double)
        assert_equal(q2, 2 * q)
        assert torch.equal(k2, k)

    def test_a_sink_in_another_dtype(self, ops: Any) -> None:
        case = heads_case((2,), 2, 1, 8)
        sink = new_sink([1, 0], 1, 8, dtype=torch.float16)
        _, k = run(ops, case, sink)
        assert_stored(sink, k.half(), case.v.half())

    def test_one_launch(self, ops: Any, launches: list[tuple[int, ...]]) -> None:
        """16 query heads are two programs of 8, 8 KV heads one."""
        case = heads_case((3,), 16, 8, 8)
        run(ops, case)
        assert launches == [(3, 3)]
        run(ops, case, new_sink([0, 1, 2], 8, 8))
        assert launches == [(3, 3), (3, 3)]

    def test_no_tokens(self, ops: Any) -> None:
        q, k = run(ops, heads_case((0,), 4, 2, 8), new_sink([], 2, 8))
        assert q.shape == (0, 4, 8)
        assert k.shape == (0, 2, 8)

    def test_slots_must_fit_the_tokens(self, ops: Any) -> None:
        with pytest.raises(AssertionError, match=r"\[2\]\), 3"):
            run(ops, heads_case((3,), 2, 1, 8), new_sink([0, 1], 1, 8))

    @settings(max_examples=15, deadline=None)
    @given(data=st.data())
    def test_any_shape_and_any_slots(self, data: st.DataObject) -> None:
        from m4_flash.ops import TritonOps

        kv_heads = data.draw(st.integers(1, 3))
        heads = kv_heads * data.draw(st.integers(1, 4))
        head_dim = 2 * data.draw(st.integers(1, 10))
        slots = data.draw(st.lists(st.integers(0, 20), unique=True, max_size=4))
        slots = data.draw(st.permutations(slots + [-1] * data.draw(st.integers(0, 2))))
        norm = data.draw(st.booleans())
        case = heads_case((len(slots),), heads, kv_heads, head_dim, norm=norm, seed=len(slots))
        block_size = data.draw(st.sampled_from([1, 3, 16]))
        sink = new_sink(slots, kv_heads, head_dim, block_size=block_size)
        q, k = run(TritonOps(), case, sink)
        for ours, expected in zip((q, k), case.expected(), strict=True):
            assert_equal(ours, expected)
        assert_stored(sink, k, case.v)


def run(ops: Any, case: HeadsCase, sink: Any = None) -> tuple[Tensor, Tensor]:
    q, k = ops.qk_norm_rope(
        case.q, case.k, case.v, case.q_weight, case.k_weight, EPS, case.cos_sin, sink
    )
    return q, k


class TestGate:
    @pytest.mark.parametrize("width", [1, 96, 1024, 1500])
    @pytest.mark.parametrize("lead", LEADS, ids=str)
    def test_equals_torch(self, ops: Any, lead: tuple[int, ...], width: int) -> None:
        x = random(*lead, 2 * width) * 4
        assert_equal(ops.mlp_gate_up(Halves(), x), TorchOps().mlp_gate_up(Halves(), x))

    @pytest.mark.filterwarnings("ignore:overflow encountered in exp")
    def test_large_gates(self, ops: Any) -> None:
        """exp(1000) is infinite; its reciprocal is not a NaN."""
        x = torch.tensor([[-1000.0, 1000.0, -88.0, 0.0, 2.0, 2.0, 2.0, 2.0]])
        assert_equal(ops.mlp_gate_up(Halves(), x), torch.tensor([[0.0, 2000.0, 0.0, 0.0]]))

    def test_one_launch(self, ops: Any, launches: list[tuple[int, ...]]) -> None:
        ops.mlp_gate_up(Halves(), random(3, 2 * 1025))
        assert launches == [(3, 2)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_model(ops: Any, tiny_models: dict[str, TinyModel], family: str) -> None:
    """Same hidden states as with the reference ops."""
    folder = tiny_models[family].folder
    hidden = []
    with torch.inference_mode():
        for chosen in (None, ops):
            model = load(folder, device="cpu", dtype="float32", ops=chosen).model
            ids = torch.tensor([5, 9, 200, 3])
            hidden.append(model(ids, torch.arange(4), UncachedAttend()))
    torch.testing.assert_close(hidden[1], hidden[0], rtol=1e-4, atol=1e-4)
