"""The command line that every stage's ``__main__`` calls.

The answer streams to stdout and everything else goes to stderr, so that a pipe gets the text
alone. Flags and their checks are in :mod:`common.cli_flags`; torch is imported once they have
passed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import json
import logging
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NoReturn

from common.cli_errors import one_line, run
from common.cli_flags import CommandLine, parse_command_line
from common.config import STAGES
from common.errors import InvalidRequestError
from common.outputs import EngineStats, RequestOutput

MIB = 2**20


def main(stage: str) -> NoReturn:
    """Run the command line of ``stage`` and exit: 0, or 2 with one line on stderr."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A model may write any character; a terminal that cannot show it gets a question mark.
        sys.stdout.reconfigure(errors="replace")
    run(lambda argv: cli(stage, argv))


def cli(stage: str, argv: list[str]) -> int:
    """The command line without the process exit. Returns the exit code.

    Raises:
        FoloError: Bad input; :func:`common.cli_errors.run` prints it in one line.
    """
    line = parse_command_line(stage, argv)
    show_log(verbose=line.verbose)
    prompts = line.prompts or (() if line.chat else (piped_prompt(),))
    engine = importlib.import_module(f"{stage}.engine").LLMEngine(**line.options)
    session = _Session(engine, line)
    try:
        if line.profile:
            _profiled(engine, lambda: session.run(line, prompts))
        else:
            session.run(line, prompts)
    finally:
        if line.trace is not None:
            engine.trace.write(line.trace, timings=True)
    return 0


def _profiled(engine: Any, work: Callable[[], None]) -> None:
    """Do ``work`` under the profiler and print where the time of its steps went."""
    # By name, like the engine: the profiler needs torch, which this module does without.
    with importlib.import_module("common.step_profiler").StepProfiler(engine) as profiler:
        work()
    print(profiler.report(), file=sys.stderr, flush=True)


