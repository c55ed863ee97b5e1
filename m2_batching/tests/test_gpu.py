"""M2 on a real GPU, a real lack of memory included. Every test skips itself elsewhere."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

from common.errors import OutOfMemoryError
from common.request import SamplingParams
from common.testing.conformance import GREEDY, build, ids_of
from common.testing.fixtures import FAMILIES, NEW_TOKENS, TinyModel

pytestmark = pytest.mark.gpu


def make(model: TinyModel, **options: Any) -> Any:
    return build("m2_batching", model, device="cuda", **options)


def settle() -> None:
    """Give back what earlier tests held: engines are reference cycles."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


@pytest.mark.parametrize("slots", [8, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_ids_equal_those_of_the_cpu(
    tiny_models: dict[str, TinyModel], family: str, slots: int
) -> None:
    model = tiny_models[family]
    engine = make(model, max_num_seqs=slots, trace=True)
    engine.runner.cache.kv.fill_(float("nan"))
    expected = [[tuple(model.oracle.greedy(prompt, NEW_TOKENS))] for prompt in model.prompts]
    assert ids_of(engine.generate(model.prompts, GREEDY)) == expected
    engine.trace.validate()


def test_a_seed_gives_the_same_tokens_alone_and_in_company(tiny: TinyModel) -> None:
    engine = make(tiny, max_num_seqs=8)
    params = [SamplingParams(seed=i, max_tokens=16, ignore_eos=True) for i in range(4)]
    together = engine.generate(tiny.prompts, params)
    alone = [engine.generate(p, s)[0] for p, s in zip(tiny.prompts, params, strict=True)]
    assert ids_of(together) == ids_of(alone)


def test_slots_are_what_the_free_memory_holds(tiny: TinyModel) -> None:
    """About 1 GiB of slots of 512 tokens, whatever the size of the device."""
    slot_bytes = make(tiny, max_num_seqs=1).kv_bytes()
    settle()
    free, _ = torch.cuda.mem_get_info()
    engine = make(tiny, max_num_seqs=10**6, gpu_memory_utilization=2**30 / free)
    slots = engine.runner.cache.num_slots
    assert 0.95 * 2**30 < slots * slot_bytes <= 2**30
    assert engine.scheduler.slots.size == slots
    assert engine.stats().kv_bytes == slots * slot_bytes
    assert engine.stats().peak_memory_bytes >= slots * slot_bytes


def test_a_step_that_does_not_fit_shrinks_the_slots_and_goes_on(tiny: TinyModel) -> None:
    """1 GiB of slots, and an allocator that may hold 32 MiB more: no prefill fits, at first.

    Half of the slots do fit afterwards, because all that the failed pass held was given back.
    """
    prompts = [[(7 * i + j) % 256 for j in range(400)] for i in range(16)]
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    expected = ids_of(make(tiny, max_num_seqs=16).generate(prompts, params))
    engine = make(tiny, max_num_seqs=1365, trace=True)
    assert engine.runner.cache.num_slots == 1365
    settle()
    _, total = torch.cuda.mem_get_info()
    allowed = torch.cuda.memory_reserved() + 32 * 2**20
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    try:
        outputs = engine.generate(prompts, params)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert ids_of(outputs) == expected
    assert engine.runner.cache.num_slots == engine.scheduler.slots.size == 682
    engine.trace.validate()
    failed = [step for step in engine.trace if not step.slices]
    assert len(failed) == 1


def test_no_slot_fits(tiny: TinyModel) -> None:
    with pytest.raises(OutOfMemoryError, match="one slot of max_model_len 512 tokens needs"):
        make(tiny, gpu_memory_utilization=1e-9)
