"""Engines with small blocks on a tiny model, and what the tests read off them."""

from __future__ import annotations

from typing import Any

from common.request import SamplingParams
from common.testing.conformance import build
from common.testing.fixtures import TinyModel
from m2_batching.tests.helpers import run_all

OFF: dict[str, Any] = {"enable_prefix_caching": False}


def make(model: TinyModel, stage: str = "m6_prefix", **options: Any) -> Any:
    """Blocks of 4, so that prompts of 7, 16 and 33 tokens have 1, 4 and 8 full ones."""
    defaults = {"num_blocks": 64, "block_size": 4, "max_num_seqs": 8, "trace": True}
    return build(stage, model, **{**defaults, **options})


def greedy(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)


def serve(engine: Any, prompt: list[int], tokens: int = 3, salt: str | None = None) -> Any:
    """Serve one prompt alone; its output."""
    name = engine.add_request(prompt, greedy(tokens), cache_salt=salt)
    return run_all(engine)[name]


def cached(output: Any) -> int:
    return int(output.metrics.num_cached_tokens)


def computed(engine: Any, since: int = 0) -> list[list[tuple[int, int, int]]]:
    """Per step: (seq_id, first position, tokens) of each slice."""
    steps = engine.trace.steps[since:]
    return [[(part.seq_id, part.start, part.num_tokens) for part in step.slices] for step in steps]


def finish(engine: Any) -> None:
    """Nothing is owned by what ran."""
    assert not engine.has_unfinished_requests()
    engine.manager.check()
    assert engine.manager.pool.num_free == engine.runner.cache.num_blocks
    engine.trace.validate()
