"""Every backend that a CPU can run gives the oracle's numbers, on any mix of slices."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m4_flash.backends.base import AttentionBackend, AttentionShape, BackendAttend, PromptAttend
from m4_flash.backends.flash_attn import FlashAttnBackend, _refusal_on_gpu
from m4_flash.backends.naive import NaiveBackend
from m4_flash.backends.paged import PagedBackend
from m4_flash.backends.sdpa import SdpaBackend
from m4_flash.backends.triton import TritonBackend
from m4_flash.tests.step_cases import LAYER, StepCase, step_case

HOST_BACKENDS = (NaiveBackend, PagedBackend, SdpaBackend)
MIXED = [(1, 1), (1, 9), (1, 4), (5, 5), (3, 11), (7, 8)]


def attend(backend: type[AttentionBackend], case: StepCase) -> torch.Tensor:
    """The step's attention; the real tokens only, and padding must be finite."""
    assert backend.refusal(case.shape) is None
    out = backend(case.cache, case.shape).forward(LAYER, case.q, case.k, case.v, case.metadata)
    assert out.shape == case.q.shape
    assert out.dtype is case.q.dtype
    return out[: len(case.expected)]


def without_host(case: StepCase) -> StepCase:
    """As in a captured graph: the lengths are on the device alone."""
    return dataclasses.replace(case, metadata=dataclasses.replace(case.metadata, host=None))


@pytest.mark.parametrize("backend", HOST_BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize(
    "slices", [[(1, 1)], [(1, 6), (1, 3)], [(4, 4)], [(2, 7)], [(9, 9), (2, 2)], MIXED], ids=str
)
@pytest.mark.parametrize("block_size", [1, 3, 4, 16])
def test_equals_the_oracle(
    backend: type[AttentionBackend], slices: list[tuple[int, int]], block_size: int
) -> None:
    case = step_case(slices, block_size=block_size)
    torch.testing.assert_close(attend(backend, case), case.expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", HOST_BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize("group", [1, 3, 4])
def test_head_groups(backend: type[AttentionBackend], group: int) -> None:
    case = step_case(MIXED, group=group, kv_heads=3, head_dim=24)
    torch.testing.assert_close(attend(backend, case), case.expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", HOST_BACKENDS, ids=lambda b: b.name)
def test_padding_is_finite_and_changes_nothing(backend: type[AttentionBackend]) -> None:
    case = step_case(MIXED, pad_tokens=3, pad_seqs=2)
    torch.testing.assert_close(attend(backend, case), case.expected, rtol=1e-5, atol=1e-5)
    out = backend(case.cache, case.shape).forward(LAYER, case.q, case.k, case.v, case.metadata)
    assert out.isfinite().all()


@settings(max_examples=30, deadline=None)
@given(
    decodes=st.lists(st.integers(1, 20), max_size=4),
    longer=st.lists(st.tuples(st.integers(2, 6), st.integers(0, 14)), max_size=3),
    block_size=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_any_mix(
    decodes: list[int], longer: list[tuple[int, int]], block_size: int, seed: int
) -> None:
    slices = [(1, context) for context in decodes] + [(q, q + past) for q, past in longer]
    if not slices:
        return
    case = step_case(slices, block_size=block_size, seed=seed)
    for backend in HOST_BACKENDS:
        torch.testing.assert_close(attend(backend, case), case.expected, rtol=1e-5, atol=1e-5)


class TestTriton:
    """Our kernels behind the interface, in the interpreter."""

    def test_decodes(self) -> None:
        case = step_case([(1, 5), (1, 18)], block_size=16)
        torch.testing.assert_close(attend(TritonBackend, case), case.expected)

    def test_first_chunks_need_no_cache(self) -> None:
        case = step_case([(5, 5), (18, 18)], block_size=16)
        case.cache.kv.fill_(float("nan"))
        torch.testing.assert_close(attend(TritonBackend, case), case.expected)

    @pytest.mark.parametrize("host", [True, False])
    def test_mixed(self, host: bool) -> None:
        case = step_case([(1, 7), (1, 17), (4, 4), (3, 20)], block_size=16)
        case = case if host else without_host(case)
        torch.testing.assert_close(attend(TritonBackend, case), case.expected)

    def test_padding_of_a_graph(self) -> None:
        case = without_host(step_case([(1, 7), (3, 20)], block_size=16, pad_tokens=4, pad_seqs=2))
        torch.testing.assert_close(attend(TritonBackend, case), case.expected)

    def test_padding_of_a_decode_graph(self) -> None:
        case = without_host(step_case([(1, 7), (1, 20)], block_size=16, pad_tokens=2, pad_seqs=2))
        torch.testing.assert_close(attend(TritonBackend, case), case.expected)

    def test_a_prompt_alone(self) -> None:
        case = step_case([(11, 11)], block_size=16)
        for backend in (TritonBackend, NaiveBackend, SdpaBackend):
            alone = PromptAttend(backend)
            assert alone.kv_sink(0) is None
            torch.testing.assert_close(
                alone(0, case.q, case.k, case.v), case.expected, rtol=1e-5, atol=1e-5
            )

    @pytest.mark.parametrize(
        ("shape", "reason"),
        [
            ({"head_dim": 24}, "head_dim must be a power of two of at least 16, got 24"),
            ({"head_dim": 8}, "head_dim must be a power of two of at least 16, got 8"),
            ({"block_size": 6}, "the block size must be a power of two, got 6"),
        ],
        ids=str,
    )
    def test_refusals(self, shape: dict[str, int], reason: str) -> None:
        assert TritonBackend.refusal(a_shape(**shape)) == reason


class TestFlashAttn:
    def test_a_cpu_is_refused(self) -> None:
        reason = FlashAttnBackend.refusal(a_shape(dtype=torch.bfloat16))
        assert reason == "FlashAttention-2 needs a CUDA device, got cpu"

    @pytest.mark.parametrize(
        ("shape", "reason"),
        [
            ({}, "computes in bfloat16 or float16, got torch.float32"),
            ({"dtype": torch.bfloat16, "head_dim": 20}, "a multiple of 8 up to 256, got 20"),
            ({"dtype": torch.bfloat16, "block_size": 16}, "must be a multiple of 256, got 16"),
        ],
        ids=str,
    )
    def test_refusals_of_a_gpu(self, shape: dict[str, object], reason: str) -> None:
        assert reason in str(_refusal_on_gpu(a_shape(**shape)))


def a_shape(**changes: object) -> AttentionShape:
    base = AttentionShape(torch.device("cpu"), torch.float32, 4, 2, 16)
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def test_the_sink_is_the_layer_that_is_read() -> None:
    case = step_case(MIXED)
    sink = BackendAttend(NaiveBackend(case.cache, case.shape), case.metadata).kv_sink(LAYER)
    assert sink.k_cache.data_ptr() == case.cache.kv[0, LAYER].data_ptr()
    assert sink.v_cache.data_ptr() == case.cache.kv[1, LAYER].data_ptr()
    assert sink.slot_mapping is case.metadata.slot_mapping