def show_log(*, verbose: bool) -> None:
    """Send this project's log to stderr: its warnings always, its progress with ``verbose``."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    if verbose:
        for package in ("common", *STAGES):
            logging.getLogger(package).setLevel(logging.INFO)


def piped_prompt() -> str:
    """The whole of stdin as one prompt, without the line ends behind it.

    Raises:
        InvalidRequestError: There is nothing, or something that is not text.
    """
    text = "" if sys.stdin is None or sys.stdin.isatty() else _checked(sys.stdin.read)
    if not text.strip():
        raise InvalidRequestError(
            "no prompt: pass one as an argument or through a pipe, or use --chat"
        )
    return text.rstrip("\r\n")


def _checked(read: Any) -> str:
    """What ``read()`` gives from stdin, if it is text.

    Raises:
        InvalidRequestError: It holds bytes that are none.
    """
    try:
        return str(read())
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            f"standard input is not {error.encoding} text: {error.reason} at byte {error.start}"
        ) from None


class _Session:
    """One engine answering prompts in a terminal or a pipe."""

    def __init__(self, engine: Any, line: CommandLine) -> None:
        self.engine, self.params = engine, line.params
        self.template: dict[str, Any] = {} if line.thinking else {"enable_thinking": False}
        tokenizer = engine.tokenizer
        has_template = tokenizer is not None and tokenizer.has_chat_template
        for flag, asked in (("--chat", line.chat), ("--no-thinking", not line.thinking)):
            if asked and not has_template:
                raise InvalidRequestError(f"{flag} needs a chat template, and this model has none")
        self.raw = line.raw or not has_template
        self.interactive = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()

    def run(self, line: CommandLine, prompts: Sequence[str]) -> None:
        """Do what the command line asks for."""
        if line.chat:
            self.chat(prompts)
        elif line.json:
            self.print_json(prompts)
        else:
            self.answer(prompts)

    def answer(self, prompts: Sequence[str]) -> None:
        """Stream the answer to each prompt, then its timings. The prompts arrive together."""
        # All are opened, and thereby checked, before the first answer is printed.
        streams = [self._open(self._prompt(prompt)) for prompt in prompts]
        for prompt, stream in zip(prompts, streams, strict=True):
            if len(prompts) > 1:
                print(f"--- {one_line(prompt)}", flush=True)
            self._show(stream)

    def chat(self, opening: Sequence[str]) -> None:
        """Alternate between the user's lines and answers, keeping the conversation.

        Ctrl-C stops an answer where it stands. A turn that was refused, or stopped before its
        first word, is forgotten.

        Raises:
            InvalidRequestError: A turn is refused and nobody is there to try another.
        """
        if self.interactive:
            print("Ctrl-C stops an answer, Ctrl-D ends.", file=sys.stderr)
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 (gives input() its history and line editing)
        messages: list[dict[str, str]] = []
        for line in self._turns(opening):
            turn = [*messages, {"role": "user", "content": line}]
            try:
                stream = self._open(turn)
            except InvalidRequestError as error:
                if not self.interactive:
                    raise
                print(f"error: {one_line(str(error))}", file=sys.stderr)
                continue
            text = self._show(stream, stoppable=True)
            if text:
                messages = [*turn, {"role": "assistant", "content": text}]

    def print_json(self, prompts: Sequence[str]) -> None:
        """All outputs and the engine's stats as one JSON object."""
        outputs = self.engine.generate(
            [self._prompt(prompt) for prompt in prompts],
            self.params,
            chat_template_kwargs=self.template,
        )
        rows = [as_json(*pair) for pair in zip(prompts, outputs, strict=True)]
        result = {"outputs": rows, "stats": dataclasses.asdict(self.engine.stats())}
        print(json.dumps(result, ensure_ascii=False, indent=2))

    def _prompt(self, text: str) -> str | list[dict[str, str]]:
        """The text itself with ``--raw``, else a conversation of one user message."""
        return text if self.raw else [{"role": "user", "content": text}]

    def _open(self, prompt: Any) -> Generator[RequestOutput, None, None]:
        """Check a prompt and start its stream."""
        stream: Generator[RequestOutput, None, None] = self.engine.stream(
            prompt, self.params, chat_template_kwargs=self.template
        )
        return stream

    def _show(
        self, stream: Generator[RequestOutput, None, None], *, stoppable: bool = False
    ) -> str:
        """Print one answer as it grows, further completions behind it, then the timings.

        Returns:
            The text of the first completion; what there is of it after a Ctrl-C.
        """
        shown, last = "", None
        try:
            for last in stream:
                text = last.outputs[0].text
                print(text[len(shown) :], end="", flush=True)
                shown = text
        except KeyboardInterrupt:
            if not stoppable:
                raise
            stream.close()
            print(flush=True)
            print("[stopped]", file=sys.stderr)
            return shown
        assert last is not None
        print(flush=True)
        for other in last.outputs[1:]:
            print(f"--- completion {other.index}\n{other.text}", flush=True)
        print(timing_line(last, self.engine.stats()), file=sys.stderr, flush=True)
        return shown

    def _turns(self, opening: Sequence[str]) -> Iterator[str]:
        """The user's turns: those of the command line, then the lines of stdin until its end."""
        for line in opening:
            if self.interactive:
                print(f"> {line}", flush=True)
            yield line
        while sys.stdin is not None:
            try:
                line = _checked(lambda: input("> " if self.interactive else "")).strip()
            except EOFError:
                break
            if line:
                yield line
        if self.interactive:
            print(flush=True)


def as_json(prompt: str, output: RequestOutput) -> dict[str, Any]:
    """One output as JSON types; times are seconds since the request arrived."""
    row, metrics = dataclasses.asdict(output), output.metrics
    begin = metrics.arrival_time
    assert metrics.finished_time is not None
    row["prompt"] = prompt
    row["metrics"] = {
        "ttft": metrics.ttft,
        "tpot": metrics.tpot,
        "duration": metrics.finished_time - begin,
        "token_times": [time - begin for time in metrics.token_times],
        "num_cached_tokens": metrics.num_cached_tokens,
    }
    return row


def timing_line(output: RequestOutput, stats: EngineStats) -> str:
    """What a reader wants to know after an answer: first token, pace, memory."""
    metrics, tokens = output.metrics, len(output.outputs[0].token_ids)
    assert metrics.ttft is not None
    parts = [f"TTFT {metrics.ttft * 1e3:.0f} ms"]
    if metrics.tpot:
        parts.append(f"{1 / metrics.tpot:.1f} tok/s ({metrics.tpot * 1e3:.1f} ms per token)")
    parts.append(f"{len(output.prompt_token_ids)} prompt + {tokens} output tokens")
    parts.append(f"finish: {output.outputs[0].finish_reason}")
    parts.append(
        f"peak memory {stats.peak_memory_bytes / MIB:.0f} MiB "
        f"(weights {stats.weight_bytes / MIB:.0f}, KV reserved {stats.kv_bytes / MIB:.0f})"
    )
    return "[" + " · ".join(parts) + "]"
