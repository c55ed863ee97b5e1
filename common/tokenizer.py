"""Text to token ids and back, and the chat template, on top of a Hugging Face tokenizer.

Encoding and templates are left to ``transformers``; this module adds typed errors, and the few
questions an engine asks that ``transformers`` answers slowly or not at all. Importing it loads
neither ``transformers`` nor torch: both come with the first tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import CheckpointError, InvalidRequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Message = Mapping[str, Any]
"""One turn of a chat: ``{"role": ..., "content": ...}``, plus whatever the template reads."""


def has_tokenizer(path: str | Path) -> bool:
    """Tell whether a model folder carries a tokenizer (tiny test checkpoints have none).

    Args:
        path: A model folder.
    """
    folder = Path(path)
    if (folder / "tokenizer.json").is_file() or (folder / "tokenizer.model").is_file():
        return True
    return (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()


class Tokenizer:
    """A model's tokenizer: ``encode``, ``decode`` and the chat template.

    Attributes:
        vocab_size: Number of ids the tokenizer knows, added tokens included. A model's embedding
            is often padded beyond it (Qwen3: 151,936 rows for 151,669 tokens).
        eos_token_id: The token that ends a turn, or None when the tokenizer names none.
    """

    def __init__(self, hf_tokenizer: PreTrainedTokenizerFast) -> None:
        """Wrap a loaded tokenizer; :meth:`from_pretrained` is the usual way in."""
        self._hf = hf_tokenizer
        # The Rust object behind the wrapper. Detokenisation calls decode twice per generated
        # token, and the wrapper's own decode costs four times as much as this one.
        self._backend = hf_tokenizer.backend_tokenizer
        self.vocab_size: int = len(hf_tokenizer)
        self.eos_token_id: int | None = hf_tokenizer.eos_token_id
        added = self._backend.get_added_tokens_decoder()
        self._special_ids = frozenset(i for i, token in added.items() if token.special)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Tokenizer:
        """Load the tokenizer of a local model folder; the network is never asked.

        Args:
            path: A model folder, see :func:`common.hub.resolve_model`.

        Raises:
            CheckpointError: The folder has no tokenizer files, or they cannot be read.
        """
        if not has_tokenizer(path):
            raise CheckpointError(f"{path} holds no tokenizer (looked for tokenizer.json)")
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        try:
            # trust_remote_code=False is spelled out: left open, transformers asks at the terminal.
            loaded = AutoTokenizer.from_pretrained(
                str(path), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # the Rust parser raises plain Exception on a broken file
            reason = " ".join(str(error).split())
            raise CheckpointError(f"cannot read the tokenizer of {path}: {reason}") from error
        if not isinstance(loaded, PreTrainedTokenizerFast):
            raise CheckpointError(
                f"the tokenizer of {path} ({type(loaded).__name__}) has no tokenizer.json form"
            )
        return cls(loaded)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Turn text into token ids.

        Args:
            text: The text. Names of special tokens in it (``<|im_end|>``) become those tokens.
            add_special_tokens: Add what the tokenizer puts around a text, for instance a BOS
                token. Off for text that a chat template already dressed.

        Raises:
            InvalidRequestError: The text is not valid Unicode (it holds half a surrogate pair, as
                the bytes of a command line that are not UTF-8 do).
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidRequestError(
                f"the text is not valid Unicode: lone surrogate {text[error.start]!a} "
                f"at character {error.start}"
            ) from None
        ids = self._hf.encode(text, add_special_tokens=add_special_tokens, verbose=False)
        return list(ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Turn token ids into text.

        Bytes that are no UTF-8 come out as U+FFFD; ids that the tokenizer does not know (the
        padding rows of the embedding) have no text. Unlike ``transformers``' own ``decode``, no
        spaces are cleaned up afterwards: what a later token says never changes earlier text.

        Args:
            ids: Token ids, each at least 0.
            skip_special_tokens: Leave out tokens like ``<|im_end|>``.
        """
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def token_text(self, token_id: int) -> str:
        """The text of one token by itself, special tokens included, as logprobs show it.

        A token that is part of a character shows as U+FFFD; one unknown to the tokenizer as "".
        """
        return self.decode((token_id,), skip_special_tokens=False)

    def is_skipped(self, token_id: int, skip_special_tokens: bool = True) -> bool:
        """Tell whether :meth:`decode` leaves this id out, whatever stands beside it."""
        if skip_special_tokens and token_id in self._special_ids:
            return True
        return self._backend.id_to_token(token_id) is None

    @property
    def has_chat_template(self) -> bool:
        """Whether chat messages can be given to this model."""
        return self._hf.chat_template is not None

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        **template_kwargs: Any,
    ) -> list[int]:
        """Turn a conversation into the token ids that the model was trained to see.

        Args:
            messages: The turns, oldest first, each with a ``role`` and a ``content``.
            add_generation_prompt: End with the opening of an assistant turn.
            **template_kwargs: Options of this model's template, for instance
                ``enable_thinking=False`` for Qwen3.

        Raises:
            InvalidRequestError: The model has no template, the messages are malformed, the
                template refuses them, or it does not know one of ``template_kwargs``.
        """
        text = self.render_chat_template(messages, add_generation_prompt, **template_kwargs)
        return self.encode(text, add_special_tokens=False)

    def render_chat_template(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        **template_kwargs: Any,
    ) -> str:
        """The text that :meth:`apply_chat_template` encodes (same arguments, same errors)."""
        if not self.has_chat_template:
            raise InvalidRequestError(
                "this model's tokenizer has no chat template: give it plain text or token ids"
            )
        _check_messages(messages)
        self._check_template_kwargs(template_kwargs)
        from jinja2 import TemplateError

        try:
            text = self._hf.apply_chat_template(
                [dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
                **template_kwargs,
            )
        except (TemplateError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise InvalidRequestError(
                f"the chat template refused the messages: {reason}"
            ) from error
        return str(text)

    def _check_template_kwargs(self, template_kwargs: Mapping[str, Any]) -> None:
        """Refuse an option the template never reads: Jinja would ignore it without a word."""
        template = str(self._hf.chat_template)
        for name in template_kwargs:
            if re.search(rf"\b{re.escape(name)}\b", template) is None:
                raise InvalidRequestError(f"this model's chat template has no option {name!r}")


def _check_messages(messages: object) -> None:
    """Raise InvalidRequestError unless ``messages`` is a non-empty list of role and content."""
    if not isinstance(messages, (list, tuple)):
        raise InvalidRequestError(
            f"chat messages must be a list of {{role, content}}, got {type(messages).__name__}"
        )
    if not messages:
        raise InvalidRequestError("chat messages must not be empty")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise InvalidRequestError(
                f"messages[{index}] must be a mapping with role and content, "
                f"got {type(message).__name__}"
            )
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not role:
            raise InvalidRequestError(f"messages[{index}] needs a text 'role', got {role!r}")
        # An assistant turn that only calls tools carries no content.
        if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
            raise InvalidRequestError(
                f"messages[{index}] needs a text 'content', got {type(content).__name__}"
            )
