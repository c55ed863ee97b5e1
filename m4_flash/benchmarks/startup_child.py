"""Builds one engine in this process and prints the seconds of each phase as JSON.

``python -m m4_flash.benchmarks.startup_child MODEL DTYPE DEVICE``; run by ``startup``.
"""

from __future__ import annotations

import json
import sys
import time

BEGIN = time.perf_counter()
"""Before torch and everything else that takes time to import."""

from common.request import SamplingParams  # noqa: E402
from m0_init.loader import LoadedModel  # noqa: E402
from m4_flash.engine import LLMEngine  # noqa: E402

PROMPT = {"cuda": 1024, "cpu": 128}
"""Tokens of the two requests, where the model takes as many; on a GPU more than any graph does."""


class TimedEngine(LLMEngine):
    """The engine, with a clock around reading the weights."""

    load_seconds = 0.0

    def load(self) -> LoadedModel:
        """As its parent."""
        begin = time.perf_counter()
        loaded = super().load()
        self.load_seconds = time.perf_counter() - begin
        return loaded


def measure(model: str, dtype: str, device: str) -> dict[str, float | str]:
    """Build an engine with default options, and serve two requests with it.

    Args:
        model: Local folder, hub id, or ``smollm2``.
        dtype: As ``--dtype``.
        device: As ``--device``.

    Returns:
        Seconds by phase, the backend's name, and the number of graphs.
    """
    begin = time.perf_counter()
    # A CPU's pool would be as large as its free memory.
    options = {} if device.startswith("cuda") else {"num_blocks": 256}
    engine = TimedEngine(model, dtype=dtype, device=device, **options)
    build = time.perf_counter() - begin
    graphs = engine.runner.graphs
    recording = graphs.seconds if graphs is not None else 0.0
    length = min(PROMPT[engine.device.type], engine.max_model_len // 4)
    return {
        "backend": engine.runner.backend.name,
        "num_graphs": len(graphs.buckets.all()) if graphs is not None else 0,
        "import": begin - BEGIN,
        "load": engine.load_seconds,
        "pool": build - engine.load_seconds - recording,
        "graphs": recording,
        "build": build,
        "first_request": first_token(engine, length),
        "second_request": first_token(engine, length),
    }


def first_token(engine: LLMEngine, length: int) -> float:
    """Seconds until one request has its first token."""
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    begin = time.perf_counter()
    engine.generate([[token % 1000 for token in range(length)]], params)
    return time.perf_counter() - begin


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])))
