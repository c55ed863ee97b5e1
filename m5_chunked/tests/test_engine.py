"""The M5 engine: its face, its parts, what it refuses, and prompts longer than a step."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

import m5_chunked
from common.errors import ConfigError, InvalidRequestError, UnsupportedOptionError
from common.request import SamplingParams
from common.testing.conformance import GREEDY, build, ids_of
from common.testing.fixtures import FAMILIES, NEW_TOKENS, TinyModel
from m2_batching.step_engine import StepEngine
from m2_batching.tests.helpers import run_all
from m3_paged.kv_cache_manager import KVCacheManager
from m4_flash.backends.sdpa import SdpaBackend
from m4_flash.cuda_graph import Buckets, NullCapture
from m4_flash.draw import HostDraw
from m4_flash.runner import FlashRunner
from m5_chunked.engine import LLMEngine
from m5_chunked.scheduler import Scheduler

CONTROL_PLANE = ("cache_interface", "in_flight", "scheduler", "seats", "step_draft", "victims")


def make(model: TinyModel, **options: Any) -> Any:
    return build("m5_chunked", model, **{"num_blocks": 64, "max_num_seqs": 4, **options})


def greedy(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)


def reference(model: TinyModel, tokens: int = NEW_TOKENS) -> list[list[tuple[int, ...]]]:
    return [[tuple(model.oracle.greedy(prompt, tokens))] for prompt in model.prompts]


def slices(engine: Any) -> list[list[tuple[int, int, str]]]:
    """Who computes how many tokens of which phase, step by step, by sequence."""
    return [
        sorted((part.seq_id, part.num_tokens, part.phase) for part in step.slices)
        for step in engine.trace
    ]


def finish(engine: Any) -> None:
    """Nothing is left of what ran."""
    assert not engine.has_unfinished_requests()
    assert engine.scheduler.manager.pool.num_free == engine.runner.cache.num_blocks
    engine.trace.validate()


class TestFace:
    def test_the_package_offers_two_names(self) -> None:
        assert m5_chunked.__all__ == ["LLMEngine", "SamplingParams"]
        assert m5_chunked.LLMEngine is LLMEngine
        assert m5_chunked.SamplingParams is SamplingParams
        with pytest.raises(AttributeError, match="'m5_chunked' has no attribute 'Engine'"):
            _ = m5_chunked.Engine

    def test_naming_it_loads_no_torch(self) -> None:
        code = (
            "import sys, m5_chunked; print('torch' in sys.modules); "
            "m5_chunked.SamplingParams; print('torch' in sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout == "False\nFalse\n"

    def test_the_control_plane_runs_where_torch_cannot_be_imported(self) -> None:
        """Three steps of the real scheduler: a chunk, a chunk beside nobody, the last token."""
        code = f"""
import importlib, sys
sys.modules["torch"] = None
for name in {CONTROL_PLANE!r}:
    importlib.import_module("m5_chunked." + name)
