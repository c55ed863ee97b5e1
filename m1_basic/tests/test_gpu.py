"""M1 on a real GPU. Every test skips itself elsewhere."""

from __future__ import annotations

import gc

import pytest
import torch

from common.errors import OutOfMemoryError
from common.model_config import KVSpec
from common.request import SamplingParams
from common.testing.conformance import GREEDY, build, ids_of
from common.testing.fixtures import FAMILIES, NEW_TOKENS, TinyModel
from m1_basic.attention import naive_attention
from m1_basic.kv_cache import ContiguousKVCache

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_ids_equal_those_of_the_cpu(
    tiny_models: dict[str, TinyModel], family: str, use_cache: bool
) -> None:
    model = tiny_models[family]
    engine = build("m1_basic", model, device="cuda", use_cache=use_cache)
    assert engine.device.type == engine.model.device.type == "cuda"
    expected = [[tuple(model.oracle.greedy(prompt, NEW_TOKENS))] for prompt in model.prompts]
    assert ids_of(engine.generate(model.prompts, GREEDY)) == expected


def test_a_seed_repeats_on_the_device(tiny: TinyModel) -> None:
    """Its draws are the GPU generator's own, so they are not those of the CPU."""
    engine = build("m1_basic", tiny, device="cuda")
    first, again, other = (
        ids_of(
            engine.generate(
                tiny.prompts, SamplingParams(seed=seed, max_tokens=16, ignore_eos=True, top_p=0.9)
            )
        )
        for seed in (3, 3, 4)
    )
    assert first == again != other


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_naive_attention_in_half_precision(dtype: torch.dtype) -> None:
    """Against float32 on the CPU, from the same rounded inputs."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(5, 16, 128, generator=generator).to(dtype)
    k, v = (torch.randn(77, 8, 128, generator=generator).to(dtype) for _ in "kv")
    expected = naive_attention(q.float(), k.float(), v.float(), 128**-0.5)
    out = naive_attention(q.cuda(), k.cuda(), v.cuda(), 128**-0.5)
    assert out.dtype is dtype
    # Scores and weights are rounded to ``dtype`` on the way.
    torch.testing.assert_close(out.cpu().float(), expected, rtol=2e-2, atol=2e-2)


def test_stats_report_the_allocator_peak(tiny: TinyModel) -> None:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    engine = build("m1_basic", tiny, device="cuda")
    engine.generate(tiny.prompts[3], SamplingParams(temperature=0, max_tokens=2))
    stats = engine.stats()
    assert stats.peak_memory_bytes == torch.cuda.max_memory_allocated()
    assert stats.weight_bytes + stats.kv_bytes < stats.peak_memory_bytes < 2**30


def test_a_cache_that_does_not_fit_has_a_type() -> None:
    spec = KVSpec(num_layers=28, num_kv_heads=8, head_dim=128, dtype="bfloat16")
    with pytest.raises(OutOfMemoryError, match=r"of 100000000 tokens needs \d+\.\d\d GiB and cuda"):
        ContiguousKVCache(spec, 10**8, "cuda")
