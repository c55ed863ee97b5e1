"""A chat of eight turns: the time to the first token of each turn, with and without caching.

Every turn sends the whole conversation again. Without caching its first token comes later and
later; with it only what is new is computed: the user's words, the template around them, and at
most a block at the end of the reply before. The text is real and goes through the chat template,
so a template that rewrites earlier turns would show here as missing hits.

A model without a chat template (the random stand-in) chats in token ids of stated lengths.
"""

from __future__ import annotations

import random
from argparse import Namespace
from dataclasses import dataclass, field
from typing import Any, Protocol

from common.inputs import Prompt
from common.outputs import CompletionOutput
from common.request import SamplingParams
from common.results import Result, Row, make_result, row
from common.workload import DEFAULT_VOCAB
from m6_prefix.benchmarks.engines import FirstToken, first_token, forget, options, settings
from m6_prefix.engine import LLMEngine

SYSTEM = (
    "You are a patient teacher. Answer in two or three short sentences, use plain words, and give "
    "an example from daily life where it helps."
)
TURNS = (
    "What is a cache, and why does a computer have more than one?",
    "Can you explain the same thing with a kitchen as the example?",
    "Who decides what is thrown away when the cache is full?",
    "What would happen if it always threw away the newest thing instead of the oldest?",
    "Is that rule the same for a web browser?",
    "How do people measure whether a cache is any good?",
    "Give me one case in which a cache makes a program slower.",
    "Summarise our conversation in one sentence that I can remember.",
)


ONE_ENGINE_NOTE = (
    "one engine: without caching means with enable_prefix_caching off; both see the same prompts, "
    "and the replies are those of the cached conversation"
)


class Chat(Protocol):
    """A conversation that grows turn by turn."""

    def ask(self, turn: int) -> Prompt:
        """The prompt of the next turn: everything so far and one more question."""
        ...

    def answer(self, completion: CompletionOutput) -> None:
        """Take the reply into the conversation."""
        ...


@dataclass
class TextChat:
    """Messages through the model's chat template."""

    messages: list[dict[str, str]] = field(
        default_factory=lambda: [{"role": "system", "content": SYSTEM}]
    )

    def ask(self, turn: int) -> Prompt:
        """The next of :data:`TURNS`."""
        self.messages.append({"role": "user", "content": TURNS[turn % len(TURNS)]})
        return list(self.messages)

    def answer(self, completion: CompletionOutput) -> None:
        """The reply's text."""
        self.messages.append({"role": "assistant", "content": completion.text})


@dataclass
class IdChat:
    """Random ids: ``user_len`` of them at the start and in each turn."""

    user_len: int
    ids: list[int] = field(default_factory=list)

    def ask(self, turn: int) -> Prompt:
        """As many ids again."""
        rng = random.Random(turn)
        self.ids += [rng.randrange(DEFAULT_VOCAB) for _ in range(self.user_len)]
        return list(self.ids)

    def answer(self, completion: CompletionOutput) -> None:
        """The reply's ids."""
        self.ids += completion.token_ids


@dataclass(frozen=True)
class Sizes:
    """How long a chat is.

    Attributes:
        turns: Questions.
        reply_len: Tokens of each reply.
        user_len: Tokens of a question without a chat template.
        max_model_len: Room for the whole conversation.
    """

    turns: int
    reply_len: int
    user_len: int
    max_model_len: int


def sizes(args: Namespace) -> Sizes:
    """Eight turns; on a GPU with as much text as a document brings along."""
    if args.smoke:
        return Sizes(2, 4, 24, 512)  # of a tokenizer whose tokens are bytes
    if args.device.startswith("cuda"):
        return Sizes(8, 64, 1024, 16_384)
    return Sizes(8, 32 if args.full else 20, 32, 1024)


def run(args: Namespace, notes: list[str]) -> tuple[Result, str]:
    """Hold the same conversation with both engines, turn by turn.

    Args:
        args: The benchmark's command line.
        notes: Sentences for the result file.

    Returns:
        The result and the summary line.
    """
    size = sizes(args)
    limits: dict[str, Any] = options(
        args, max_model_len=size.max_model_len, max_num_seqs=1, pool_tokens=2 * size.max_model_len
    )
    engine = LLMEngine(args.model, **limits)
    tokenizer = engine.tokenizer
    is_text = tokenizer is not None and tokenizer.has_chat_template
    chats = [
        converse(engine, TextChat() if is_text else IdChat(size.user_len), size)
        for _ in range(1 + args.repeat)  # the first one warms up
    ]
    rows = turn_rows(chats[1:])
    result = make_result(
        "m6_prefix", "chat", rows, device=args.device,
        config={**settings(args, engine), "reply_tokens": size.reply_len, "text": is_text},
        notes=[*notes, ONE_ENGINE_NOTE],
    )  # fmt: skip
    last = {"turn": size.turns, "metric": "ttft"}
    (on,), (off,) = (result.select(caching=caching, **last) for caching in (True, False))
    return result, (
        f"m6_prefix, turn {size.turns} of a chat: first token after {on['median'] * 1e3:.0f} ms "
        f"instead of {off['median'] * 1e3:.0f} ms"
    )


@dataclass(frozen=True)
class Turn:
    """One turn, begun both ways."""

    cached: FirstToken
    plain: FirstToken


def converse(engine: LLMEngine, chat: Chat, size: Sizes) -> list[Turn]:
    """A whole conversation from an empty cache; each turn is begun without caching, then with it.

    Args:
        engine: An idle engine.
        chat: Has said nothing yet.
        size: How long.
    """
    forget(engine)
    params = SamplingParams(temperature=0, max_tokens=size.reply_len, ignore_eos=True)
    turns = []
    for number in range(size.turns):
        prompt = chat.ask(number)
        engine.manager.enable_prefix_caching = False
        plain = first_token(engine, prompt)
        engine.manager.enable_prefix_caching = True
        (output,) = engine.generate(prompt, params)
        turns.append(Turn(FirstToken.of(output), plain))
        chat.answer(output.outputs[0])
    return turns


def turn_rows(chats: list[list[Turn]]) -> list[Row]:
    """Times and counts of each turn, one value per conversation."""
    rows = list[Row]()
    for number, turns in enumerate(zip(*chats, strict=True), 1):
        lengths = [float(turn.cached.prompt_tokens) for turn in turns]
        rows.append(row("prompt_tokens", "tokens", lengths, turn=number))
        for caching in (True, False):
            begun = [turn.cached if caching else turn.plain for turn in turns]
            hits = [float(item.cached_tokens) for item in begun]
            labels: dict[str, int | bool] = {"turn": number, "caching": caching}
            rows.append(row("ttft", "s", [item.seconds for item in begun], **labels))
            rows.append(row("cached_tokens", "tokens", hits, **labels))
        gains = [turn.plain.seconds / turn.cached.seconds for turn in turns]
        rows.append(row("plain_over_cached", "ratio", gains, turn=number))
    return rows
