"""A device with less memory than was thought: the run goes on with fewer slots, or says why not."""

from __future__ import annotations

import logging
import re
import weakref
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
import torch

import m2_batching.attention
import m2_batching.engine as engine_module
from common.errors import OutOfMemoryError
from common.request import SamplingParams
from common.testing.conformance import build, ids_of
from common.testing.fixtures import TinyModel
from m0_init.device_memory import DeviceMemory
from m2_batching.kv_cache import SlotKVCache

PARAMS = [SamplingParams(seed=i, max_tokens=6 + 2 * i, ignore_eos=True) for i in range(4)]

Tokens: TypeAlias = list[list[tuple[int, ...]]]


def make(model: TinyModel, slots: int, **options: Any) -> Any:
    return build("m2_batching", model, max_num_seqs=slots, **options)


@pytest.fixture(scope="module")
def expected(tiny: TinyModel) -> Tokens:
    """The tokens of :data:`PARAMS` where memory is no concern."""
    return ids_of(make(tiny, 4).generate(tiny.prompts, PARAMS))


def fail_at(monkeypatch: pytest.MonkeyPatch, *calls: int) -> None:
    """Make attention run out of memory at these of its calls (three layers: three a step)."""
    real, count = m2_batching.attention.masked_attention, 0

    def attention(*args: Any) -> torch.Tensor:
        nonlocal count
        count += 1
        if count in calls:
            raise torch.OutOfMemoryError("injected")
        return real(*args)

    monkeypatch.setattr(m2_batching.attention, "masked_attention", attention)


def refuse_above(monkeypatch: pytest.MonkeyPatch, limit: Callable[[], int]) -> list[int]:
    """Make the device refuse more than ``limit()`` slots; returns the sizes that were asked for."""
    asked: list[int] = []

    class Limited(SlotKVCache):
        def __init__(self, spec: Any, num_slots: int, max_len: int, device: Any) -> None:
            asked.append(num_slots)
            if num_slots > limit():
                raise torch.OutOfMemoryError(f"{num_slots} slots")
            super().__init__(spec, num_slots, max_len, device)

    monkeypatch.setattr(engine_module, "SlotKVCache", Limited)
    return asked


def with_free(monkeypatch: pytest.MonkeyPatch, free_bytes: int) -> None:
    memory = DeviceMemory("cpu", "a CPU", 2 * free_bytes, free_bytes)
    monkeypatch.setattr(engine_module, "device_memory", lambda _device: memory)


