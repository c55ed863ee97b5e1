"""Runs a scenario on the real engines. What they decide does not depend on the machine.

The model is a tiny random Qwen3, made anew each time. Every request generates exactly
``max_tokens`` tokens, greedily, so that no step depends on what is sampled; the ids themselves
are read by prompts that quote an answer, and by nothing else.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.request import SamplingParams
from common.testing.checkpoints import tiny_config, write_checkpoint
from common.trace import Trace
from tools.docs_build.errors import DocsError
from tools.scenarios.catalogue import RequestSpec, Run, Scenario

VOCAB = 320
_FIRST_ID = 4
_MOST_STEPS = 500


def make_model(folder: Path) -> Path:
    """Write the model that all scenarios are recorded with."""
    return write_checkpoint(folder / "model", tiny_config("qwen3", vocab=VOCAB))


def record(scenario: Scenario, model: Path) -> list[Trace]:
    """Serve a scenario's requests with each of its engines.

    Args:
        scenario: The scenario.
        model: What :func:`make_model` returned.

    Returns:
        One validated trace per run.

    Raises:
        DocsError: A prompt cannot be read, or the requests do not come to an end.
        FoloError: The engine refuses an option or a request.
    """
    traces = []
    for run in scenario.run:
        trace = _Serving(scenario, run, model).trace()
        trace.validate()
        traces.append(trace)
    return traces


class _Serving:
    """One engine, and the requests that are still to come."""

    def __init__(self, scenario: Scenario, run: Run, model: Path) -> None:
        build: Callable[..., Any] = importlib.import_module(run.stage).LLMEngine
        self.scenario, self.run = scenario, run
        self.engine = build(model, device="cpu", trace=True, **run.options)
        self.ids: dict[int, str] = {}  # request of the scenario to that of the engine
        self.answers: dict[str, tuple[int, ...]] = {}

    def trace(self) -> Trace:
        """Serve everything and return what was recorded."""
        if not hasattr(self.engine, "add_request"):  # M1 takes one request at a time
            for spec in self.scenario.request:
                self.engine.generate([self._prompt(spec)], self._params(spec))
            return self._recorded()
        for step in range(_MOST_STEPS):
            self._arrive_and_leave(step)
            all_came = len(self.ids) == len(self.scenario.request)
            if all_came and not self.engine.has_unfinished_requests():
                return self._recorded()
            for output in self.engine.step(only_finished=True):
                self.answers[output.request_id] = output.outputs[0].token_ids
        raise DocsError(f"scenario {self.scenario.id!r} does not end in {_MOST_STEPS} steps")

    def _recorded(self) -> Trace:
        trace: Trace = self.engine.trace
        return trace

    def _arrive_and_leave(self, step: int) -> None:
        for number, spec in enumerate(self.scenario.request):
            if number in self.ids:
                if spec.abort_at == step:
                    self.engine.abort(self.ids[number])
                continue
            if step < spec.at or (spec.after is not None and not self._has_ended(spec.after)):
                continue
            options = self.run.options
            priority = spec.priority if options.get("policy") == "priority" else 0
            self.ids[number] = self.engine.add_request(
                self._prompt(spec), self._params(spec), priority=priority
            )

    def _has_ended(self, number: int) -> bool:
        return self.ids.get(number) in self.answers

    def _params(self, spec: RequestSpec) -> SamplingParams:
        if spec.n > 1:
            return SamplingParams(
                n=spec.n, temperature=1.0, seed=0, max_tokens=spec.max_tokens, ignore_eos=True
            )
        return SamplingParams(temperature=0.0, max_tokens=spec.max_tokens, ignore_eos=True)

    def _prompt(self, spec: RequestSpec) -> list[int]:
        """The ids of a prompt's parts.

        Raises:
            DocsError: A part is not ``name:number``, or quotes an answer that is not there.
        """
        ids: list[int] = []
        for part in spec.prompt.split():
            name, _, number = part.partition(":")
            if not number.isdigit():
                raise DocsError(f"scenario {self.scenario.id!r}: prompt part {part!r}")
            if name == "answer":
                if not self._has_ended(int(number)):
                    raise DocsError(
                        f"scenario {self.scenario.id!r} quotes the answer of request {number}, "
                        "which has none; wait for it with after"
                    )
                ids += self.answers[self.ids[int(number)]]
            else:
                ids += [_token(f"{name}:{i}") for i in range(int(number))]
        return ids


def _token(name: str) -> int:
    return _FIRST_ID + zlib.crc32(name.encode()) % (VOCAB - _FIRST_ID)
