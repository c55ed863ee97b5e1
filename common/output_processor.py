"""From sampled ids to what the user sees: text, stop strings, :class:`RequestOutput`.

Stop ids are the engine's business, because they are ids; stop strings are this module's, because
a stop string may begin in one token and end in another. As in vLLM (``v1/engine/detokenizer.py``
and ``output_processor.py`` at 0.33.0), the text side finds the match and ends the sequence.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

from common.detokenizer import IncrementalDetokenizer
from common.outputs import CompletionOutput, RequestMetrics, RequestOutput
from common.request import Request, Sequence, SequenceStatus
from common.tokenizer import Tokenizer


class RequestState:
    """One request on its way through an engine: its sequences and the text they have become."""

    def __init__(
        self, request: Request, sequences: Seq[Sequence], tokenizer: Tokenizer | None
    ) -> None:
        """Start with no text.

        Args:
            request: What was asked for.
            sequences: Its ``n`` sequences, in order of index.
            tokenizer: None leaves every text empty.
        """
        params = request.sampling_params
        self.request, self.sequences = request, tuple(sequences)
        self.finished_time: float | None = None
        self.num_cached_tokens = 0
        self._detokenizers = [
            IncrementalDetokenizer(
                tokenizer,
                request.prompt_token_ids,
                stop=params.stop_strings,
                include_stop_str_in_output=params.include_stop_str_in_output,
                skip_special_tokens=params.skip_special_tokens,
                min_tokens=params.min_tokens,
            )
            for _ in self.sequences
        ]

    @property
    def finished(self) -> bool:
        """Whether every completion has ended."""
        for sequence in self.sequences:  # noqa: SIM110 (asked per token: no generator)
            if not sequence.is_finished:
                return False
        return True

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far, over all completions."""
        return sum(sequence.num_output_tokens for sequence in self.sequences)

    def on_token(self, sequence: Sequence) -> None:
        """Take the newest token of ``sequence`` into its text; a stop string ends the sequence.

        Call after :func:`common.stopping.check_stop`. The text of the token that ended the
        sequence (EOS or a stop id) is left out unless ``include_stop_str_in_output``.
        """
        text, params = self._detokenizers[sequence.index], sequence.sampling_params
        ended_by_token = sequence.status is SequenceStatus.FINISHED_STOPPED
        if not ended_by_token or params.include_stop_str_in_output:
            text.append(sequence.token_ids[-1])
            if text.stop_match is not None:
                sequence.finish(SequenceStatus.FINISHED_STOPPED, text.stop_match)
        if sequence.is_finished:
            self.close(sequence)

    def close(self, sequence: Sequence) -> None:
        """Release the text held back, and note the time when the whole request has ended."""
        detokenizer = self._detokenizers[sequence.index]
        if detokenizer.stop_match is None:
            detokenizer.flush()
        if self.finished and self.finished_time is None:
            times = [s.token_times[-1] for s in self.sequences if s.token_times]
            self.finished_time = max(times, default=self.request.arrival_time)

    def output(self) -> RequestOutput:
        """A snapshot of the request as it stands."""
        first = self.sequences[0]
        return RequestOutput(
            self.request.request_id,
            self.request.prompt,
            self.request.prompt_token_ids,
            tuple(self._completion(sequence) for sequence in self.sequences),
            self.finished,
            RequestMetrics(
                self.request.arrival_time,
                tuple(first.token_times),
                self.finished_time,
                self.num_cached_tokens,
            ),
        )

    def _completion(self, sequence: Sequence) -> CompletionOutput:
        wants_logprobs = sequence.sampling_params.logprobs is not None
        return CompletionOutput(
            sequence.index,
            self._detokenizers[sequence.index].text,
            tuple(sequence.output_token_ids),
            sequence.finish_reason,
            sequence.stop_reason,
            tuple(sequence.logprobs) if wants_logprobs else None,
        )
