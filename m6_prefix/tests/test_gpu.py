"""M6 on a real GPU: hits read by compiled kernels, in eager steps and in recorded ones.

Every test skips itself elsewhere.
"""

from __future__ import annotations

from typing import Any

import pytest

from common.request import SamplingParams
from common.testing.conformance import GREEDY, build, ids_of
from common.testing.fixtures import FAMILIES, NEW_TOKENS, TinyModel

pytestmark = pytest.mark.gpu


def make(model: TinyModel, **options: Any) -> Any:
    return build("m6_prefix", model, device="cuda", **{"num_blocks": 64, "trace": True, **options})


def reference(model: TinyModel) -> list[list[tuple[int, ...]]]:
    return [[tuple(model.oracle.greedy(prompt, NEW_TOKENS))] for prompt in model.prompts]


def cached(outputs: list[Any]) -> list[int]:
    return [output.metrics.num_cached_tokens for output in outputs]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"enable_prefix_caching": False},
        {"prefix_index": "tree", "enforce_eager": True},
        {"attention_backend": "sdpa"},
        {"num_blocks": 40, "block_size": 4, "max_num_batched_tokens": 260},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_ids_equal_those_of_the_cpu(
    tiny_models: dict[str, TinyModel], family: str, options: dict[str, Any]
) -> None:
    """Cold, and again from the cache; blocks of NaN until they are written."""
    model = tiny_models[family]
    engine = make(model, **options)
    engine.runner.cache.kv.fill_(float("nan"))
    for _ in range(2):
        assert ids_of(engine.generate(model.prompts, GREEDY)) == reference(model)
    hits = engine.manager.stats().hit_tokens
    assert (hits > 0) == options.get("enable_prefix_caching", True)
    engine.manager.check()
    engine.trace.validate()


@pytest.mark.parametrize("eager", [False, True])
def test_equal_prompts_of_one_step_share(tiny: TinyModel, eager: bool) -> None:
    """Each layer stores the whole batch before anybody attends, in a graph as well."""
    engine = make(tiny, enforce_eager=eager, block_size=16)
    assert (engine.runner.graphs is None) == eager
    engine.runner.cache.kv.fill_(float("nan"))
    prompt = tiny.prompts[3]  # 33 tokens
    outputs = engine.generate([prompt] * 4, GREEDY)
    assert cached(outputs) == [0, 32, 32, 32]
    first = engine.trace.steps[0]
    assert [(part.start, part.num_tokens) for part in first.slices] == [(0, 33)] + [(32, 1)] * 3
    expected = [tuple(tiny.oracle.greedy(prompt, NEW_TOKENS))]
    assert ids_of(outputs) == [expected] * 4


def test_hits_go_through_graphs(tiny: TinyModel) -> None:
    """A hit leaves one token to compute: a recorded step of one token, as a decode is."""
    engine = make(tiny)
    assert engine.runner.graphs is not None
    prompt = tiny.prompts[3]
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    expected = [tuple(tiny.oracle.greedy(prompt, 6))]
    assert ids_of(engine.generate(prompt, params)) == [expected]
    begin = len(engine.trace)
    found: list[Any] = []
    real = engine.runner.graphs.find

    def watched(*size: int) -> Any:
        found.append(real(*size))
        return found[-1]

    engine.runner.graphs.find = watched
    outputs = engine.generate(prompt, params)
    assert (ids_of(outputs), cached(outputs)) == ([expected], [32])
    assert found
    assert None not in found, "every step of a hit is recorded"
    assert engine.trace[begin].num_tokens == 1


def test_a_seed_gives_the_same_ids_cold_and_cached(tiny: TinyModel) -> None:
    params = [SamplingParams(seed=seed, max_tokens=20, ignore_eos=True) for seed in range(4)]
    on, off = make(tiny), make(tiny, enable_prefix_caching=False)
    expected = ids_of(off.generate(tiny.prompts, params))
    for _ in range(2):
        assert ids_of(on.generate(tiny.prompts, params)) == expected


def test_samples_of_a_cached_prompt(tiny: TinyModel) -> None:
    on, off = make(tiny, block_size=4), make(tiny, block_size=4, enable_prefix_caching=False)
    params = SamplingParams(n=3, seed=5, max_tokens=12, ignore_eos=True)
    expected = ids_of(off.generate(tiny.prompts[3], params))
    outputs = [on.generate(tiny.prompts[3], params) for _ in range(2)]
    assert [ids_of(each) for each in outputs] == [expected, expected]
    assert cached(outputs[1]) == [28]


def test_a_pool_that_preempts_and_evicts(tiny: TinyModel) -> None:
    engine = make(tiny, num_blocks=9)
    engine.runner.cache.kv.fill_(float("nan"))
    for _ in range(2):
        assert ids_of(engine.generate(tiny.prompts, GREEDY)) == reference(tiny)
    stats = engine.manager.stats()
    assert engine.scheduler.num_preemptions > 0
    assert stats.evicted_blocks > 0
    engine.manager.check()


def test_salts_never_meet(tiny: TinyModel) -> None:
    engine, prompt = make(tiny), tiny.prompts[3]
    hits = []
    for salt in ("a", "b", "a"):
        name = engine.add_request(prompt, GREEDY, cache_salt=salt)
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    assert output.request_id == name
                    hits.append(output.metrics.num_cached_tokens)
                    assert ids_of([output]) == [[tuple(tiny.oracle.greedy(prompt, NEW_TOKENS))]]
    assert hits == [0, 0, 32]
