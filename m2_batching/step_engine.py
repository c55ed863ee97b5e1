"""The engine loop of every stage from here on: schedule, launch, update.

A stage subclasses :class:`StepEngine` and overrides :meth:`StepEngine.build`, its table of
contents: which scheduler, which memory, which runner. The surface and the loop stay.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from tqdm import tqdm

from common.config import EngineConfig, options_of
from common.errors import InvalidRequestError, OutOfMemoryError
from common.garbage import freeze_imports
from common.inputs import InputProcessor, Prompt, params_list, prompt_list
from common.output_processor import RequestState
from common.outputs import EngineStats, RequestOutput
from common.request import Request, SamplingParams, Sequence
from common.stats import StatsRecorder, peak_memory_bytes
from common.stopping import check_stop
from common.trace import Trace, TraceInfo
from m0_init.loader import LoadedModel, load
from m1_basic.sampler import Sampler
from m2_batching.plan import SchedulerOutput
from m2_batching.step_interfaces import StepRunner, StepScheduler
from m2_batching.step_loop import StepLoop
from m2_batching.step_trace import StepTracer


class StepEngine(ABC):
    """Serves many requests at once, one step after the other.

    Attributes:
        config: The options it was built with.
        max_model_len: Longest prompt plus output.
        eos_token_ids: The model's end-of-sequence ids.
        scheduler: Decides each step.
        runner: Computes each step.
        loop: The order in which these are called.
        sampler: Draws the tokens.
    """

    stage: ClassVar[str]
    shares_prefixes: ClassVar[bool] = False

    scheduler: StepScheduler
    runner: StepRunner

    def __init_subclass__(cls) -> None:
        """Give the constructor the signature of the stage's options, for ``help()``."""
        super().__init_subclass__()
        keyword = inspect.Parameter.KEYWORD_ONLY
        rows = [row for row in options_of(cls.stage) if row.name != "model"]
        cls.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(
                    "model", inspect.Parameter.POSITIONAL_OR_KEYWORD, default="smollm2"
                ),
                *(inspect.Parameter(row.name, keyword, default=row.default) for row in rows),
            ]
        )

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Freeze before there is an engine: one that is frozen itself would never be freed."""
        freeze_imports()
        return super().__new__(cls)

    def __init__(self, model: str | Path = "smollm2", **options: Any) -> None:
        """Load the model and reserve memory.

        Args:
            model: Local folder, hub id, or ``smollm2``.
            **options: The options of this stage; see :mod:`common.config`. Others are refused by
                name.

        Raises:
            FoloError: A child that says which option, file or size is wrong.
        """
        self.config = EngineConfig.from_options(self.stage, {"model": str(model), **options})
        loaded = self.load()
        self.model, self.tokenizer, self.device = loaded.model, loaded.tokenizer, loaded.device
        self.max_model_len = loaded.config.resolve_max_model_len(self.config.max_model_len)
        self.eos_token_ids = loaded.config.eos_token_ids
        self.inputs = InputProcessor(loaded.config, self.tokenizer, self.max_model_len)
        text = self.tokenizer.token_text if self.tokenizer else None
        self.sampler = Sampler(self.config.seed, self.eos_token_ids, text)
        self._states: dict[str, RequestState] = {}
        self.recorder = StatsRecorder()
        self._next_seq_id = 0
        self.loop = StepLoop(self)
        info = self.build(loaded)
        self.tracer = StepTracer(info) if self.config.trace else None

    def load(self) -> LoadedModel:
        """Read the checkpoint; a stage with numeric ops or linear layers of its own hands them in.

        Raises:
            FoloError: A child that says which file, option or size is wrong.
        """
        return load(self.config.model, dtype=self.config.dtype, device=self.config.device)

    @abstractmethod
    def build(self, loaded: LoadedModel) -> TraceInfo:
        """Choose this stage's parts: set :attr:`scheduler` and :attr:`runner`, perhaps the loop.

        Returns:
            What a trace of this engine says of itself.
        """

    def kv_bytes(self) -> int:
        """Bytes reserved for K and V, used or not."""
        return self.runner.cache.nbytes

    @property
    def trace(self) -> Trace | None:
        """The steps so far; None unless the engine was built with ``trace=True``."""
        return self.tracer.trace if self.tracer is not None else None

    def add_request(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Queue one request.

        Args:
            prompt: Text, token ids or chat messages.
            sampling_params: The defaults where None.
            priority: Smaller is served first, with ``policy="priority"``.
            cache_salt: From M6 on, shares cached prefixes only with requests of the same salt.
            chat_template_kwargs: Passed to the chat template.

        Returns:
            The request's id.

        Raises:
            InvalidRequestError: The prompt or a parameter cannot be served, the policy knows no
                priorities, or the stage has no prefixes to keep apart.
        """
        policy = self.config.scheduler.policy
        if priority and policy != "priority":
            raise InvalidRequestError(f"priority is {priority}, and the policy is {policy}")
        if cache_salt is not None and not self.shares_prefixes:
            raise InvalidRequestError(
                f"cache_salt is {cache_salt!r}, and {self.stage} shares no prefixes"
            )
        request = self.inputs.make_request(
            prompt,
            sampling_params or SamplingParams(),
            priority=priority,
            cache_salt=cache_salt,
            chat_template_kwargs=chat_template_kwargs,
        )
        self.check_request(request)
        sequences = []
        for index in range(request.sampling_params.n):
            sequences.append(Sequence(self._next_seq_id, request, index))
            self._next_seq_id += 1
        self._states[request.request_id] = RequestState(request, sequences, self.tokenizer)
        if self.tracer is not None:
            for sequence in sequences:
                self.tracer.on_add(sequence)
        self.scheduler.add(sequences)
        return request.request_id

    def check_request(self, request: Request) -> None:  # noqa: B027 (a hook, not a duty)
        """Refuse what this stage can never serve, beyond the limits of the model; here nothing.

        Raises:
            InvalidRequestError: In stages with such limits.
        """

    def cached_tokens(self, sequence: Sequence) -> int:
        """Prompt tokens that a sequence did not have to compute: none before M6."""
        return 0

    def has_unfinished_requests(self) -> bool:
        """Whether a step would do anything."""
        return self.scheduler.has_unfinished()

    def step(self, *, only_finished: bool = False) -> list[RequestOutput]:
        """Run one step.

        Args:
            only_finished: Leave the others out: a snapshot copies all ids and times of a request,
                and nobody may want it before the end.

        Returns:
            The state of every request that got a token, finished ones included.

        Raises:
            OutOfMemoryError: Not even one sequence fits the device.
        """
        return [state.output() for state in self._step() if state.finished or not only_finished]

    def _step(self) -> list[RequestState]:
        """One step without snapshots: copying every request's ids each step would be quadratic."""
        try:
            touched = self.loop.step()
        except torch.OutOfMemoryError as error:
            self.on_out_of_memory(error)
            if self.tracer is not None:
                self.tracer.failed(self.scheduler)
            return []
        except BaseException:  # an interrupt too: the step was planned, and did not run
            self.on_failed_step()
            raise
        return self._collect(touched)

    def on_failed_step(self) -> None:
        """End the requests that were running: their counters speak of K and V that do not exist."""
        self.loop.forget()
        for request_id in dict.fromkeys(s.request.request_id for s in self.scheduler.running):
            self.abort(request_id)

    def on_planned(self, plan: SchedulerOutput) -> None:
        """Note what sequences that begin did not have to compute."""
        for item in plan.new:
            if item.sequence.index == 0:
                state = self._states[item.sequence.request.request_id]
                state.num_cached_tokens = self.cached_tokens(item.sequence)

    def on_out_of_memory(self, error: Exception) -> None:
        """A step did not fit the device. Without a way to shrink, that ends the run.

        Raises:
            OutOfMemoryError: Always, unless a stage overrides it.
        """
        self.on_failed_step()
        raise OutOfMemoryError(f"a step does not fit {self.device}: {error}") from error

    def abort(self, request_id: str) -> None:
        """End a request in whatever state it is. An unknown or finished id does nothing."""
        state = self._states.pop(request_id, None)
        if state is None:
            return
        for sequence in state.sequences:
            if not sequence.is_finished:
                self.scheduler.abort(sequence)
                state.close(sequence)
                if self.tracer is not None:
                    self.tracer.on_abort(sequence)
            self.sampler.release(sequence)
        self.recorder.on_finished(state)
        if not self.has_unfinished_requests():
            self.loop.drain()

    def generate(
        self,
        prompts: Prompt | Seq[Prompt],
        sampling_params: SamplingParams | Seq[SamplingParams] | None = None,
        *,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Complete one prompt or many, in order. A progress bar shows where stderr is a terminal.

        Args:
            prompts: Text, token ids or chat messages; one, or a list of them.
            sampling_params: One for all prompts, or one each; the defaults where None.
            chat_template_kwargs: Passed to the chat template, such as ``enable_thinking``.

        Returns:
            One output per prompt, in the order given.

        Raises:
            InvalidRequestError: Some prompt or parameter cannot be served; nothing has run then.
        """
        items = prompt_list(prompts)
        params = params_list(sampling_params, len(items))
        ids: list[str] = []
        try:
            for prompt, each in zip(items, params, strict=True):
                ids.append(
                    self.add_request(prompt, each, chat_template_kwargs=chat_template_kwargs)
                )
            done = self._run_until_done(ids)
        finally:  # whatever ended the run early, nothing of it stays behind
            for request_id in ids:
                self.abort(request_id)
        return [done[request_id] for request_id in ids]

    def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> Iterator[RequestOutput]:
        """Complete one prompt and yield after every token, text and ids cumulative.

        Other requests advance in the same steps. The request is checked and queued now; closing
        the iterator early aborts it.

        Args:
            prompt: Text, token ids or chat messages.
            sampling_params: The defaults where None.
            chat_template_kwargs: Passed to the chat template.

        Raises:
            InvalidRequestError: The prompt or a parameter cannot be served.
        """
        request_id = self.add_request(
            prompt, sampling_params, chat_template_kwargs=chat_template_kwargs
        )
        outputs = self._stream(self._states[request_id])
        next(outputs)  # into its try block: from here on, closing the iterator aborts
        return outputs

    def stats(self) -> EngineStats:
        """Counts and times since the engine was built."""
        return self.recorder.snapshot(
            weight_bytes=self.model.weight_bytes(),
            kv_bytes=self.kv_bytes(),
            peak_memory_bytes=peak_memory_bytes(str(self.device)),
        )

    def on_token(self, sequence: Sequence) -> None:
        """The scheduler's question after each token: was that the last one?"""
        check_stop(sequence, self.eos_token_ids, self.max_model_len)
        self._states[sequence.request.request_id].on_token(sequence)

    def _collect(self, touched: list[Sequence]) -> list[RequestState]:
        """The requests of some sequences; those that have finished are forgotten here."""
        states = []
        for request_id in dict.fromkeys(s.request.request_id for s in touched):
            state = self._states[request_id]
            states.append(state)
            if state.finished:
                del self._states[request_id]
                self.recorder.on_finished(state)
        for sequence in touched:
            if sequence.is_finished:
                self.sampler.release(sequence)
        return states

    def _run_until_done(self, ids: list[str]) -> dict[str, RequestOutput]:
        """Step until all of ``ids`` have finished; returns their last outputs."""
        wanted, done = set(ids), dict[str, RequestOutput]()
        hide = None if len(ids) > 1 else True
        with tqdm(total=len(ids), unit="req", disable=hide) as bar:
            while len(done) < len(wanted):
                for state in self._step():
                    request_id = state.request.request_id
                    if state.finished and request_id in wanted:
                        done[request_id] = state.output()
                        bar.update()
                if not bar.disable:
                    bar.set_postfix_str(self.recorder.pace())
        return done

    def _stream(self, state: RequestState) -> Iterator[RequestOutput]:
        """The request as it stands, then again whenever it has more tokens."""
        shown = 0
        try:
            yield state.output()
            while not state.finished:
                if state.num_output_tokens == shown:
                    self._step()
                if state.num_output_tokens > shown:
                    shown = state.num_output_tokens
                    yield state.output()
            if state.num_output_tokens > shown:
                yield state.output()
        finally:
            self.abort(state.request.request_id)
