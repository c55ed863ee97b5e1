"""The command line that every stage's ``__main__`` calls.

Flags are generated from the option table (:mod:`common.config`) and from ``SamplingParams``, so
they have the same names as in Python, and ``--help`` needs no torch. The answer streams to
stdout; timings go to stderr, so that a pipe gets the text alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, get_type_hints

from common.cli_errors import run
from common.config import Option, options_of, refuse_unknown_options, value_type
from common.errors import ConfigError, InvalidRequestError
from common.outputs import EngineStats, RequestOutput
from common.request import SamplingParams

# A terminal wants a whole answer; the library keeps vLLM's default of 16.
CLI_DEFAULTS: dict[str, Any] = {"max_tokens": 256}
LIST_FIELDS = {"stop": str, "stop_token_ids": int}


def main(stage: str) -> NoReturn:
    """Run the command line of ``stage`` and exit: 0, or 2 with one line on stderr."""
    run(lambda argv: cli(stage, argv))


def cli(stage: str, argv: list[str]) -> int:
    """The command line without the process exit. Returns the exit code.

    Raises:
        FoloError: Bad input; :func:`common.cli_errors.run` prints it in one line.
    """
    args = parse_args(stage, argv)
    params = SamplingParams(**{name: getattr(args, name) for name in _sampling_fields()})
    prompts = _prompts(args)
    options = {row.name: getattr(args, row.name) for row in options_of(stage)}
    # One flag for two fields of the same name: a seed given here seeds the request and the engine.
    options |= {"trace": args.trace is not None, "seed": args.seed or 0}
    engine_class = importlib.import_module(f"{stage}.engine").LLMEngine
    engine = engine_class(**options)
    template = {"enable_thinking": False} if args.no_thinking else {}
    session = _Session(engine, params, template, raw=args.raw)
    try:
        if args.chat:
            session.chat(prompts)
        elif args.json:
            session.print_json(prompts)
        else:
            session.answer(prompts)
    finally:
        if args.trace is not None and engine.trace is not None:
            engine.trace.write(args.trace, timings=True)
    return 0


def parse_args(stage: str, argv: list[str]) -> argparse.Namespace:
    """Parse flags; a flag of another stage is refused by name.

    Raises:
        UnsupportedOptionError: A flag that this stage does not have.
        ConfigError: A value of the wrong type, or contradicting flags.
    """
    parser = _Parser(
        prog=f"python -m {stage}",
        description=f"Answer prompts with the engine of {stage}.",
        allow_abbrev=False,
        formatter_class=_HelpFormatter,
    )
    parser.add_argument("prompt", nargs="*", help="one or more prompts (none: read from a pipe)")
    mode = parser.add_argument_group("mode")
    mode.add_argument("--chat", action="store_true", help="hold a conversation in the terminal")
    mode.add_argument("--raw", action="store_true", help="continue the text as it stands, without "
                      "the model's chat template")  # fmt: skip
    mode.add_argument("--no-thinking", action="store_true", help="pass enable_thinking=False to "
                      "the chat template (Qwen3)")  # fmt: skip
    mode.add_argument("--json", action="store_true", help="print outputs and stats as JSON")
    engine = parser.add_argument_group(f"engine options of {stage}")
    for row in options_of(stage):
        if row.name not in _sampling_fields():
            _add_engine_flag(engine, row)
    sampling = parser.add_argument_group("sampling parameters")
    for name, item in _sampling_fields().items():
        _add_sampling_flag(sampling, name, item)
    args, unknown = parser.parse_known_args(argv)
    for word in unknown:
        if word.startswith("--"):
            refuse_unknown_options(stage, {word[2:].split("=")[0].replace("-", "_"): None})
        raise ConfigError(f"unexpected argument {word!r}")
    if args.json and args.chat:
        raise ConfigError("--json and --chat exclude each other")
    return args


class _Parser(argparse.ArgumentParser):
    """Errors become one line; argparse would print the usage before it."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Show defaults that say something: not those of switches, nor None."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default in (None, False, []) or action.nargs == "*"
        return action.help if silent else super()._get_help_string(action)


class _Session:
    """One engine answering prompts in a terminal."""

    def __init__(
        self, engine: Any, params: SamplingParams, template: dict[str, Any], *, raw: bool
    ) -> None:
        self.engine, self.params, self.template = engine, params, template
        tokenizer = engine.tokenizer
        self.raw = raw or tokenizer is None or not tokenizer.has_chat_template

    def answer(self, prompts: list[str]) -> None:
        """Stream the answer to each prompt, then its timings."""
        for prompt in prompts:
            if len(prompts) > 1:
                print(f"--- {prompt}", flush=True)
            self._stream(self._prompt(prompt))

    def chat(self, opening: list[str]) -> None:
        """Alternate between the user's lines and answers, keeping the conversation.

        Raises:
            InvalidRequestError: The model has no chat template, or the conversation is full.
        """
        if self.raw:
            raise InvalidRequestError(
                "--chat needs a chat template, and --raw or this model has none"
            )
        messages: list[dict[str, str]] = []
        for line in _lines(opening):
            messages.append({"role": "user", "content": line})
            messages.append({"role": "assistant", "content": self._stream(messages)})

    def print_json(self, prompts: list[str]) -> None:
        """All outputs and the engine's stats as one JSON object."""
        outputs = self.engine.generate(
            [self._prompt(prompt) for prompt in prompts],
            self.params,
            chat_template_kwargs=self.template,
        )
        stats = dataclasses.asdict(self.engine.stats())
        rows = [dataclasses.asdict(output) for output in outputs]
        print(json.dumps({"outputs": rows, "stats": stats}, ensure_ascii=False, indent=2))

    def _prompt(self, text: str) -> str | list[dict[str, str]]:
        """The text itself with ``--raw``, else a conversation of one user message."""
        if self.raw or not text:
            return text
        return [{"role": "user", "content": text}]

    def _stream(self, prompt: Any) -> str:
        """Print one answer as it grows; returns its text. Further completions follow the first."""
        shown, last = 0, None
        for last in self.engine.stream(prompt, self.params, chat_template_kwargs=self.template):
            text = last.outputs[0].text
            print(text[shown:], end="", flush=True)
            shown = len(text)
        assert last is not None
        print(flush=True)
        for other in last.outputs[1:]:
            print(f"--- completion {other.index}\n{other.text}", flush=True)
        print(timing_line(last, self.engine.stats()), file=sys.stderr, flush=True)
        return str(last.outputs[0].text)