class TestReserve:
    def test_slots_are_what_was_asked_for_or_what_fits(
        self, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        slot_bytes = make(tiny, 1, max_model_len=64).kv_bytes()
        with_free(monkeypatch, 10 * slot_bytes)
        options = {"max_model_len": 64, "gpu_memory_utilization": 0.5}
        assert make(tiny, 3, **options).runner.cache.num_slots == 3
        with caplog.at_level(logging.INFO):
            engine = make(tiny, 100, **options)
        assert engine.runner.cache.num_slots == engine.scheduler.slots.size == 5
        assert engine.kv_bytes() == 5 * slot_bytes
        assert "5 KV slots of 64 tokens" in caplog.text

    def test_not_one_slot_fits(self, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
        with_free(monkeypatch, 50_000)
        message = r"max_model_len 64 tokens needs 0.00 GiB, and 90% of the free 0.00 GiB of cpu"
        with pytest.raises(OutOfMemoryError, match=message):
            make(tiny, 4, max_model_len=64)

    def test_a_device_that_refuses_gets_asked_for_half(
        self,
        tiny: TinyModel,
        expected: Tokens,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        asked = refuse_above(monkeypatch, lambda: 3)
        engine = make(tiny, 9)
        assert asked == [9, 4, 2]
        assert engine.runner.cache.num_slots == engine.scheduler.slots.size == 2
        assert "no room for 4 slots" in caplog.text
        assert ids_of(engine.generate(tiny.prompts, PARAMS)) == expected

    def test_a_device_that_refuses_everything(
        self, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refuse_above(monkeypatch, lambda: 0)
        with pytest.raises(OutOfMemoryError, match="cpu refuses a single slot of 512 tokens"):
            make(tiny, 4)


class TestStep:
    # Three layers a step: calls 1-3 are the prefill, 4-6 the first decode.
    @pytest.mark.parametrize("call", [1, 3, 5, 13], ids=lambda c: f"attention call {c}")
    def test_the_run_goes_on_with_half_the_slots_and_the_same_tokens(
        self, tiny: TinyModel, expected: Tokens, monkeypatch: pytest.MonkeyPatch, call: int
    ) -> None:
        engine = make(tiny, 4, trace=True)
        fail_at(monkeypatch, call)
        assert ids_of(engine.generate(tiny.prompts, PARAMS)) == expected
        assert engine.runner.cache.num_slots == engine.scheduler.slots.size == 2
        engine.trace.validate()
        failed = engine.trace[(call - 1) // 3]
        assert failed.slices == ()
        assert failed.preempted == failed.running
        assert len(failed.running) == (0 if call <= 3 else 4)
        assert max(len(step.running) for step in engine.trace.steps[failed.index + 1 :]) == 2

    def test_an_odd_number_is_rounded_down_and_told_right(
        self, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        engine = make(tiny, 5)
        fail_at(monkeypatch, 1)
        engine.generate(tiny.prompts, PARAMS)
        assert engine.scheduler.slots.size == 2
        assert "2 slots instead of 5" in caplog.text

    def test_a_smaller_cache_that_is_refused_too(
        self, tiny: TinyModel, expected: Tokens, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The scheduler counts the slots that were granted, not those that were asked for."""
        limits = iter([8, 1, 1, 1])
        asked = refuse_above(monkeypatch, lambda: next(limits))
        engine = make(tiny, 8)
        fail_at(monkeypatch, 5)
        assert ids_of(engine.generate(tiny.prompts, PARAMS)) == expected
        assert asked == [8, 4, 2, 1]
        assert engine.runner.cache.num_slots == engine.scheduler.slots.size == 1

    def test_what_the_failed_pass_held_is_free_before_the_smaller_cache_is_taken(
        self, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = make(tiny, 4)
        old = weakref.ref(engine.runner.cache.kv)
        alive: list[bool] = []

        def watched(*args: Any) -> SlotKVCache:
            alive.append(old() is not None)
            return SlotKVCache(*args)

        monkeypatch.setattr(engine_module, "SlotKVCache", watched)
        fail_at(monkeypatch, 5)
        engine.generate(tiny.prompts, PARAMS)
        assert alive == [False]

    def test_with_one_slot_left_the_error_has_a_type_and_nothing_stays_behind(
        self, tiny: TinyModel, expected: Tokens, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = make(tiny, 2, trace=True)
        fail_at(monkeypatch, 4, 5)
        with pytest.raises(OutOfMemoryError, match="a step does not fit cpu: injected"):
            engine.generate(tiny.prompts, PARAMS)
        assert engine.scheduler.slots.size == engine.scheduler.slots.num_free == 1
        assert not engine.has_unfinished_requests()
        assert engine.stats().num_requests == 4
        monkeypatch.undo()
        assert ids_of(engine.generate(tiny.prompts, PARAMS)) == expected
        engine.trace.validate()

    def test_other_errors_are_not_taken_for_a_lack_of_memory(
        self, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = make(tiny, 4)

        def broken(*args: Any) -> torch.Tensor:
            raise RuntimeError("shapes differ")

        monkeypatch.setattr(m2_batching.attention, "masked_attention", broken)
        with pytest.raises(RuntimeError, match=re.escape("shapes differ")):
            engine.generate(tiny.prompts, PARAMS)
        assert engine.scheduler.slots.size == 4
        assert not engine.has_unfinished_requests()