from common.request import Request, SamplingParams, Sequence
from m2_batching.request_queue import make_queue
from m3_paged.kv_cache_manager import KVCacheManager
from m5_chunked.scheduler import Scheduler
one = Scheduler(
    make_queue("priority"), KVCacheManager(4, 4), max_num_seqs=2, max_num_batched_tokens=3,
    on_token=print,
)
one.add([Sequence(0, Request("r", tuple(range(8)), SamplingParams()))])
print([one.schedule().num_tokens for _ in range(3)])
"""
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout == "[3, 3, 2]\n"


class TestParts:
    def test_build_takes_the_newest_version_of_each_part(self, tiny: TinyModel) -> None:
        engine = make(tiny, trace=True)
        assert type(engine) is LLMEngine
        assert LLMEngine.__bases__ == (StepEngine,), "never a subclass of a subclass"
        assert type(engine.scheduler) is Scheduler
        assert type(engine.scheduler.manager) is KVCacheManager
        assert type(engine.runner) is FlashRunner
        assert type(engine.runner.backend) is SdpaBackend
        assert type(engine.runner.draw) is HostDraw
        assert engine.trace is not None
        info = engine.trace.info
        assert (info.stage, info.block_size, info.num_blocks) == ("m5_chunked", 16, 64)
        assert engine.kv_bytes() == engine.stats().kv_bytes == engine.runner.cache.nbytes

    def test_options_reach_the_scheduler(self, tiny: TinyModel) -> None:
        engine = make(
            tiny, max_num_batched_tokens=48, long_prefill_token_threshold=20, block_size=4
        )
        assert engine.scheduler.max_num_batched_tokens == 48
        assert engine.scheduler.long_prefill_token_threshold == 20
        assert engine.scheduler.manager.block_size == engine.runner.cache.block_size == 4

    def test_rows_are_as_long_as_the_pool_allows(self, tiny: TinyModel) -> None:
        engine = make(tiny, num_blocks=2)
        assert engine.max_model_len == engine.runner.batch.max_model_len == 32
        with pytest.raises(ConfigError, match="max_model_len is 64 tokens and the KV pool holds"):
            make(tiny, num_blocks=2, max_model_len=64)


class TestRefusals:
    def test_options_of_other_stages_by_name(self, tiny: TinyModel) -> None:
        for name, value, where in (
            ("enable_prefix_caching", True, "arrives with m6_prefix"),
            ("use_cache", True, "ended with m1_basic"),
            ("chunk_size", 512, "it has: .*long_prefill_token_threshold"),
        ):
            with pytest.raises(
                UnsupportedOptionError, match=f"m5_chunked has no option '{name}'.*{where}"
            ):
                make(tiny, **{name: value})

    def test_the_stage_below_has_no_threshold(self, tiny: TinyModel) -> None:
        with pytest.raises(UnsupportedOptionError, match="arrives with m5_chunked"):
            build("m4_flash", tiny, long_prefill_token_threshold=8)

    @pytest.mark.parametrize(
        ("name", "value"), [("max_num_batched_tokens", 0), ("long_prefill_token_threshold", -1)]
    )
    def test_values_out_of_range(self, tiny: TinyModel, name: str, value: int) -> None:
        with pytest.raises(ConfigError, match=f"{name} must be an integer of at least .*{value}"):
            make(tiny, **{name: value})

    def test_more_samples_than_seats(self, tiny: TinyModel) -> None:
        engine = make(tiny, trace=True)
        with pytest.raises(InvalidRequestError, match=r"n is 5, more than max_num_seqs \(4\)"):
            engine.generate(tiny.prompts[1], SamplingParams(n=5))
        assert not engine.has_unfinished_requests()
        (output,) = engine.generate(tiny.prompts[1], SamplingParams(n=4, max_tokens=3, seed=1))
        assert len(output.outputs) == 4
        finish(engine)


class TestChunks:
    @pytest.mark.parametrize("budget", [4, 5, 16, 17, 32, 33, 64])
    def test_a_budget_smaller_than_a_prompt(self, tiny: TinyModel, budget: int) -> None:
        """Prompts of 1, 7, 16 and 33 tokens, budgets around the longest and around a block."""
        engine = make(tiny, max_num_batched_tokens=budget, trace=True)
        engine.runner.cache.kv.fill_(float("nan"))
        outputs = engine.generate(tiny.prompts, greedy(12))
        assert ids_of(outputs) == reference(tiny, 12)
        tokens = [step.num_tokens for step in engine.trace]
        assert max(tokens) == min(budget, 57), "full steps, and never a token more"
        finish(engine)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_every_family(self, tiny_models: dict[str, TinyModel], family: str) -> None:
        model = tiny_models[family]
        engine = make(model, max_num_batched_tokens=8, block_size=4)
        assert ids_of(engine.generate(model.prompts, GREEDY)) == reference(model)

    @pytest.mark.parametrize("backend", ["naive", "paged", "sdpa"])
    def test_every_backend_reads_the_chunks_before(self, tiny: TinyModel, backend: str) -> None:
        engine = make(tiny, max_num_batched_tokens=6, attention_backend=backend, trace=True)
        engine.runner.cache.kv.fill_(float("nan"))
        assert ids_of(engine.generate(tiny.prompts, greedy(8))) == reference(tiny, 8)
        finish(engine)

    def test_our_kernels_run_mixed_steps_in_padded_graphs(self, tiny: TinyModel) -> None:
        """Triton's interpreter in the GPU's place: chunks and decodes in one bucket."""
        engine = make(
            tiny, attention_backend="triton", max_num_seqs=2, max_model_len=48, num_blocks=8,
            max_num_batched_tokens=9, trace=True, enforce_eager=True,
        )  # fmt: skip
        engine.runner.record_graphs(Buckets(2, 16), NullCapture())  # few: interpreted, it is slow
        engine.runner.cache.kv.fill_(float("nan"))
        prompts = [tiny.prompts[1], tiny.prompts[2]]
        outputs = engine.generate(prompts, greedy(3))
        assert ids_of(outputs) == [[tuple(tiny.oracle.greedy(p, 3))] for p in prompts]
        assert slices(engine) == [
            [(0, 7, "prefill"), (1, 2, "prefill")],
            [(0, 1, "decode"), (1, 8, "prefill")],
            [(0, 1, "decode"), (1, 6, "prefill")],
            [(1, 1, "decode")],
            [(1, 1, "decode")],
        ]
        padding = [step.num_padding_tokens for step in engine.trace]
        assert padding == [16 - 9, 16 - 9, 16 - 7, 0, 0]
        finish(engine)

    def test_streams_go_on_while_a_long_prompt_lands(self, tiny: TinyModel) -> None:
        """What the stage is for: every step that computes a chunk also decodes."""
        engine = make(tiny, max_num_batched_tokens=10, trace=True)
        names = [engine.add_request(prompt, greedy(12)) for prompt in tiny.prompts[:2]]
        for _ in range(3):
            engine.step()
        names.append(engine.add_request(tiny.prompts[3], greedy(4)))
        outputs = run_all(engine)
        for name, prompt, tokens in zip(
            names, (*tiny.prompts[:2], tiny.prompts[3]), (12, 12, 4), strict=True
        ):
            path = tiny.oracle.greedy(prompt, tokens)
            assert list(outputs[name].outputs[0].token_ids) == path
        chunked = [step for step in slices(engine) if any(part[0] == 2 for part in step)]
        both = [(0, 1, "decode"), (1, 1, "decode")]
        assert chunked[:5] == [[*both, (2, size, "prefill")] for size in (8, 8, 8, 8, 1)]
        finish(engine)

    def test_m4_stops_its_streams_for_the_same_prompt(self, tiny: TinyModel) -> None:
        engine = build("m4_flash", tiny, num_blocks=64, max_num_seqs=4, trace=True)
        engine.add_request(tiny.prompts[1], greedy(12))
        for _ in range(3):
            engine.step()
        engine.add_request(tiny.prompts[3], greedy(4))
        run_all(engine)
        alone = [step for step in slices(engine) if (1, 33, "prefill") in step]
        assert alone == [[(1, 33, "prefill")]]


class TestThreshold:
    def test_a_long_prompt_leaves_room_for_others(self, tiny: TinyModel) -> None:
        engine = make(tiny, max_num_batched_tokens=24, long_prefill_token_threshold=10, trace=True)
        outputs = engine.generate([tiny.prompts[3], tiny.prompts[2]], greedy(6))
        expected = [[tuple(tiny.oracle.greedy(p, 6))] for p in (tiny.prompts[3], tiny.prompts[2])]
        assert ids_of(outputs) == expected
        assert slices(engine)[:4] == [
            [(0, 10, "prefill"), (1, 10, "prefill")],
            [(0, 10, "prefill"), (1, 6, "prefill")],
            [(0, 10, "prefill"), (1, 1, "decode")],
            [(0, 3, "prefill"), (1, 1, "decode")],
        ]
        finish(engine)

    def test_without_it_the_first_takes_all(self, tiny: TinyModel) -> None:
        engine = make(tiny, max_num_batched_tokens=24, trace=True)
        engine.generate([tiny.prompts[3], tiny.prompts[2]], greedy(2))
        assert slices(engine)[:2] == [
            [(0, 24, "prefill")],
            [(0, 9, "prefill"), (1, 15, "prefill")],
        ]
        finish(engine)

    def test_alone_it_has_the_whole_budget(self, tiny: TinyModel) -> None:
        engine = make(tiny, max_num_batched_tokens=24, long_prefill_token_threshold=10, trace=True)
        engine.generate(tiny.prompts[3], greedy(2))
        assert [step[0][1] for step in slices(engine)[:2]] == [24, 9]
        finish(engine)
