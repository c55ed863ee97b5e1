"""Text from a growing list of token ids: what may be shown now, and what must wait.

A stream shows text that it can never take back. Two kinds of text must therefore wait.

**Half a character.** A token of a byte-level vocabulary is a piece of UTF-8, and one character may
need several tokens; decoded alone, each of them is U+FFFD. So tokens cannot be decoded one by one,
and decoding all of them at each step costs quadratic time. The way out is a window::

    ids      ... t4    t5 | t6    t7          t8 has just arrived
                   context   pending          `|` the last character border
    window             t5   t6    t7    t8

    1. text(window) is "…text of t5" + "new text" + perhaps "�": a "�" at the end may still become
       a character, everything before it is final.
    2. Show the final part that was not shown yet.
    3. When nothing waits, the border moves behind t8, and the window restarts at the old border.

Why keep context before the border at all? Because a token's text depends on its left neighbour.
A SentencePiece decoder strips the first space of whatever it is given, so that decoding " world"
alone glues words together ("Helloworld"), and byte-fallback decoders turn a run of byte tokens
into characters only as a whole. One step of context is enough, hence a constant number of tokens
per step. vLLM 0.33.0 keeps the same two offsets (``prefix_offset`` and ``read_offset``,
``vllm/tokenizers/detokenizer_utils.py``) for tokenizers that have no stream decoder of their own.

**What may become a stop string.** After "Obs" the next token may complete "Observation:", and then
"Obs" must not have been shown. vLLM (``vllm/v1/engine/detokenizer.py``) holds back the last
``max(len(stop)) - 1`` characters, whatever they are. Here only the longest suffix of the text that
is a proper prefix of some stop string waits: mostly nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from common.errors import InvalidRequestError

if TYPE_CHECKING:
    from common.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"
"""What decoders write for bytes that are not (or not yet) a character."""

MAX_WAITING_BYTES = 3
"""A UTF-8 character has at most four bytes, so at most three wait for the rest. Byte-level
decoders show them as one U+FFFD, byte-fallback decoders as one each."""

PROMPT_CONTEXT_TOKENS = 5
"""Tokens of the prompt that the first window starts with; vLLM takes as many."""

MAX_WINDOW_TOKENS = 16
"""A window longer than this, without a character border, is cut where bytes are plainly broken."""


class TextWindow:
    """Decodes token ids one at a time; every piece it returns is final.

    For byte-level tokenizers the pieces, and :meth:`flush` at the end, add up to exactly
    ``tokenizer.decode(output_ids)``. For SentencePiece they add up to what the output adds to the
    decoded prompt (its leading space included); only where such a tokenizer spells broken bytes,
    or U+FFFD itself, with byte tokens, the number of U+FFFD may differ.

    The window decodes few tokens per step: since the last two character borders, or at most about
    ``MAX_WINDOW_TOKENS`` in a run of broken bytes. Only a vocabulary whose tokens straddle
    characters again and again makes it grow for as long as that lasts, which never delays text.

    Args:
        tokenizer: Decodes windows of ids.
        prompt_token_ids: What the output continues.
        skip_special_tokens: Whether tokens like ``<|im_end|>`` have no text.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], skip_special_tokens: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._ids = self._prompt_context(prompt_token_ids)
        self._border = len(self._ids)  # index in _ids: before it, whole characters only
        self._shown = self._decode(self._ids)  # text of _ids that was returned (or is prompt)

    def append(self, token_id: int) -> str:
        """Add one token; returns the text that became final with it."""
        # A token without text must not enter the window: it is no context for its neighbour, and
        # a long run of them (an ignored EOS, say) would push the real context out.
        if self._tokenizer.is_skipped(token_id, self._skip_special_tokens):
            return ""
        self._ids.append(token_id)
        text, final = self._read()
        if not final.startswith(self._shown):
            # Byte-fallback only: a new byte token makes the whole run of byte tokens before it
            # unreadable until its character is complete, or for good if the byte is broken.
            if final != text and len(self._ids) - self._border <= MAX_WAITING_BYTES:
                return ""
            self._drop_context()
            text, final = self._read()
        new, self._shown = final[len(self._shown) :], final
        if final == text:
            del self._ids[: self._border]
            self._border, self._shown = len(self._ids), self._decode(self._ids)
        elif len(self._ids) > MAX_WINDOW_TOKENS:
            self._cut_broken_run(text)
        return new

    def flush(self) -> str:
        """The text still waiting: bytes that no longer can become a character, as U+FFFD."""
        text, _ = self._read()
        if not text.startswith(self._shown):  # byte-fallback, as in append
            self._drop_context()
            text, _ = self._read()
        new, self._shown = text[len(self._shown) :], text
        return new

    def _read(self) -> tuple[str, str]:
        """The text of the window, and the part of it that no later token can change."""
        text = self._decode(self._ids)
        broken = len(text) - len(text.rstrip(REPLACEMENT))
        return text, text[: len(text) - min(broken, MAX_WAITING_BYTES)]

    def _drop_context(self) -> None:
        """Start the window at the border: what stands before it no longer reads as it did."""
        del self._ids[: self._border]
        self._border, self._shown = 0, ""

    def _cut_broken_run(self, text: str) -> None:
        """Drop the head of a window of broken bytes, if its two parts read the same apart."""
        # One U+FFFD stands for three tokens at most, so that all those waiting are in the tail.
        keep = 3 * MAX_WAITING_BYTES
        head = self._decode(self._ids[:-keep])
        if self._shown.startswith(head) and head + self._decode(self._ids[-keep:]) == text:
            del self._ids[:-keep]
            self._border, self._shown = 0, self._shown[len(head) :]

    def _prompt_context(self, prompt_token_ids: Sequence[int]) -> list[int]:
        """The last tokens of the prompt that have text and end with a whole character.

        A character that the prompt leaves unfinished does not join the output: the output's text
        is a function of the output's ids, and the prompt only decides about its leading space.
        """
        context: list[int] = []
        for token_id in reversed(prompt_token_ids):
            if not self._tokenizer.is_skipped(token_id, self._skip_special_tokens):
                context.append(token_id)
            if len(context) == PROMPT_CONTEXT_TOKENS:
                break
        context.reverse()
        while context and self._decode(context).endswith(REPLACEMENT):
            context.pop()
        return context

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip_special_tokens)


