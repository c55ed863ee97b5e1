"""The M1 engine: prefill the prompt, then one forward pass per token, one request at a time.

The loop of every later stage is here in its smallest form: compute the tokens whose K and V are
missing, sample after the last of them, append, repeat. M2 runs it for many sequences at once.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Generator, Mapping
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from common.config import EngineConfig, refuse_unknown_options
from common.devices import GIB
from common.errors import InvalidRequestError, OutOfMemoryError
from common.inputs import InputProcessor, Prompt, params_list, prompt_list
from common.output_processor import RequestState
from common.outputs import EngineStats, RequestOutput
from common.request import Request, SamplingParams, Sequence, SequenceStatus
from common.stats import StatsRecorder, peak_memory_bytes
from common.step_record import Admission, Finish, ScheduledSlice
from common.stopping import check_stop
from common.trace import Trace, TraceInfo
from m0_init.loader import load
from m1_basic.attention import CachedAttend, UncachedAttend
from m1_basic.kv_cache import ContiguousKVCache
from m1_basic.sampler import Sampler

logger = logging.getLogger(__name__)

STAGE = "m1_basic"


class LLMEngine:
    """Generates for one request at a time; the surface is the one every later stage keeps."""

    def __init__(
        self,
        model: str | Path = "smollm2",
        *,
        dtype: str = "auto",
        device: str = "auto",
        max_model_len: int | None = None,
        use_cache: bool = True,
        seed: int = 0,
        trace: bool = False,
        **unknown: object,
    ) -> None:
        """Load the model and reserve the cache.

        Args:
            model: Local folder, hub id, or ``smollm2``.
            dtype: Element type of weights and KV; ``auto`` takes the stored one.
            device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``.
            max_model_len: Longest prompt plus output; the model's own by default.
            use_cache: False recomputes the whole sequence for every token, to show the difference.
            seed: Seed of requests that carry none.
            trace: Record every step in :attr:`trace`.
            **unknown: Refused by name: an option of a later stage, or of none.

        Raises:
            FoloError: A child that says which option, file or size is wrong.
        """
        refuse_unknown_options(STAGE, unknown)
        options = {
            "model": str(model),
            "dtype": dtype,
            "device": device,
            "max_model_len": max_model_len,
            "use_cache": use_cache,
            "seed": seed,
            "trace": trace,
        }
        self.config = EngineConfig.from_options(STAGE, options)
        loaded = load(self.config.model, dtype=self.config.dtype, device=self.config.device)
        self.model, self.tokenizer, self.device = loaded.model, loaded.tokenizer, loaded.device
        self.folder = loaded.folder
        self.max_model_len = loaded.config.resolve_max_model_len(max_model_len)
        self.eos_token_ids = loaded.config.eos_token_ids
        self.inputs = InputProcessor(loaded.config, self.tokenizer, self.max_model_len)
        self.sampler = Sampler(
            seed, self.eos_token_ids, self.tokenizer.token_text if self.tokenizer else None
        )
        self.cache = (
            ContiguousKVCache(self.model.kv_spec(), self.max_model_len, self.device)
            if use_cache
            else None
        )
        self.trace = Trace(TraceInfo(STAGE, kv_cache=use_cache)) if trace else None
        self.recorder = StatsRecorder()
        self._next_seq_id = 0
        self._serving: str | None = None  # the one request whose K and V the cache holds
        logger.info(
            "%s as %s on %s, %.2f GiB read in %.1f s; KV cache of %d tokens, %.2f GiB",
            loaded.config.architecture, loaded.dtype, self.device,
            loaded.report.num_bytes / GIB, loaded.report.seconds,
            self.max_model_len if use_cache else 0, self._kv_bytes() / GIB,
        )  # fmt: skip

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
            InvalidRequestError: Some prompt or parameter cannot be served (all are checked before
                the first one runs), or a stream is still open.
            OutOfMemoryError: The device has no room for a pass.
        """
        items = prompt_list(prompts)
        params = params_list(sampling_params, len(items))
        requests = [
            self.inputs.make_request(prompt, each, chat_template_kwargs=chat_template_kwargs)
            for prompt, each in zip(items, params, strict=True)
        ]
        outputs = []
        # disable=None: no bar where the output is not a terminal, nor for a single request.
        for request in tqdm(requests, unit="req", disable=None if len(requests) > 1 else True):
            state = self._new_state(request)
            for _ in self._run(state):  # no snapshot per token: their ids would add up to n²/2
                pass
            outputs.append(state.output())
        return outputs

    def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> Generator[RequestOutput, None, None]:
        """Complete one prompt and yield after every token, text and ids cumulative.

        The request is checked now and starts at the first ``next()``. Closing the iterator early
        aborts it. Until one stream has ended, no other request can start: there is one cache.

        Args:
            prompt: Text, token ids or chat messages.
            sampling_params: The defaults where None.
            chat_template_kwargs: Passed to the chat template.

        Raises:
            InvalidRequestError: The prompt or a parameter cannot be served; at the first
                ``next()``: another stream is still open.
            OutOfMemoryError: At a ``next()``: the device has no room for a pass.
        """
        request = self.inputs.make_request(
            prompt, sampling_params or SamplingParams(), chat_template_kwargs=chat_template_kwargs
        )
        return self._outputs(self._new_state(request))

    def stats(self) -> EngineStats:
        """Counts and times since the engine was built."""
        return self.recorder.snapshot(
            weight_bytes=self.model.weight_bytes(),
            kv_bytes=self._kv_bytes(),
            peak_memory_bytes=peak_memory_bytes(str(self.device)),
        )

    def _kv_bytes(self) -> int:
        return self.cache.nbytes if self.cache is not None else 0

    def _new_state(self, request: Request) -> RequestState:
        """The ``n`` sequences of a request, not started."""
        count = request.sampling_params.n
        sequences = [Sequence(self._next_seq_id + i, request, i) for i in range(count)]
        self._next_seq_id += count
        return RequestState(request, sequences, self.tokenizer)

    def _outputs(self, state: RequestState) -> Generator[RequestOutput, None, None]:
        """Snapshots of a running request, one per token."""
        with contextlib.closing(self._run(state)) as steps:
            for _ in steps:
                yield state.output()

    def _run(self, state: RequestState) -> Generator[None, None, None]:
        """One request, its completions after each other; yields after every token.

        Raises:
            InvalidRequestError: Another request has not ended: it owns the cache.
        """
        if self._serving is not None:
            raise InvalidRequestError(
                f"{STAGE} serves one request at a time: end or close the stream of request "
                f"{self._serving} first"
            )
        self._serving = state.request.request_id
        try:
            for sequence in state.sequences:
                sequence.status = SequenceStatus.RUNNING
                while not sequence.is_finished:
                    self._step(sequence, state)
                    yield
        finally:
            self._serving = None
            for sequence in state.sequences:
                if not sequence.is_finished:
                    self._abort(sequence, state)
                self.sampler.release(sequence)
            self.recorder.on_finished(state)

    def _abort(self, sequence: Sequence, state: RequestState) -> None:
        """End a sequence whose reader has gone (or whose pass failed)."""
        started = sequence.status is SequenceStatus.RUNNING
        sequence.finish(SequenceStatus.FINISHED_ABORTED)
        state.close(sequence)
        if self.trace is not None and started and sequence.seq_id in self.trace.sequences:
            self.trace.record(running=(sequence.seq_id,), finished=(_finish(sequence),))

    def _step(self, sequence: Sequence, state: RequestState) -> None:
        """Compute what is missing, sample one token, decide whether that was the last."""
        begin = time.perf_counter()
        known, prefill = sequence.num_tokens, sequence.num_output_tokens == 0
        start = sequence.num_computed_tokens if self.cache is not None else 0
        logits = self._forward(sequence.token_ids[start:], start)
        sequence.num_computed_tokens = known
        sampled = self.sampler(logits, [sequence])
        now = time.perf_counter()
        sequence.append(sampled.token_ids[0], now)
        if sampled.logprobs[0] is not None:
            sequence.logprobs.append(sampled.logprobs[0])
        check_stop(sequence, self.eos_token_ids, self.max_model_len)
        state.on_token(sequence)
        self.recorder.on_step(
            now - begin, prefill=prefill, num_tokens=known - start, end=now, slices=[(start, known)]
        )
        if self.trace is not None:
            self._record(sequence, start, known, (now - begin) * 1e3)

    @torch.inference_mode()
    def _forward(self, token_ids: list[int], start: int) -> Tensor:
        """Run the model over ``token_ids`` at positions ``start …``.

        Returns:
            Logits after the last token, ``[1, vocab_size]``.

        Raises:
            OutOfMemoryError: The device has no room for the activations.
        """
        attend = CachedAttend(self.cache, start) if self.cache is not None else UncachedAttend()
        try:
            ids = torch.tensor(token_ids, device=self.device)
            positions = torch.arange(start, start + len(token_ids), device=self.device)
            hidden = self.model(ids, positions, attend)
            return self.model.logits(hidden[-1:])
        except RuntimeError as error:
            # A GPU raises torch.OutOfMemoryError, the CPU's allocator its plain parent.
            if not (isinstance(error, torch.OutOfMemoryError) or "allocate" in str(error)):
                raise
            raise OutOfMemoryError(
                f"a pass over {len(token_ids)} tokens (context {start + len(token_ids)}) does not "
                f"fit {self.device}: naive attention keeps the whole score matrix"
            ) from error

    def _record(self, sequence: Sequence, start: int, known: int, elapsed_ms: float) -> None:
        """Add one step to the trace; counters are those before the step."""
        assert self.trace is not None
        seq_id, first = sequence.seq_id, known == sequence.num_prompt_tokens
        if first:
            self.trace.add_sequence(sequence)
        part = ScheduledSlice.of(
            sequence,
            start=start,
            num_tokens=known - start,
            num_known_tokens=known,
            token_ids=(sequence.token_ids[-1],),
        )
        self.trace.record(
            waiting=(seq_id,) if first else (),
            running=() if first else (seq_id,),
            admitted=(Admission(seq_id),) if first else (),
            slices=(part,),
            finished=(_finish(sequence),) if sequence.is_finished else (),
            elapsed_ms=elapsed_ms,
        )


def _finish(sequence: Sequence) -> Finish:
    reason = sequence.finish_reason
    assert reason is not None
    return Finish(sequence.seq_id, reason)
