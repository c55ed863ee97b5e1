"""M5 on a real GPU: chunks and decodes in one step, through graphs and without.

Every test skips itself elsewhere.
"""

from __future__ import annotations

from typing import Any

import pytest

from common.outputs import RequestOutput
from common.request import SamplingParams
from common.step_record import StepRecord
from common.testing.conformance import GREEDY, build, ids_of
from common.testing.fixtures import FAMILIES, NEW_TOKENS, TinyModel
from m2_batching.tests.helpers import run_all

pytestmark = pytest.mark.gpu

FILTERED = SamplingParams(seed=3, temperature=0.8, top_p=0.9, max_tokens=12, ignore_eos=True)


def make(model: TinyModel, **options: Any) -> Any:
    defaults = {"num_blocks": 64, "max_num_seqs": 8}
    return build("m5_chunked", model, device="cuda", **{**defaults, **options})


def poison(engine: Any) -> Any:
    """A place that is read without having been written shows in the ids."""
    engine.runner.cache.kv.fill_(float("nan"))
    return engine


def greedy(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)


def is_mixed(step: StepRecord) -> bool:
    """Whether a step computes a chunk beside a decode."""
    return {part.phase for part in step.slices} == {"prefill", "decode"}


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("budget", [16, 512])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_ids_equal_those_of_the_cpu(
    tiny_models: dict[str, TinyModel], family: str, budget: int, eager: bool
) -> None:
    """Prompts of 1, 7, 16 and 33 tokens: in chunks of 16, and all in one step."""
    model = tiny_models[family]
    engine = poison(make(model, max_num_batched_tokens=budget, enforce_eager=eager, trace=True))
    assert (engine.runner.graphs is None) == eager
    expected = [[tuple(model.oracle.greedy(prompt, NEW_TOKENS))] for prompt in model.prompts]
    assert ids_of(engine.generate(model.prompts, GREEDY)) == expected
    mixed = sum(is_mixed(step) for step in engine.trace)
    assert (mixed > 0) == (budget == 16)
    assert engine.scheduler.manager.pool.num_free == 64
    engine.trace.validate()


@pytest.mark.parametrize("budget", [5, 16, 17, 64])
def test_mixed_steps_run_through_graphs_and_say_what_they_padded(
    tiny: TinyModel, budget: int
) -> None:
    """Every step is as large as the bucket that holds it."""
    engine = poison(make(tiny, max_num_batched_tokens=budget, max_num_seqs=4, trace=True))
    replayed: list[int] = []
    replay = engine.runner.graphs.replay

    def spy(bucket: Any) -> Any:
        replayed.append(bucket.num_tokens)
        return replay(bucket)

    engine.runner.graphs.replay = spy
    outputs = engine.generate(tiny.prompts, greedy(20))
    assert ids_of(outputs) == [[tuple(tiny.oracle.greedy(p, 20))] for p in tiny.prompts]
    steps = list(engine.trace)
    assert [step.num_tokens + step.num_padding_tokens for step in steps] == replayed
    for step in steps:
        bucket = engine.runner.graphs.find(step.num_tokens, len(step.slices))
        assert bucket is not None, "all of these steps are small enough"
        assert step.num_padding_tokens == bucket.num_tokens - step.num_tokens
    padded = [step.num_padding_tokens for step in steps if is_mixed(step)]
    # 16 fills its bucket to the last token, and 64 holds all prompts in the first step.
    assert (sum(padded) > 0) == (budget in (5, 17))