def timing_line(output: RequestOutput, stats: EngineStats) -> str:
    """What a reader wants to know after an answer: first token, pace, memory."""
    metrics, tokens = output.metrics, len(output.outputs[0].token_ids)
    assert metrics.ttft is not None
    parts = [f"TTFT {metrics.ttft * 1e3:.0f} ms"]
    if metrics.tpot:
        parts.append(f"{1 / metrics.tpot:.1f} tok/s ({metrics.tpot * 1e3:.1f} ms per token)")
    parts.append(f"{len(output.prompt_token_ids)} prompt + {tokens} output tokens")
    parts.append(f"finish: {output.outputs[0].finish_reason}")
    mib = 2**20
    parts.append(
        f"peak memory {stats.peak_memory_bytes / mib:.0f} MiB "
        f"(weights {stats.weight_bytes / mib:.0f}, KV reserved {stats.kv_bytes / mib:.0f})"
    )
    return "[" + " · ".join(parts) + "]"


def _prompts(args: argparse.Namespace) -> list[str]:
    """The prompts of the command line, or one from a pipe.

    Raises:
        InvalidRequestError: There is none.
    """
    if args.prompt or args.chat:
        return list(args.prompt)
    if not sys.stdin.isatty():
        text = sys.stdin.read().strip()
        if text:
            return [text]
    raise InvalidRequestError("no prompt: pass one as an argument or through a pipe, or use --chat")


def _lines(opening: list[str]) -> Iterator[str]:
    """The user's turns: those of the command line first, then the terminal's until end of file."""
    for line in opening:
        print(f"> {line}", flush=True)
        yield line
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print(flush=True)
            return
        if line:
            yield line


def _sampling_fields() -> dict[str, dataclasses.Field[Any]]:
    return {item.name: item for item in dataclasses.fields(SamplingParams)}


def _add_engine_flag(group: argparse._ArgumentGroup, row: Option) -> None:
    flag = "--" + row.name.replace("_", "-")
    if row.name == "trace":
        group.add_argument(flag, metavar="FILE", help="write a trace of every step to FILE")
    elif row.value_type is bool:
        group.add_argument(
            flag, default=row.default, action=argparse.BooleanOptionalAction, help=row.help
        )
    else:
        kind = _int_or(row.choices) if row.choices and row.value_type is int else row.value_type
        group.add_argument(flag, default=row.default, type=kind, help=row.help, metavar="X")


def _add_sampling_flag(
    group: argparse._ArgumentGroup, name: str, item: dataclasses.Field[Any]
) -> None:
    flag, default = "--" + name.replace("_", "-"), CLI_DEFAULTS.get(name, item.default)
    help_text = SAMPLING_HELP[name]
    if name in LIST_FIELDS:
        group.add_argument(
            flag, action="append", default=[], type=LIST_FIELDS[name], metavar="X",
            help=f"{help_text} (may be repeated)",
        )  # fmt: skip
        return
    kind, _, _ = value_type(get_type_hints(SamplingParams)[name])
    if kind is bool:
        group.add_argument(
            flag, default=default, action=argparse.BooleanOptionalAction, help=help_text
        )
    else:
        group.add_argument(flag, default=default, type=kind, metavar="X", help=help_text)


SAMPLING_HELP = {
    "n": "completions of the prompt",
    "temperature": "divides the logits; 0 is greedy",
    "top_k": "keep the k likeliest tokens (0: all)",
    "top_p": "keep the smallest set of tokens that reaches this probability",
    "min_p": "drop tokens less likely than this share of the likeliest",
    "presence_penalty": "subtracted once from tokens already generated",
    "frequency_penalty": "subtracted per occurrence in the output",
    "repetition_penalty": "divides the score of tokens of prompt and output",
    "seed": "seed of this request",
    "max_tokens": "output tokens at most",
    "min_tokens": "output tokens before anything may stop it",
    "stop": "string that ends the output",
    "stop_token_ids": "id that ends the output",
    "ignore_eos": "go on after the end-of-sequence token",
    "logprobs": "report this many likely tokens per position (with --json)",
    "skip_special_tokens": "leave special tokens out of the text",
    "include_stop_str_in_output": "keep the stop string in the text",
}


def _int_or(words: Sequence[str]) -> Any:
    """An argparse type: an integer, or one of ``words``."""

    def parse(text: str) -> int | str:
        if text in words:
            return text
        try:
            return int(text)
        except ValueError:
            listed = " or ".join(words)
            raise argparse.ArgumentTypeError(
                f"must be an integer or {listed}, got {text!r}"
            ) from None

    return parse
