"""The flags of every stage's command line, made from the option table and ``SamplingParams``.

A flag has the name that its value has in Python, with dashes. Nothing here needs torch, so
``--help`` is instant and a wrong value is refused before a model is loaded.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from common.cli_errors import OneLineParser
from common.config import (
    EngineConfig,
    Option,
    all_options,
    options_of,
    refuse_unknown_options,
    value_type,
)
from common.errors import ConfigError, InvalidRequestError
from common.request import SamplingParams

# A person at a terminal wants a whole and readable answer; the library keeps vLLM's defaults
# (16 tokens, the unfiltered softmax), at which a small model soon loses its thread.
CLI_DEFAULTS: dict[str, Any] = {"max_tokens": 256, "temperature": 0.7, "top_p": 0.9}

EXAMPLES = """\
examples:
  {prog} "Why is the sky blue?" --max-tokens 64 --temperature 0
  {prog} --chat --temperature 0.7 --top-p 0.9 --seed 1
  echo "Name three colours." | {prog} --json

Answers go to stdout as they grow; timings, log and errors go to stderr.
"""

SAMPLING_HELP = {
    "n": "completions of each prompt, drawn with seed, seed + 1, …",
    "temperature": "divides the logits: below 1 is bolder, above 1 wilder, 0 is greedy",
    "top_k": "draw from the k likeliest tokens; 0 is all",
    "top_p": "draw from the fewest tokens that reach this probability together",
    "min_p": "leave out tokens less likely than this share of the likeliest",
    "presence_penalty": "subtracted once from the logit of every token in the output so far",
    "frequency_penalty": "subtracted for each time that a token is in the output so far",
    "repetition_penalty": "above 1 disfavours every token of prompt and output so far",
    "seed": "seed of the draws: the same seed gives the same tokens",
    "max_tokens": "output tokens at most",
    "min_tokens": "output tokens before anything may end it",
    "stop": "text that ends the output and is left out of it; may be given several times",
    "stop_token_ids": "token id that ends the output; may be given several times",
    "ignore_eos": "go on after the end-of-sequence token",
    "logprobs": "report this many of the likeliest tokens per position; needs --json",
    "skip_special_tokens": "leave special tokens out of the text",
    "include_stop_str_in_output": "keep the stop text in the output",
}
SWITCHES = {
    "chat": "hold a conversation: one line a turn, until end of file (Ctrl-D)",
    "json": "print outputs and stats as one JSON object when all is done",
    "raw": "continue the text as it stands, without the model's chat template",
    "no_thinking": "ask the chat template for answers without a chain of thought (Qwen3)",
    "verbose": "show the engine's log",
    "profile": "print where the time of the first steps went (torch.profiler; it slows them)",
}
_REPEATED: dict[str, tuple[type, str]] = {"stop": (str, "TEXT"), "stop_token_ids": (int, "ID")}
_METAVARS: dict[type, str] = {int: "N", float: "X", str: "NAME"}


@dataclass(frozen=True)
class CommandLine:
    """What the user asked for.

    Attributes:
        prompts: Texts, in order; empty where they come from a pipe or from a conversation.
        params: How to sample, for all prompts.
        options: The engine's keyword arguments.
        chat: Hold a conversation.
        json: Print outputs and stats as JSON.
        raw: Continue the text as it stands, without the chat template.
        thinking: False asks the chat template for an answer without a chain of thought.
        verbose: Show the engine's log.
        profile: Print where the time of the steps went.
        trace: Where to write the trace.
    """

    prompts: tuple[str, ...]
    params: SamplingParams
    options: dict[str, Any]
    chat: bool
    json: bool
    raw: bool
    thinking: bool
    verbose: bool
    profile: bool
    trace: Path | None


def parse_command_line(stage: str, argv: list[str]) -> CommandLine:
    """Parse and check the command line of ``stage``.

    Raises:
        UnsupportedOptionError: A flag of another stage; the message names the stage.
        ConfigError: An unknown flag, a value out of range, or flags that contradict each other.
        InvalidRequestError: A sampling parameter out of range, or an empty prompt.
    """
    parser = _parser(stage)
    # argparse takes positional arguments from one place only: prompts between and behind flags
    # come back as left over, and what follows "--" is kept from it altogether.
    end = argv.index("--") if "--" in argv else len(argv)
    args, left_over = parser.parse_known_args(argv[:end])
    for word in left_over:
        if word.startswith("-"):
            _refuse_flag(stage, word)
    prompts = (*args.prompt, *left_over, *argv[end + 1 :])
    _check_combination(args, prompts)
    options = {row.name: getattr(args, row.name) for row in options_of(stage)}
    # --seed is a field of SamplingParams and an option of the engine: it sets both.
    options |= {"trace": args.trace is not None, "seed": args.seed or 0}
    params = SamplingParams(**{name: getattr(args, name) for name in _sampling_fields()})
    EngineConfig.from_options(stage, options)  # refuses here what would cost a model load later
    return CommandLine(
        prompts, params, options, args.chat, args.json, args.raw, not args.no_thinking,
        args.verbose, args.profile, args.trace,
    )  # fmt: skip


def _parser(stage: str) -> argparse.ArgumentParser:
    prog = f"python -m {stage}"
    parser = OneLineParser(
        prog=prog,
        usage=f"{prog} [options] [prompt ...]",
        description=f"Answer prompts with the engine of {stage}.",
        epilog=EXAMPLES.format(prog=prog),
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=30
        ),
    )
    parser.add_argument(
        "prompt", nargs="*", help="one or more prompts; without any, a pipe is read as one"
    )
    mode = parser.add_argument_group("what to do")
    for name, text in SWITCHES.items():
        mode.add_argument(_flag(name), action="store_true", help=text)
    sampling = parser.add_argument_group("sampling parameters")
    for name, item in _sampling_fields().items():
        _add_sampling_flag(sampling, name, item)
    engine = parser.add_argument_group(f"engine options of {stage}")
    for row in options_of(stage):
        if row.name not in _sampling_fields():
            _add_engine_flag(engine, row)
    return parser


def _check_combination(args: argparse.Namespace, prompts: tuple[str, ...]) -> None:
    """Refuse flags that exclude each other, or that would be without effect.

    Raises:
        ConfigError: They do.
        InvalidRequestError: A prompt is empty.
    """
    for one, other in (("chat", "json"), ("chat", "raw"), ("raw", "no_thinking")):
        if getattr(args, one) and getattr(args, other):
            raise ConfigError(f"{_flag(one)} and {_flag(other)} exclude each other")
    if args.logprobs is not None and not args.json:
        raise ConfigError("--logprobs are printed with --json only")
    if args.trace is not None and args.trace.is_dir():
        raise ConfigError(f"--trace needs a file, {str(args.trace)!r} is a folder")
    for number, text in enumerate(prompts, start=1):
        # A space can be continued as raw text, but says nothing as a message.
        if not (text if args.raw else text.strip()):
            which = "the prompt" if len(prompts) == 1 else f"prompt {number}"
            raise InvalidRequestError(f"{which} is empty")


def _refuse_flag(stage: str, word: str) -> None:
    """Say why ``word`` is no flag here.

    Raises:
        UnsupportedOptionError: Another stage has it.
        ConfigError: No stage has it.
    """
    flag = word.partition("=")[0]
    name = flag.lstrip("-").replace("-", "_")
    for option in (name, name.removeprefix("no_")):
        if option in {row.name for row in all_options()}:
            refuse_unknown_options(stage, {option: None})
    own = (*SWITCHES, *_sampling_fields(), *(row.name for row in options_of(stage)))
    close = difflib.get_close_matches(flag, map(_flag, own), n=1, cutoff=0.75)
    hint = f"did you mean {close[0]}?" if close else "see --help"
    if not word.startswith("--"):
        hint = "a prompt that begins with - goes behind --"
    raise ConfigError(f"unknown flag {flag} ({hint})")


def _add_engine_flag(group: argparse._ArgumentGroup, row: Option) -> None:
    flag, text = _flag(row.name), _with_default(row.help, row.default)
    if row.name == "trace":
        group.add_argument(
            flag, metavar="FILE", type=Path, help="write a trace of every step to FILE"
        )
    elif row.value_type is bool:
        group.add_argument(
            flag, default=row.default, action=argparse.BooleanOptionalAction, help=text
        )
    elif row.value_type is int and row.choices:
        kind, metavar = _int_or(row.choices), "|".join(("N", *row.choices))
        group.add_argument(flag, default=row.default, type=kind, metavar=metavar, help=text)
    else:
        choices = f": {', '.join(row.choices)}" if row.choices else ""
        text = _with_default(row.help + choices, row.default)
        metavar = _METAVARS[row.value_type]
        group.add_argument(
            flag, default=row.default, type=row.value_type, metavar=metavar, help=text
        )


def _add_sampling_flag(
    group: argparse._ArgumentGroup, name: str, item: dataclasses.Field[Any]
) -> None:
    flag, default = _flag(name), CLI_DEFAULTS.get(name, item.default)
    text = _with_default(SAMPLING_HELP[name], default)
    if name in _REPEATED:
        kind, metavar = _REPEATED[name]
        group.add_argument(flag, action="append", default=[], type=kind, metavar=metavar, help=text)
        return
    kind, _, _ = value_type(get_type_hints(SamplingParams)[name])
    if kind is bool:
        group.add_argument(flag, default=default, action=argparse.BooleanOptionalAction, help=text)
    else:
        metavar = _METAVARS[kind]
        group.add_argument(flag, default=default, type=kind, metavar=metavar, help=text)


def _with_default(text: str, default: object) -> str:
    """The help text of a flag, with the default where its text does not speak of one."""
    if default in (None, ()) or "(default" in text:
        return text
    shown = ("off", "on")[default] if isinstance(default, bool) else default
    return f"{text} (default: {shown})"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _sampling_fields() -> dict[str, dataclasses.Field[Any]]:
    return {item.name: item for item in dataclasses.fields(SamplingParams)}


def _int_or(words: tuple[str, ...]) -> Callable[[str], int | str]:
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