def test_a_step_beyond_the_largest_graph_runs_eagerly(tiny: TinyModel) -> None:
    """2,400 tokens of six prompts beside two decodes are not padded."""
    engine = poison(
        make(tiny, max_num_batched_tokens=2402, max_num_seqs=8, num_blocks=256, trace=True,
             max_model_len=512)
    )  # fmt: skip
    prompts = [[(7 * i + k) % 256 for i in range(400)] for k in range(6)]
    names = [engine.add_request(prompt, greedy(8)) for prompt in tiny.prompts[:2]]
    for _ in range(2):
        engine.step()
    names += [engine.add_request(prompt, greedy(4)) for prompt in prompts]
    outputs = run_all(engine)
    large = [step for step in engine.trace if step.num_tokens == 2402]
    assert len(large) == 1
    assert is_mixed(large[0])
    assert large[0].num_padding_tokens == 0
    for name, prompt, tokens in zip(
        names, (*tiny.prompts[:2], *prompts), (8, 8, 4, 4, 4, 4, 4, 4), strict=True
    ):
        found = list(outputs[name].outputs[0].token_ids)
        if len(prompt) < 400:  # prompts of the fixtures have a margin at every step
            assert found == tiny.oracle.greedy(prompt, tokens)
        assert len(found) == tokens
    engine.trace.validate()


@pytest.mark.parametrize("backend", ["naive", "paged", "sdpa", "triton"])
def test_every_backend_runs_mixed_steps(tiny: TinyModel, backend: str) -> None:
    engine = poison(
        make(tiny, max_num_batched_tokens=12, attention_backend=backend, trace=True)
    )  # fmt: skip
    outputs = engine.generate(tiny.prompts, greedy(16))
    assert ids_of(outputs) == [[tuple(tiny.oracle.greedy(p, 16))] for p in tiny.prompts]
    assert any(is_mixed(step) for step in engine.trace)


def test_a_seed_gives_the_same_tokens_whatever_the_budget(tiny: TinyModel) -> None:
    """Noise of the device's sampler hangs on seed and position, not on the step."""
    params = [
        SamplingParams(seed=seed, temperature=0.7, max_tokens=12, ignore_eos=True)
        for seed in range(3)
    ] + [FILTERED]
    found = [
        ids_of(make(tiny, max_num_batched_tokens=budget).generate(tiny.prompts, params))
        for budget in (8, 20, 512)
    ]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("budget", [8, 24])
def test_a_pool_that_preempts_changes_no_token(tiny: TinyModel, budget: int) -> None:
    engine = poison(
        make(tiny, num_blocks=40, block_size=4, max_num_batched_tokens=budget, trace=True)
    )
    expected = [[tuple(tiny.oracle.greedy(p, NEW_TOKENS))] for p in tiny.prompts]
    assert ids_of(engine.generate(tiny.prompts, GREEDY)) == expected
    assert engine.scheduler.num_preemptions > 0
    engine.trace.validate()


def test_parallel_samples_fork_after_the_last_chunk(tiny: TinyModel) -> None:
    engine = poison(make(tiny, max_num_batched_tokens=9, trace=True))
    prompt = tiny.prompts[3]
    params = SamplingParams(n=3, seed=5, max_tokens=10, ignore_eos=True)
    (output,) = engine.generate(prompt, params)
    for i, completion in enumerate(output.outputs):
        single = SamplingParams(seed=5 + i, max_tokens=10, ignore_eos=True)
        (alone,) = engine.generate(prompt, single)
        assert completion.token_ids == alone.outputs[0].token_ids
    engine.trace.validate()


def test_streams_get_tokens_while_a_long_prompt_lands(tiny: TinyModel) -> None:
    """By the clock of the metrics, as the benchmark sees it."""
    prompt = [(5 * i) % 256 for i in range(480)]

    def land(engine: Any) -> tuple[RequestOutput, RequestOutput]:
        name = engine.add_request(tiny.prompts[1], greedy(64))
        for _ in range(4):
            engine.step()
        late = engine.add_request(prompt, greedy(1))
        outputs = run_all(engine)
        return outputs[name], outputs[late]

    stream, long = land(make(tiny, max_num_batched_tokens=32))
    first = long.metrics.token_times[0]
    meanwhile = [at for at in stream.metrics.token_times if long.metrics.arrival_time < at <= first]
    assert len(meanwhile) >= 15, "sixteen chunks of 31 tokens, a token of the stream after each"
