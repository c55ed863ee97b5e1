"""M3 on a real GPU: the compiled kernel, the engine that uses it, and a measured pool.

Every test skips itself elsewhere.
"""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

from common.errors import OutOfMemoryError
from common.request import SamplingParams
from common.testing.conformance import GREEDY, build, ids_of
from common.testing.fixtures import FAMILIES, NEW_TOKENS, TinyModel
from m1_basic.attention import UncachedAttend
from m3_paged import paged_attention, reserve
from m3_paged.paged_attention import gathered_decode
from m3_paged.tests.kernel_cases import decode_case

pytestmark = pytest.mark.gpu


def make(model: TinyModel, **options: Any) -> Any:
    return build("m3_paged", model, device="cuda", **options)


def reference(model: TinyModel) -> list[list[tuple[int, ...]]]:
    return [[tuple(model.oracle.greedy(prompt, NEW_TOKENS))] for prompt in model.prompts]


class TestKernel:
    @pytest.mark.parametrize("block_size", [4, 16, 32])
    @pytest.mark.parametrize("head_dim", [32, 64, 128])
    @pytest.mark.parametrize("group", [1, 2, 4])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_ragged_lengths_equal_the_float32_reference(
        self, dtype: torch.dtype, group: int, head_dim: int, block_size: int
    ) -> None:
        """From the same rounded inputs; the kernel computes in float32 and rounds once."""
        size = block_size
        lengths = [1, 2, size - 1, size, size + 1, 3 * size, 3 * size + 1, 700, 1024]
        case = decode_case(
            lengths, group=group, head_dim=head_dim, block_size=size, dtype=dtype, device="cuda"
        )
        out = run_kernel(case)
        assert out.dtype is dtype
        last_place = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
        torch.testing.assert_close(out.cpu().float(), case.expected, rtol=last_place, atol=1e-5)

    def test_the_shape_of_qwen3(self) -> None:
        """16 query heads over 8 KV heads of 128; contexts up to 4,096 tokens."""
        case = decode_case(
            [4096, 17, 2048, 1, 3000, 16],
            kv_heads=8, group=2, head_dim=128, dtype=torch.bfloat16, device="cuda",
        )  # fmt: skip
        out = run_kernel(case)
        torch.testing.assert_close(out.cpu().float(), case.expected, rtol=2**-8, atol=1e-5)

    def test_many_sequences(self) -> None:
        lengths = [1 + 37 * i % 200 for i in range(256)]
        case = decode_case(lengths, head_dim=64, device="cuda")
        out = run_kernel(case)
        torch.testing.assert_close(out.cpu(), case.expected, rtol=1e-5, atol=1e-5)
        gathered = gathered_decode(
            case.q, case.k_cache, case.v_cache, case.block_tables, case.seq_lens, 200, case.scale
        )
        torch.testing.assert_close(out, gathered, rtol=1e-4, atol=1e-4)


def run_kernel(case: Any) -> torch.Tensor:
    from m3_paged.kernels import paged_decode

    out = torch.full_like(case.q, float("nan"))
    paged_decode(
        case.q, case.k_cache, case.v_cache, case.block_tables, case.seq_lens, case.scale, out
    )
    return out


@pytest.mark.parametrize("options", [{"num_blocks": 64}, {"num_blocks": 40, "block_size": 4}])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_ids_equal_those_of_the_cpu(
    tiny_models: dict[str, TinyModel], family: str, options: dict[str, int]
) -> None:
    """With room for everybody, and with a pool that preempts."""
    model = tiny_models[family]
    engine = make(model, trace=True, **options)
    engine.runner.cache.kv.fill_(float("nan"))
    assert ids_of(engine.generate(model.prompts, GREEDY)) == reference(model)
    assert (engine.scheduler.num_preemptions > 0) == ("block_size" in options)
    engine.scheduler.manager.check()
    engine.trace.validate()


def test_parallel_samples_equal_single_ones(tiny: TinyModel) -> None:
    engine = make(tiny, num_blocks=64)
    prompt = tiny.prompts[1]
    params = SamplingParams(n=3, seed=5, max_tokens=12, ignore_eos=True)
    (output,) = engine.generate(prompt, params)
    for i, completion in enumerate(output.outputs):
        single = SamplingParams(seed=5 + i, max_tokens=12, ignore_eos=True)
        (alone,) = engine.generate(prompt, single)
        assert completion.token_ids == alone.outputs[0].token_ids


def test_the_engine_uses_the_kernel(tiny: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once per layer and decode step, and never the gathering reference."""
    from m3_paged import kernels

    real, rows = kernels.paged_decode, []

    def spy(q: torch.Tensor, *args: Any) -> None:
        rows.append(q.shape[0])
        real(q, *args)

    def never(*args: Any) -> torch.Tensor:
        raise AssertionError("the engine gathers on a GPU")

    monkeypatch.setattr(kernels, "paged_decode", spy)
    monkeypatch.setattr(paged_attention, "gathered_decode", never)
    engine = make(tiny, num_blocks=64)
    assert engine.runner.use_kernel
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    engine.generate(tiny.prompts[1:], params)  # prompts of 7, 16 and 33 tokens
    assert rows == [3] * 4 * 3  # four decode steps, three layers


def test_a_shape_that_the_kernel_cannot_take_is_gathered(tiny: TinyModel) -> None:
    engine = make(tiny, num_blocks=64, block_size=6)
    assert not engine.runner.use_kernel
    assert ids_of(engine.generate(tiny.prompts, GREEDY)) == reference(tiny)


def test_pool_fills_what_the_profile_leaves(tiny: TinyModel) -> None:
    """Asked for what is in use now and 1 GiB more, it takes 1 GiB less one step's peak."""
    make(tiny, num_blocks=64).generate(tiny.prompts[:1], GREEDY)  # libraries take theirs
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    share = (total - free + 2**30) / total
    engine = make(tiny, max_num_seqs=10**6, gpu_memory_utilization=share)
    assert 0.85 * 2**30 < engine.kv_bytes() < 1.05 * 2**30
    torch.cuda.synchronize()
    free_after, _ = torch.cuda.mem_get_info()
    assert total - free_after <= share * total + 64 * 2**20
    assert engine.stats().peak_memory_bytes >= engine.kv_bytes()
    longest = list(range(1, 256)) * 2  # 510 of 512 tokens: the step that was profiled
    (output,) = engine.generate([longest], SamplingParams(temperature=0, max_tokens=9))
    assert len(output.outputs[0].token_ids) == 2


def test_nothing_is_left(tiny: TinyModel) -> None:
    with pytest.raises(OutOfMemoryError, match=r"nothing is left for KV: 0% of .* for weights"):
        make(tiny, gpu_memory_utilization=1e-6)


def test_a_step_that_does_not_fit(tiny: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hungry(UncachedAttend):
        def __call__(self, *args: Any) -> torch.Tensor:
            return torch.empty(2**50, dtype=torch.uint8, device="cuda")

    monkeypatch.setattr(reserve, "UncachedAttend", Hungry)
    with pytest.raises(OutOfMemoryError, match="a step of 512 tokens does not fit cuda"):
        make(tiny)


def test_a_pool_that_does_not_fit(tiny: TinyModel) -> None:
    _, total = torch.cuda.mem_get_info()
    blocks = total // (16 * 1536)  # all of the device's memory
    with pytest.raises(OutOfMemoryError, match=f"refuses {blocks} blocks of 16 tokens"):
        make(tiny, num_blocks=blocks)
