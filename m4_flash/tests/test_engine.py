"""The M4 engine on a CPU: its parts, its sizes, recorded steps, and backends that agree."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

import m4_flash
from common.errors import ConfigError, InvalidRequestError, OutOfMemoryError
from common.model.ops import TorchOps
from common.request import SamplingParams
from common.testing.conformance import GREEDY, build, ids_of
from common.testing.fixtures import FAMILIES, NEW_TOKENS, TinyModel
from m3_paged.kv_cache_manager import KVCacheManager
from m3_paged.scheduler import Scheduler
from m4_flash.assembly import make_ops
from m4_flash.backends.sdpa import SdpaBackend
from m4_flash.draw import HostDraw
from m4_flash.engine import LLMEngine
from m4_flash.runner import FlashRunner


def make(model: TinyModel, **options: Any) -> Any:
    return build("m4_flash", model, **{"num_blocks": 64, "max_num_seqs": 4, **options})


def reference(model: TinyModel, count: int = NEW_TOKENS) -> list[list[tuple[int, ...]]]:
    return [[tuple(model.oracle.greedy(prompt, count))] for prompt in model.prompts]


def test_the_package_offers_two_names() -> None:
    assert m4_flash.__all__ == ["LLMEngine", "SamplingParams"]
    assert m4_flash.LLMEngine is LLMEngine
    assert m4_flash.SamplingParams is SamplingParams
    with pytest.raises(AttributeError, match="'m4_flash' has no attribute 'Engine'"):
        _ = m4_flash.Engine


def test_build_takes_the_newest_version_of_each_part(tiny: TinyModel) -> None:
    engine = make(tiny)
    assert type(engine).__bases__[0].__name__ == "StepEngine"
    assert type(engine.scheduler) is Scheduler
    assert type(engine.scheduler.manager) is KVCacheManager
    assert type(engine.runner) is FlashRunner
    assert type(engine.runner.backend) is SdpaBackend
    assert type(engine.runner.draw) is HostDraw
    assert type(make_ops(torch.device("cpu"))) is TorchOps
    assert engine.runner.graphs is None  # sdpa needs lengths on the host


@pytest.mark.parametrize("backend", ["naive", "paged", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_backends_give_the_same_ids(
    tiny_models: dict[str, TinyModel], family: str, backend: str
) -> None:
    model = tiny_models[family]
    engine = make(model, attention_backend=backend)
    engine.runner.cache.kv.fill_(float("nan"))
    assert ids_of(engine.generate(model.prompts, GREEDY)) == reference(model)


def test_a_workload_switches_backends(tiny: TinyModel) -> None:
    """The same requests, mixed parameters, one engine per backend, equal outputs."""
    params = [
        GREEDY,
        SamplingParams(seed=3, max_tokens=9, temperature=0.8, top_p=0.9),
        SamplingParams(seed=1, max_tokens=7, n=3),
        SamplingParams(temperature=0, max_tokens=5, logprobs=2),
    ]
    outputs = {
        name: make(tiny, attention_backend=name).generate(tiny.prompts, params)
        for name in ("naive", "paged", "sdpa")
    }
    assert ids_of(outputs["naive"]) == ids_of(outputs["paged"]) == ids_of(outputs["sdpa"])


def test_our_kernels_serve_the_engine_in_recorded_steps(tiny: TinyModel) -> None:
    """Triton's interpreter in the GPU's place: padded buckets, lengths on the device only."""
    engine = make(
        tiny, attention_backend="triton", max_num_seqs=3, trace=True, max_model_len=64,
        num_blocks=16,
    )  # fmt: skip
    assert engine.runner.graphs is not None
    engine.runner.cache.kv.fill_(float("nan"))
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    prompts = [tiny.prompts[0], tiny.prompts[1]]
    outputs = engine.generate(prompts, params)
    assert ids_of(outputs) == [[tuple(tiny.oracle.greedy(prompt, 4))] for prompt in prompts]
    padding = [record.num_padding_tokens for record in engine.trace.steps]
    assert padding == [16 - 8, 0, 0, 0]  # 1 + 7 prompt tokens in a bucket of 16; two decode in 2
    engine.trace.validate()


def test_enforce_eager_records_nothing(tiny: TinyModel) -> None:
    engine = make(tiny, attention_backend="triton", enforce_eager=True, max_num_seqs=2)
    assert engine.runner.graphs is None
    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    (output,) = engine.generate(tiny.prompts[1], params)
    assert list(output.outputs[0].token_ids) == tiny.oracle.greedy(tiny.prompts[1], 2)


def test_rows_come_back_whatever_ends_a_request(tiny: TinyModel) -> None:
    """A step that computes nothing must not swallow the news of who has ended."""
    engine = make(tiny, max_num_seqs=2)
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    for _ in range(5):  # more requests than rows
        names = [engine.add_request(prompt, params) for prompt in tiny.prompts[:2]]
        engine.step()
        for name in names:
            engine.abort(name)
        assert engine.step() == []
    assert ids_of(engine.generate(tiny.prompts, GREEDY)) == reference(tiny)


@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError])
def test_a_step_that_fails_ends_those_that_ran(
    tiny: TinyModel, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """Their counters speak of K and V that were never computed; those who wait go on."""
    engine = make(tiny, max_num_seqs=1, trace=True)
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    engine.add_request(tiny.prompts[1], params)
    waiting = engine.add_request(tiny.prompts[2], params)
    engine.step()

    def fail(*args: Any) -> None:
        raise error

    monkeypatch.setattr(engine.runner.backend, "forward", fail)
    with pytest.raises((KeyboardInterrupt, OutOfMemoryError)):
        engine.step()
    monkeypatch.undo()
    done = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            done[output.request_id] = output.outputs[0].token_ids
    assert done == {waiting: tuple(tiny.oracle.greedy(tiny.prompts[2], 4))}
    assert engine.scheduler.manager.pool.num_free == 64


class TestSizes:
    def test_the_backend_chooses_the_block_size_unless_it_is_given(self, tiny: TinyModel) -> None:
        assert make(tiny).runner.cache.block_size == 16
        assert make(tiny, block_size=5).runner.cache.block_size == 5

    def test_rows_are_as_long_as_the_pool_allows(
        self, tiny: TinyModel, caplog: pytest.LogCaptureFixture
    ) -> None:
        engine = make(tiny, num_blocks=2)
        assert engine.max_model_len == engine.runner.batch.max_model_len == 32
        assert "max_model_len is limited to the 32 tokens of the pool" in caplog.text
        assert engine.kv_bytes() == engine.runner.cache.nbytes
        with pytest.raises(ConfigError, match="max_model_len is 64 tokens and the KV pool holds"):
            make(tiny, num_blocks=2, max_model_len=64)

    def test_more_samples_than_seats(self, tiny: TinyModel) -> None:
        with pytest.raises(InvalidRequestError, match=r"n is 5, more than max_num_seqs \(4\)"):
            make(tiny).generate(tiny.prompts[0], SamplingParams(n=5))

    def test_the_log_says_what_was_chosen(
        self, tiny: TinyModel, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO):
            make(tiny, attention_backend="triton", max_num_seqs=1)
        assert "attention backend triton, as asked" in caplog.text
        assert "step sizes recorded" in caplog.text

    def test_out_of_memory_in_a_step_has_a_type_and_leaves_nothing_behind(
        self, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = make(tiny)

        def fail(*args: Any) -> None:
            raise torch.OutOfMemoryError("injected")

        monkeypatch.setattr(engine.runner.backend, "forward", fail)
        with pytest.raises(OutOfMemoryError, match="a step does not fit cpu: injected"):
            engine.generate(tiny.prompts, GREEDY)
        monkeypatch.undo()
        assert engine.scheduler.manager.pool.num_free == 64
        again = engine.generate(tiny.prompts[1], SamplingParams(temperature=0, max_tokens=5))
        assert list(again[0].outputs[0].token_ids) == tiny.oracle.greedy(tiny.prompts[1], 5)