class IncrementalDetokenizer:
    """The text of one sequence as it grows, cut at the first stop string.

    **Which stop string wins**: the one whose last character comes first in the text; of several
    that end at the same character, the one named first. It is the rule of vLLM's
    ``check_stop_strings`` (``vllm/v1/engine/detokenizer.py``), and it makes the result independent
    of how the text was cut into tokens. The text ends where the match begins, or where it ends
    with ``include_stop_str_in_output``; whatever else the last token said is dropped.

    Only new text is searched, together with the few characters before it that a match may begin
    in. Text of the first ``min_tokens`` tokens cannot complete a stop string, but a match may begin
    there.

    A token that ends the sequence by its id (EOS, ``stop_token_ids``) has no text in the output:
    the engine does not append it, unless ``include_stop_str_in_output`` is set.

    Args:
        tokenizer: The model's tokenizer. With None every text is "".
        prompt_token_ids: The prompt; its last tokens decide about a leading space.
        stop: Strings that end the output.
        include_stop_str_in_output: Keep the stop string in the text.
        skip_special_tokens: Leave tokens like ``<|im_end|>`` out of the text.
        min_tokens: Number of output tokens within which no stop string may end.

    Raises:
        InvalidRequestError: A stop string is empty, or there are stop strings and no tokenizer.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        prompt_token_ids: Sequence[int],
        *,
        stop: tuple[str, ...] = (),
        include_stop_str_in_output: bool = False,
        skip_special_tokens: bool = True,
        min_tokens: int = 0,
    ) -> None:
        if stop and tokenizer is None:
            raise InvalidRequestError("stop strings need a tokenizer, and this model has none")
        if "" in stop:
            raise InvalidRequestError("a stop string must not be empty")
        self.text = ""
        self.stop_match: str | None = None
        self._window = (
            None
            if tokenizer is None
            else TextWindow(tokenizer, prompt_token_ids, skip_special_tokens)
        )
        self._stop = stop
        self._include_stop = include_stop_str_in_output
        self._min_tokens = min_tokens
        self._num_tokens = 0
        # The end of the text so far that is the beginning of a stop string. It waits, unless a
        # match stays in the output: then nothing would ever be taken back.
        self._candidate = ""

    def append(self, token_id: int) -> str:
        """Add the next output token.

        Args:
            token_id: The sampled id.

        Returns:
            The text that may be shown now; often "" while characters or stop strings are open.
            The pieces add up to :attr:`text`. If :attr:`stop_match` is set afterwards, the
            sequence is over.
        """
        assert self.stop_match is None, "a sequence that met its stop string takes no more tokens"
        self._num_tokens += 1
        new = "" if self._window is None else self._window.append(token_id)
        return self._release(self._look_for_stop(new))

    def flush(self) -> str:
        """Release what is still held back, when the sequence ends for another reason.

        No stop string is looked for in it: the sequence is over already.

        Returns:
            The rest of the text; "" after a stop string.
        """
        if self.stop_match is not None or self._window is None:
            return ""
        held = "" if self._include_stop else self._candidate
        self._candidate = ""
        return self._release(held + self._window.flush())

    def _release(self, piece: str) -> str:
        self.text += piece
        return piece

    def _look_for_stop(self, new: str) -> str:
        """Returns the part of the waiting and the new text that can be shown."""
        if not self._stop or not new:
            return new
        old, text = self._candidate, self._candidate + new
        already_shown = len(old) if self._include_stop else 0
        if self._num_tokens > self._min_tokens:
            match = find_stop(text, len(old), self._stop)
            if match is not None:
                self.stop_match, start = match
                end = start + len(self.stop_match) if self._include_stop else start
                return text[already_shown:end]
        self._candidate = longest_open_stop(text, self._stop)
        if self._include_stop:
            return new
        return text[: len(text) - len(self._candidate)]


def find_stop(text: str, num_old: int, stop: tuple[str, ...]) -> tuple[str, int] | None:
    """Find the stop string that ends first, and behind the first ``num_old`` characters.

    Args:
        text: Searched text.
        num_old: Characters of it that were searched before: a match that ends there is none.
        stop: Stop strings; of two that end together the earlier in this tuple wins.

    Returns:
        The stop string and the index at which it begins, or None.
    """
    best: tuple[str, int] | None = None
    best_end = len(text) + 1
    for candidate in stop:
        start = text.find(candidate, max(0, num_old + 1 - len(candidate)))
        if start >= 0 and start + len(candidate) < best_end:
            best, best_end = (candidate, start), start + len(candidate)
    return best


def longest_open_stop(text: str, stop: tuple[str, ...]) -> str:
    """The longest end of ``text`` that begins a stop string without completing it ("" if none)."""
    longest = 0
    for candidate in stop:
        for length in range(min(len(candidate) - 1, len(text)), longest, -1):
            if text.endswith(candidate[:length]):
                longest = length
                break
    return text[len(text) - longest :]
