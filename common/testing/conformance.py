"""One suite for the public surface of every engine. A stage subclasses it and adds what is new.

    class TestConformance(EngineConformance):
        stage = "m3_paged"
        below = "m2_batching"
        options = {"block_size": 4, "num_blocks": 64}

Everything runs in float32 on the CPU against ``transformers``. Ids have no tolerance: the prompts
are chosen so that the reference decides every step by a margin (float32 sums differ in the last
bit between batch shapes). The stage below must give the same outputs as well.
"""

from __future__ import annotations

import importlib
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch

from common.errors import ConfigError, FoloError, InvalidRequestError, UnsupportedOptionError
from common.outputs import RequestOutput
from common.request import SamplingParams
from common.testing.fixtures import FAMILIES, NEW_TOKENS, TinyModel

GREEDY = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)


def ids_of(outputs: list[RequestOutput]) -> list[list[tuple[int, ...]]]:
    """Token ids of every completion of every request."""
    return [[completion.token_ids for completion in output.outputs] for output in outputs]


class EngineConformance:
    """Subclass with ``stage`` (and ``below``, ``options``) set."""

    stage: ClassVar[str]
    below: ClassVar[str | None] = None
    options: ClassVar[dict[str, Any]] = {}
    below_options: ClassVar[dict[str, Any]] = {}

    @classmethod
    def make(cls, model: TinyModel, **options: Any) -> Any:
        """An engine of this stage on a tiny model, in float32 on the CPU."""
        return build(cls.stage, model, **{**cls.options, **options})

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, tiny: TinyModel) -> Any:
        """One engine for all checks that do not need options of their own."""
        return cls.make(tiny, trace=True)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_greedy_ids_equal_transformers(
        self, tiny_models: dict[str, TinyModel], family: str
    ) -> None:
        model = tiny_models[family]
        outputs = self.make(model).generate(model.prompts, GREEDY)
        expected = [[tuple(model.oracle.greedy(prompt, NEW_TOKENS))] for prompt in model.prompts]
        assert ids_of(outputs) == expected

    @pytest.mark.parametrize(
        "filters",
        [
            {},
            {"temperature": 0.6},
            {"temperature": 1.7, "top_k": 5},
            {"top_p": 0.8},
            {"temperature": 0.9, "top_k": 20, "top_p": 0.7},
            {"temperature": 1.3, "top_k": 1},
        ],
        ids=str,
    )
    def test_seeded_ids_equal_transformers(
        self, engine: Any, tiny: TinyModel, filters: dict[str, Any]
    ) -> None:
        prompt = tiny.prompts[2]
        params = SamplingParams(seed=7, max_tokens=24, ignore_eos=True, **filters)
        output = engine.generate(prompt, params)[0]
        expected = tiny.oracle.sample(prompt, 24, seed=7, **filters)
        assert output.outputs[0].token_ids == tuple(expected)

    def test_outputs_equal_the_stage_below(self, tiny: TinyModel) -> None:
        if self.below is None:
            pytest.skip("the lowest stage")
        params = [
            GREEDY,
            SamplingParams(seed=3, max_tokens=20, temperature=0.8, top_p=0.9),
            SamplingParams(max_tokens=12, n=2, frequency_penalty=0.5),
            SamplingParams(temperature=0, max_tokens=9, repetition_penalty=1.3),
        ]
        ours = self.make(tiny).generate(tiny.prompts, params)
        theirs = build(self.below, tiny, **self.below_options).generate(tiny.prompts, params)
        assert ids_of(ours) == ids_of(theirs)
        assert [o.outputs for o in ours] == [o.outputs for o in theirs]

    def test_a_seed_gives_the_same_tokens_alone_and_in_company(
        self, engine: Any, tiny: TinyModel
    ) -> None:
        params = [SamplingParams(seed=seed, max_tokens=16, ignore_eos=True) for seed in range(4)]
        together = engine.generate(tiny.prompts, params)
        alone = [engine.generate(p, s)[0] for p, s in zip(tiny.prompts, params, strict=True)]
        assert ids_of(together) == ids_of(alone)
        other = engine.generate(tiny.prompts[1], SamplingParams(seed=99, max_tokens=16))[0]
        assert other.outputs[0].token_ids != together[1].outputs[0].token_ids

    def test_unseeded_requests_repeat_in_a_new_engine_and_follow_its_seed(
        self, tiny: TinyModel
    ) -> None:
        params = SamplingParams(max_tokens=16, ignore_eos=True)
        first, again = (ids_of(self.make(tiny).generate(tiny.prompts, params)) for _ in range(2))
        assert first == again
        assert ids_of(self.make(tiny, seed=1).generate(tiny.prompts, params)) != first

    def test_parallel_sample_i_uses_seed_plus_i(self, engine: Any, tiny: TinyModel) -> None:
        prompt = tiny.prompts[1]
        output = engine.generate(prompt, SamplingParams(n=3, seed=5, max_tokens=12))[0]
        singles = [
            engine.generate(prompt, SamplingParams(seed=5 + i, max_tokens=12))[0].outputs[0]
            for i in range(3)
        ]
        assert [c.index for c in output.outputs] == [0, 1, 2]
        assert [c.token_ids for c in output.outputs] == [s.token_ids for s in singles]

    def test_max_tokens_and_one_token_prompt(self, engine: Any, tiny: TinyModel) -> None:
        output = engine.generate([[17]], SamplingParams(temperature=0, max_tokens=1))[0]
        assert len(output.outputs[0].token_ids) == 1
        assert output.outputs[0].finish_reason == "length"
        assert output.prompt_token_ids == (17,)
        assert output.finished

    def test_the_context_ends_the_sequence(self, tiny: TinyModel) -> None:
        engine = self.make(tiny, max_model_len=32)
        long, longest = list(range(1, 31)), list(range(1, 32))
        outputs = engine.generate([long, longest], GREEDY)
        assert [len(o.outputs[0].token_ids) for o in outputs] == [2, 1]
        assert {o.outputs[0].finish_reason for o in outputs} == {"length"}
        with pytest.raises(InvalidRequestError, match=r"32 tokens.*max_model_len \(32\)"):
            engine.generate([list(range(1, 33))], GREEDY)

    def test_eos_stops_unless_ignored(self, tiny: TinyModel) -> None:
        engine = self.make(tiny)
        path = tiny.oracle.greedy(tiny.prompts[0], NEW_TOKENS)
        eos = path[5]
        engine.eos_token_ids = engine.sampler.eos_token_ids = (eos,)
        end = path.index(eos) + 1
        stopped = engine.generate(tiny.prompts[0], SamplingParams(temperature=0, max_tokens=64))[0]
        completion = stopped.outputs[0]
        assert completion.token_ids == tuple(path[:end])
        assert (completion.finish_reason, completion.stop_reason) == ("stop", None)
        assert completion.text == tiny.tokenizer.decode(path[: end - 1])
        assert ids_of(engine.generate(tiny.prompts[0], GREEDY)) == [[tuple(path)]]

    def test_min_tokens_holds_eos_back(self, tiny: TinyModel) -> None:
        engine = self.make(tiny)
        path = tiny.oracle.greedy(tiny.prompts[0], NEW_TOKENS)
        engine.eos_token_ids = engine.sampler.eos_token_ids = (path[0],)
        params = SamplingParams(temperature=0, max_tokens=20, min_tokens=4)
        token_ids = engine.generate(tiny.prompts[0], params)[0].outputs[0].token_ids
        assert path[0] not in token_ids[:4]
        assert len(token_ids) >= 4

    def test_stop_token_ids(self, engine: Any, tiny: TinyModel) -> None:
        path = tiny.oracle.greedy(tiny.prompts[2], NEW_TOKENS)
        stop = path[7]
        params = SamplingParams(temperature=0, max_tokens=64, stop_token_ids=(stop,))
        completion = engine.generate(tiny.prompts[2], params)[0].outputs[0]
        assert completion.token_ids == tuple(path[: path.index(stop) + 1])
        assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)

    @pytest.mark.parametrize("include", [False, True])
    def test_a_stop_string_across_token_borders(
        self, engine: Any, tiny: TinyModel, include: bool
    ) -> None:
        path = tiny.oracle.greedy(tiny.prompts[3], NEW_TOKENS)
        text = tiny.tokenizer.decode(path)
        stop = next(text[i : i + 2] for i in range(4, 60) if text[i : i + 2].isprintable())
        cut = text.index(stop)
        params = SamplingParams(
            temperature=0, max_tokens=64, ignore_eos=True, stop=stop,
            include_stop_str_in_output=include,
        )  # fmt: skip
        completion = engine.generate(tiny.prompts[3], params)[0].outputs[0]
        assert completion.text == text[: cut + (2 if include else 0)]
        assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)
        assert len(completion.token_ids) < NEW_TOKENS

    def test_logprobs_are_those_of_the_raw_logits(self, engine: Any, tiny: TinyModel) -> None:
        prompt = tiny.prompts[1]
        params = SamplingParams(seed=1, max_tokens=5, logprobs=3, temperature=1.5, top_k=10)
        completion = engine.generate(prompt, params)[0].outputs[0]
        assert completion.logprobs is not None
        context = list(prompt)
        for token, entries in zip(completion.token_ids, completion.logprobs, strict=True):
            expected = torch.log_softmax(tiny.oracle.hidden_states(context).logits[-1], dim=-1)
            best = expected.topk(3).indices.tolist()
            assert set(entries) == {token, *best}
            for candidate, entry in entries.items():
                assert entry.logprob == pytest.approx(float(expected[candidate]), abs=1e-4)
                assert entry.rank == int((expected > expected[candidate]).sum()) + 1
                assert entry.decoded_token == tiny.tokenizer.token_text(candidate)
            context.append(token)

    def test_repetition_penalty_equals_transformers(self, engine: Any, tiny: TinyModel) -> None:
        prompt = tiny.prompts[2]
        params = SamplingParams(
            temperature=0, max_tokens=16, repetition_penalty=1.5, ignore_eos=True
        )
        output = engine.generate(prompt, params)[0]
        expected = tiny.oracle.greedy(prompt, 16, repetition_penalty=1.5)
        assert output.outputs[0].token_ids == tuple(expected)

    def test_a_strong_frequency_penalty_forbids_repeats(self, engine: Any, tiny: TinyModel) -> None:
        base = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
        free = engine.generate(tiny.prompts[0], base)[0].outputs[0].token_ids
        params = SamplingParams(
            temperature=0, max_tokens=40, ignore_eos=True, frequency_penalty=2.0,
            presence_penalty=2.0,
        )  # fmt: skip
        held = engine.generate(tiny.prompts[0], params)[0].outputs[0].token_ids
        assert max(held.count(t) for t in held) <= max(free.count(t) for t in free)
        assert held != free

    def test_streaming_equals_generate(self, engine: Any, tiny: TinyModel) -> None:
        params = SamplingParams(seed=2, max_tokens=20, ignore_eos=True)
        pieces = list(engine.stream(tiny.prompts[1], params))
        whole = engine.generate(tiny.prompts[1], params)[0]
        assert pieces[-1].outputs == whole.outputs
        assert [len(p.outputs[0].token_ids) for p in pieces] == list(range(1, 21))
        for early, late in pairwise(pieces):
            assert late.outputs[0].text.startswith(early.outputs[0].text)
        assert [p.finished for p in pieces] == [False] * 19 + [True]

    def test_closing_a_stream_aborts_and_leaves_the_engine_whole(self, tiny: TinyModel) -> None:
        engine = self.make(tiny, trace=True)
        stream = engine.stream(tiny.prompts[1], GREEDY)
        next(stream), next(stream)
        stream.close()
        assert engine.stats().num_requests == 1
        after = engine.generate(tiny.prompts[2], GREEDY)
        assert ids_of(after) == [[tuple(tiny.oracle.greedy(tiny.prompts[2], NEW_TOKENS))]]
        engine.trace.validate()

    def test_text_ids_and_chat_are_the_same_request(self, engine: Any, tiny: TinyModel) -> None:
        params = SamplingParams(temperature=0, max_tokens=6)
        messages = [{"role": "user", "content": "hi"}]
        ids = tiny.tokenizer.apply_chat_template(messages)
        by_ids, by_chat = engine.generate(ids, params)[0], engine.generate(messages, params)[0]
        assert by_chat.prompt_token_ids == by_ids.prompt_token_ids == tuple(ids)
        assert by_chat.outputs == by_ids.outputs
        text = engine.generate("hello", params)[0]
        assert text.prompt == "hello"
        assert text.prompt_token_ids == tuple(tiny.tokenizer.encode("hello"))

    def test_many_prompts_keep_their_order_and_their_parameters(
        self, engine: Any, tiny: TinyModel
    ) -> None:
        params = [
            SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (5, 1, 3, 2)
        ]
        outputs = engine.generate(tiny.prompts, params)
        assert [len(o.outputs[0].token_ids) for o in outputs] == [5, 1, 3, 2]
        assert [o.prompt_token_ids for o in outputs] == [tuple(p) for p in tiny.prompts]
        assert engine.generate([], GREEDY) == []
        with pytest.raises(InvalidRequestError, match="2 sampling_params for 4 prompts"):
            engine.generate(tiny.prompts, params[:2])

    @pytest.mark.parametrize(
        ("prompt", "message"),
        [
            ("", "empty"),
            ([[]], "empty"),
            ([[1, 100_000]], "100000.*vocabulary"),
            ([[-1]], "-1.*vocabulary"),
            ([[1.5]], "1.5"),
            ([[{"role": "user"}]], "content"),
        ],
        ids=str,
    )
    def test_bad_prompts_are_refused(self, engine: Any, prompt: Any, message: str) -> None:
        with pytest.raises(InvalidRequestError, match=message):
            engine.generate(prompt, GREEDY)

    def test_one_bad_prompt_refuses_the_call_before_anything_runs(
        self, engine: Any, tiny: TinyModel
    ) -> None:
        before = engine.stats().num_steps
        with pytest.raises(InvalidRequestError):
            engine.generate([tiny.prompts[0], [9_999]], GREEDY)
        assert engine.stats().num_steps == before

    def test_unknown_options_are_refused_by_name(self, tiny: TinyModel) -> None:
        with pytest.raises(UnsupportedOptionError, match="has no option 'cache_magic'"):
            self.make(tiny, cache_magic=1)
        with pytest.raises(ConfigError, match="max_model_len must be at most"):
            self.make(tiny, max_model_len=10**7)
        with pytest.raises(FoloError, match="dtype"):
            self.make(tiny, dtype="int3")

    def test_metrics_and_stats_count_what_happened(self, tiny: TinyModel) -> None:
        engine = self.make(tiny)
        outputs = engine.generate(
            tiny.prompts, SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
        )
        stats = engine.stats()
        assert stats.num_requests == 4
        assert stats.generated_tokens == 24
        assert stats.prompt_tokens == sum(map(len, tiny.prompts))
        assert stats.weight_bytes > 0
        assert stats.peak_memory_bytes > 0
        for output in outputs:
            metrics = output.metrics
            assert len(metrics.token_times) == 6
            assert metrics.ttft is not None
            assert metrics.ttft > 0
            assert metrics.tpot is not None
            assert metrics.tpot > 0
            assert len(metrics.itl) == 5
            assert metrics.finished_time == metrics.token_times[-1]

    def test_the_trace_is_consistent_and_tells_the_tokens(self, tiny: TinyModel) -> None:
        engine = self.make(tiny, trace=True)
        params = SamplingParams(seed=4, max_tokens=7, n=2, ignore_eos=True)
        outputs = engine.generate(tiny.prompts[:2], params)
        engine.trace.validate()
        traced = sorted(engine.trace.output_token_ids(s) for s in engine.trace.sequences)
        assert traced[-4:] == sorted(ids for row in ids_of(outputs) for ids in row)
        again = self.make(tiny, trace=True)
        again.generate(tiny.prompts[:2], params)
        assert again.trace == engine.trace

    def test_no_trace_unless_asked(self, tiny: TinyModel) -> None:
        assert self.make(tiny).trace is None


def build(stage: str, model: TinyModel, **options: Any) -> Any:
    """An engine of ``stage`` on a tiny model: float32 on the CPU, unless ``options`` say more."""
    engine = importlib.import_module(f"{stage}.engine").LLMEngine
    return engine(str(model.folder), **{"device": "cpu", "dtype": "float32", **options})
