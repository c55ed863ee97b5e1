"""When a sequence ends by its tokens (stop strings live with the text, in the output processor)."""

from __future__ import annotations

from common.request import Sequence, SequenceStatus


def check_stop(sequence: Sequence, eos_token_ids: tuple[int, ...], max_model_len: int) -> None:
    """Finish ``sequence`` if its newest token says so. Call once per appended token.

    Order, as in vLLM 0.33.0 (``v1/core/sched/utils.py``, ``check_stop``): EOS, then stop ids, then
    length, so that an EOS in the last place counts as ``stop``. ``min_tokens`` holds back the
    first two, never the limits: a cache has no place ``max_model_len``.

    Args:
        sequence: Has at least one output token.
        eos_token_ids: The model's end-of-sequence ids.
        max_model_len: Longest prompt plus output.
    """
    params, last = sequence.sampling_params, sequence.token_ids[-1]
    num_output_tokens = sequence.num_output_tokens
    if num_output_tokens >= params.min_tokens:
        if last in eos_token_ids and not params.ignore_eos:
            sequence.finish(SequenceStatus.FINISHED_STOPPED)
            return
        if last in params.stop_token_ids:
            sequence.finish(SequenceStatus.FINISHED_STOPPED, last)
            return
    if num_output_tokens >= params.max_tokens or sequence.num_tokens >= max_model_len:
        sequence.finish(SequenceStatus.FINISHED_LENGTH_CAPPED)
