"""From what a user passes to ``generate`` to checked :class:`~common.request.Request` objects."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast

from common.errors import InvalidRequestError
from common.model_config import ModelConfig
from common.request import Request, SamplingParams
from common.tokenizer import Message, Tokenizer

Prompt: TypeAlias = str | Sequence[int] | Sequence[Message]
"""Text, token ids, or a conversation of ``{"role": …, "content": …}`` messages."""


class InputProcessor:
    """Tokenises and checks prompts against one model's limits."""

    def __init__(
        self, config: ModelConfig, tokenizer: Tokenizer | None, max_model_len: int
    ) -> None:
        """Remember the limits.

        Args:
            config: The model's architecture (for its vocabulary).
            tokenizer: None for a checkpoint without one, which then takes token ids only.
            max_model_len: Longest prompt plus output.
        """
        self.config, self.tokenizer, self.max_model_len = config, tokenizer, max_model_len
        self._next_id = 0

    def make_request(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> Request:
        """Turn one prompt into a request with a fresh id.

        Args:
            prompt: Text, token ids or chat messages.
            params: Sampling parameters.
            priority: Smaller is served first under the priority policy.
            cache_salt: Shares cached prefixes only with requests of the same salt.
            chat_template_kwargs: Passed to the chat template, such as ``enable_thinking``.

        Raises:
            InvalidRequestError: The prompt is empty, too long, holds ids outside the vocabulary,
                or needs a tokenizer that the model does not have.
        """
        text = prompt if isinstance(prompt, str) else None
        ids = self._token_ids(prompt, chat_template_kwargs or {})
        self._check(ids, params)
        now, name = time.perf_counter(), str(self._next_id)
        request = Request(name, tuple(ids), params, text, now, priority, cache_salt)
        self._next_id += 1
        return request

    def _token_ids(self, prompt: Prompt, template: Mapping[str, Any]) -> list[int]:
        if isinstance(prompt, str):
            return self._need_tokenizer().encode(prompt)
        items = list(prompt)
        if items and all(isinstance(item, Mapping) for item in items):
            messages = [dict(cast("Message", item)) for item in items]
            return self._need_tokenizer().apply_chat_template(messages, **template)
        if set(map(type, items)) <= {int}:  # the usual case, without a look at each
            return cast("list[int]", items)
        for item in items:
            if isinstance(item, bool) or not isinstance(item, int):
                raise InvalidRequestError(
                    f"a prompt must be text, token ids or chat messages; it holds {item!r}"
                )
        return cast("list[int]", items)

    def _check(self, ids: Sequence[int], params: SamplingParams) -> None:
        vocab = self.config.vocab_size
        if not ids:
            raise InvalidRequestError("the prompt is empty: it has no token to continue from")
        for what, tokens in (("prompt", ids), ("stop_token_ids", params.stop_token_ids)):
            if not tokens or (min(tokens) >= 0 and max(tokens) < vocab):
                continue
            for token in tokens:
                if not 0 <= token < vocab:
                    raise InvalidRequestError(
                        f"{what} holds token id {token}, outside the vocabulary [0, {vocab})"
                    )
        if len(ids) >= self.max_model_len:
            raise InvalidRequestError(
                f"the prompt has {len(ids)} tokens; with one token of output it exceeds "
                f"max_model_len ({self.max_model_len})"
            )
        if params.stop_strings and self.tokenizer is None:
            raise InvalidRequestError("stop strings need a tokenizer, and this model has none")

    def _need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise InvalidRequestError("this model has no tokenizer: pass token ids")
        return self.tokenizer


def prompt_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Tell one prompt from many: text, a flat list of ids, and a list of messages are one."""
    if isinstance(prompts, str):
        return [prompts]
    items = list(prompts)
    if not items:
        return []
    if isinstance(items[0], (int, Mapping)):
        return [cast("Prompt", items)]
    return cast("list[Prompt]", items)


def params_list(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int
) -> list[SamplingParams]:
    """One set of parameters for each of ``count`` prompts: one for all, or one each.

    Raises:
        InvalidRequestError: A list of another length.
    """
    if params is None:
        params = SamplingParams()
    if isinstance(params, SamplingParams):
        return [params] * count
    if len(params) != count:
        raise InvalidRequestError(f"{len(params)} sampling_params for {count} prompts")
    return list(params)
