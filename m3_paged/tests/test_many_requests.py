"""Two hundred requests with random aborts, in a pool a third of what they need."""

from __future__ import annotations

import random

from common.outputs import RequestOutput
from common.request import SamplingParams
from common.testing.conformance import build
from common.testing.fixtures import TinyModel

SIZE, COUNT = 4, 200


def workload(tiny: TinyModel) -> list[tuple[list[int], SamplingParams]]:
    """Greedy on prompts whose path no rounding changes, seeded on random ones, some with n > 1."""
    rng = random.Random(7)
    requests = []
    for i in range(COUNT):
        tokens = rng.randint(1, 10)
        if i % 4 == 0:
            params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
            requests.append((tiny.prompts[i // 4 % 4], params))
        else:
            prompt = [rng.randrange(256) for _ in range(rng.randint(1, 30))]
            n = rng.choice([1, 1, 1, 2, 3])
            params = SamplingParams(seed=i, n=n, max_tokens=tokens, ignore_eos=True)
            requests.append((prompt, params))
    return requests


def blocks_needed(prompt: list[int], params: SamplingParams) -> int:
    """Blocks of a request that runs to its end without sharing."""
    return params.n * -(-(len(prompt) + params.max_tokens) // SIZE)


def test_all_finish_or_abort_nothing_leaks_and_every_token_is_that_of_a_solo_run(
    tiny: TinyModel,
) -> None:
    requests = workload(tiny)
    pool = sum(blocks_needed(*request) for request in requests) // 3
    engine = build(
        "m3_paged", tiny, num_blocks=pool, block_size=SIZE, max_num_seqs=COUNT * 2, trace=True
    )
    names = {engine.add_request(*request): request for request in requests}
    rng = random.Random(3)
    last: dict[str, RequestOutput] = {}
    aborted: set[str] = set()
    while engine.has_unfinished_requests():
        for output in engine.step():
            assert output.request_id not in aborted
            last[output.request_id] = output
        if rng.random() < 0.5:
            victim = rng.choice(list(names))
            if victim not in last or not last[victim].finished:
                aborted.add(victim)
                engine.abort(victim)
    manager = engine.scheduler.manager
    manager.check()
    assert manager.pool.num_free == pool
    engine.trace.validate()
    assert engine.stats().num_requests == COUNT
    assert engine.scheduler.num_preemptions > 20
    assert 5 < len(aborted) < COUNT // 2
    assert {name for name in names if name not in aborted} == {
        name for name, output in last.items() if output.finished
    }
    roomy = build("m3_paged", tiny, num_blocks=1000, block_size=SIZE)
    for name, output in last.items():
        prompt, params = names[name]
        alone = roomy.generate(prompt, params)[0].outputs
        for ours, solo in zip(output.outputs, alone, strict=True):
            assert ours.token_ids == solo.token_ids[: len(ours.token_ids)]
            assert name in aborted or len(ours.token_ids) == params.max_tokens
