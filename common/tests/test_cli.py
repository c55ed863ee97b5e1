"""The command line over an engine that echoes: what goes where, and how a conversation runs."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.cli import as_json, cli, piped_prompt, timing_line
from common.errors import ConfigError, InvalidRequestError
from common.outputs import CompletionOutput, EngineStats, RequestMetrics, RequestOutput
from common.request import SamplingParams

MIB = 2**20


class EchoEngine:
    """Answers a text with itself in capitals, a conversation with the number of its messages.

    A word comes per step. The word ``stop!`` in a prompt is a Ctrl-C at that place, ``refused``
    makes the whole request a bad one.
    """

    has_chat_template = True
    made: list[EchoEngine]

    def __init__(self, **options: Any) -> None:
        self.options, self.calls, self.closed = options, list[tuple[Any, Any, Any]](), 0
        self.tokenizer = SimpleNamespace(has_chat_template=self.has_chat_template)
        self.trace = SimpleNamespace(write=self._write)
        type(self).made.append(self)

    def _write(self, path: Path, timings: bool) -> None:
        path.write_text(f"trace of {len(self.calls)} requests, timings {timings}")

    def stream(
        self, prompt: Any, params: SamplingParams, chat_template_kwargs: dict[str, Any]
    ) -> Generator[RequestOutput, None, None]:
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        if "refused" in text:
            raise InvalidRequestError("the prompt is\n  refused")
        self.calls.append((prompt, params, chat_template_kwargs))
        messages = "" if isinstance(prompt, str) else f"{len(prompt)}: "
        return self._words(messages + text.upper(), params.n)

    def _words(self, text: str, n: int) -> Generator[RequestOutput, None, None]:
        words = text.split(" ")
        try:
            for count, word in enumerate(words, start=1):
                if word == "STOP!":
                    raise KeyboardInterrupt
                yield output(" ".join(words[:count]), n)
        finally:
            self.closed += 1

    def generate(
        self, prompts: list[Any], params: SamplingParams, chat_template_kwargs: dict[str, Any]
    ) -> list[RequestOutput]:
        return [list(self.stream(p, params, chat_template_kwargs))[-1] for p in prompts]

    def stats(self) -> EngineStats:
        return EngineStats(
            num_requests=self.closed, weight_bytes=3 * MIB, kv_bytes=MIB, peak_memory_bytes=5 * MIB
        )


def output(text: str, n: int = 1) -> RequestOutput:
    """An answer of two tokens that took half a second, a quarter of it for the first."""
    completions = (CompletionOutput(i, f"{text}{'+' * i}", (1, 2), "stop") for i in range(n))
    metrics = RequestMetrics(10.0, (10.25, 10.5), 10.5)
    return RequestOutput("0", None, (7, 8, 9), tuple(completions), True, metrics)


TIMINGS = (
    "[TTFT 250 ms · 4.0 tok/s (250.0 ms per token) · 3 prompt + 2 output tokens · finish: stop · "
    "peak memory 5 MiB (weights 3, KV reserved 1)]\n"
)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[EchoEngine]:
    """The engines that commands of this test have made."""
    made: list[EchoEngine] = []
    monkeypatch.setattr(EchoEngine, "made", made, raising=False)
    monkeypatch.setitem(sys.modules, "m1_basic.engine", SimpleNamespace(LLMEngine=EchoEngine))
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    return made


Run = Callable[..., tuple[str, str]]


@pytest.fixture
def run(
    engines: list[EchoEngine],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Run a command with a text in its pipe; gives stdout and stderr."""

    def run_command(*argv: str, stdin: str = "") -> tuple[str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        assert cli("m1_basic", list(argv)) == 0
        out, err = capsys.readouterr()
        return out, err

    return run_command


class TestAnswers:
    def test_stdout_is_the_answer_alone(self, run: Run, engines: list[EchoEngine]) -> None:
        assert run("why is the sky blue?") == ("1: WHY IS THE SKY BLUE?\n", TIMINGS)
        [(prompt, params, template)] = engines[0].calls
        assert prompt == [{"role": "user", "content": "why is the sky blue?"}]
        assert params == SamplingParams(max_tokens=256, temperature=0.7, top_p=0.9)
        assert template == {}

    def test_options_and_parameters_arrive(self, run: Run, engines: list[EchoEngine]) -> None:
        run("hi", "--model", "m", "--no-use-cache", "--seed", "3", "--top-k", "5", "--no-thinking")
        [engine] = engines
        assert engine.options["model"] == "m"
        assert (engine.options["use_cache"], engine.options["seed"]) == (False, 3)
        [(_, params, template)] = engine.calls
        assert (params.top_k, params.seed) == (5, 3)
        assert template == {"enable_thinking": False}

    def test_words_appear_as_they_come(
        self, engines: list[EchoEngine], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[str] = []
        screen = SimpleNamespace(write=seen.append, flush=lambda: seen.append("|"), isatty=bool)
        monkeypatch.setattr(sys, "stdout", screen)
        cli("m1_basic", ["a b c", "--raw"])
        assert "".join(seen).startswith("A| B| C|")

    def test_several_prompts_have_headings(self, run: Run, engines: list[EchoEngine]) -> None:
        out, err = run("one", "two\nlines")
        assert out == "--- one\n1: ONE\n--- two lines\n1: TWO\nLINES\n"
        assert err == 2 * TIMINGS
        assert len(engines[0].calls) == 2

    def test_nothing_is_printed_if_one_of_them_is_refused(
        self, run: Run, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(InvalidRequestError, match="refused"):
            run("one", "refused", "three")
        assert capsys.readouterr() == ("", "")

    def test_further_completions_follow_the_first(self, run: Run) -> None:
        out, err = run("hi", "--n", "3")
        assert out == "1: HI\n--- completion 1\n1: HI+\n--- completion 2\n1: HI++\n"
        assert err == TIMINGS

    def test_ctrl_c_ends_the_command(
        self, run: Run, engines: list[EchoEngine], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(KeyboardInterrupt):
            run("some words stop! never")
        assert capsys.readouterr().out == "1: SOME WORDS"
        assert engines[0].closed == 1


class TestTemplates:
    def test_raw_text_is_passed_as_it_stands(self, run: Run, engines: list[EchoEngine]) -> None:
        assert run(" a  b\n", "--raw")[0] == " A  B\n\n"
        assert engines[0].calls[0][0] == " a  b\n"

    def test_a_model_without_a_template_continues_the_text(
        self, run: Run, engines: list[EchoEngine], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(EchoEngine, "has_chat_template", False)
        run("hi")
        assert engines[0].calls[0][0] == "hi"
        for flag in ("--chat", "--no-thinking"):
            with pytest.raises(InvalidRequestError, match=f"{flag} needs a chat template"):
                run("hi", flag)


class TestPipes:
    @pytest.mark.parametrize(
        ("stdin", "prompt"), [("hi", "hi"), ("hi\n", "hi"), ("a\n\n  b \r\n\n", "a\n\n  b ")]
    )
    def test_a_pipe_is_one_prompt(
        self, run: Run, engines: list[EchoEngine], stdin: str, prompt: str
    ) -> None:
        run("--raw", stdin=stdin)
        assert [call[0] for call in engines[0].calls] == [prompt]

    def test_arguments_come_before_a_pipe(self, run: Run, engines: list[EchoEngine]) -> None:
        run("argument", "--raw", stdin="pipe")
        assert [call[0] for call in engines[0].calls] == ["argument"]

    @pytest.mark.parametrize("stdin", [io.StringIO(" \n"), None], ids=["blank", "closed"])
    def test_no_prompt(self, monkeypatch: pytest.MonkeyPatch, stdin: io.StringIO | None) -> None:
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(InvalidRequestError, match="no prompt: pass one as an argument"):
            piped_prompt()

    def test_nobody_waits_for_a_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stdin = SimpleNamespace(isatty=lambda: True, read=lambda: pytest.fail("it waits"))
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(InvalidRequestError, match="no prompt"):
            piped_prompt()

    @pytest.mark.parametrize("flags", [[], ["--chat"]], ids=["prompt", "chat"])
    def test_bytes_that_are_no_text(
        self, engines: list[EchoEngine], monkeypatch: pytest.MonkeyPatch, flags: list[str]
    ) -> None:
        stdin = io.TextIOWrapper(io.BytesIO(b"abc\xff"), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(
            InvalidRequestError, match="not utf-8 text: invalid start byte at byte 3"
        ):
            cli("m1_basic", flags)


class TestJson:
    def test_outputs_and_stats(self, run: Run) -> None:
        out, err = run("één", "two", "--json", "--n", "2")
        assert err == ""
        assert "één" in out, "characters are not escaped"
        result = json.loads(out)
        first, second = result["outputs"]
        assert (first["prompt"], second["prompt"]) == ("één", "two")
        assert [c["text"] for c in second["outputs"]] == ["1: TWO", "1: TWO+"]
        assert first["prompt_token_ids"] == [7, 8, 9]
        assert result["stats"]["num_requests"] == 2
        assert set(result["stats"]) == {f.name for f in dataclasses.fields(EngineStats)}

    def test_times_count_from_the_arrival(self) -> None:
        assert as_json("hi", output("HI"))["metrics"] == {
            "ttft": 0.25,
            "tpot": 0.25,
            "duration": 0.5,
            "token_times": [0.25, 0.5],
            "num_cached_tokens": 0,
        }

    def test_a_pipe_can_be_answered_in_json(self, run: Run) -> None:
        [row] = json.loads(run("--json", stdin="hi\n")[0])["outputs"]
        assert row["prompt"] == "hi"


class TestChat:
    def test_the_conversation_is_kept(self, run: Run, engines: list[EchoEngine]) -> None:
        out, err = run("--chat", stdin="first\n\n   \n second \n")
        assert out == "1: FIRST\n3: SECOND\n"
        assert err == 2 * TIMINGS
        assert engines[0].calls[1][0] == [
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": "1: FIRST"},
            {"role": "user", "content": "second"},
        ]

    def test_prompts_of_the_command_line_open_it(self, run: Run) -> None:
        assert run("a", "b", "--chat", stdin="c")[0] == "1: A\n3: B\n5: C\n"

    def test_no_line_at_all(self, run: Run) -> None:
        assert run("--chat") == ("", "")

    def test_ctrl_c_stops_the_answer_and_keeps_what_there_is(
        self, run: Run, engines: list[EchoEngine]
    ) -> None:
        out, err = run("--chat", stdin="some stop! words\nnext\n")
        assert out == "1: SOME\n3: NEXT\n"
        assert err == "[stopped]\n" + TIMINGS
        assert engines[0].calls[1][0][1] == {"role": "assistant", "content": "1: SOME"}
        assert engines[0].closed == 2

    def test_an_answer_that_never_began_is_forgotten(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = EchoEngine._words

        def silent(self: EchoEngine, text: str, n: int) -> Iterator[RequestOutput]:
            return real(self, text.removeprefix("1: "), n)

        monkeypatch.setattr(EchoEngine, "_words", silent)
        out, err = run("--chat", stdin="stop!\nnext\n")
        assert out == "\nNEXT\n"
        assert err == "[stopped]\n" + TIMINGS

    def test_a_refused_turn_ends_a_pipe(self, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(InvalidRequestError, match="refused"):
            run("--chat", stdin="one\nrefused\nthree\n")
        assert capsys.readouterr() == ("1: ONE\n", TIMINGS)

    def test_without_stdin_only_the_opening_is_answered(
        self,
        engines: list[EchoEngine],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(sys, "stdin", None)
        assert cli("m1_basic", ["--chat", "hi"]) == 0
        assert capsys.readouterr().out == "1: HI\n"


class TestTerminal:
    @pytest.fixture
    def chat(
        self,
        engines: list[EchoEngine],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> Run:
        """A conversation at a terminal, whose user types the lines given."""

        def talk(*lines: str, argv: tuple[str, ...] = ()) -> tuple[str, str]:
            typed = io.StringIO("".join(f"{line}\n" for line in lines))
            for stream in (typed, sys.stdout):
                monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
            monkeypatch.setattr(sys, "stdin", typed)
            assert cli("m1_basic", ["--chat", *argv]) == 0
            out, err = capsys.readouterr()
            return out, err

        return talk

    def test_a_sign_asks_for_the_next_line(self, chat: Run) -> None:
        out, err = chat("hi", "", "there")
        assert out == "> 1: HI\n> > 3: THERE\n> \n"
        assert err == "Ctrl-C stops an answer, Ctrl-D ends.\n" + 2 * TIMINGS

    def test_the_opening_is_shown_as_if_typed(self, chat: Run) -> None:
        assert chat(argv=("hi",))[0] == "> hi\n1: HI\n> \n"

    def test_a_refused_turn_is_forgotten(self, chat: Run, engines: list[EchoEngine]) -> None:
        out, err = chat("one", "refused", "two")
        assert out == "> 1: ONE\n> > 3: TWO\n> \n"
        assert "error: the prompt is refused\n" in err
        assert len(engines[0].calls) == 2

    def test_ctrl_c_at_the_sign_leaves(self, chat: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(_sign: str) -> str:
            raise KeyboardInterrupt

        monkeypatch.setattr("builtins.input", interrupted)
        with pytest.raises(KeyboardInterrupt):
            chat()


class TestTraceAndLog:
    def test_a_trace_is_written_behind_the_answers(
        self, run: Run, engines: list[EchoEngine], tmp_path: Path
    ) -> None:
        run("one", "two", "--trace", str(tmp_path / "t.json"))
        assert engines[0].options["trace"] is True
        assert (tmp_path / "t.json").read_text() == "trace of 2 requests, timings True"

    def test_a_failed_command_leaves_its_trace(self, run: Run, tmp_path: Path) -> None:
        with pytest.raises(InvalidRequestError):
            run("refused", "--trace", str(tmp_path / "t.json"))
        assert (tmp_path / "t.json").exists()

    def test_no_trace_unless_asked(self, run: Run, engines: list[EchoEngine]) -> None:
        run("hi")
        assert engines[0].options["trace"] is False

    def test_the_log_is_shown_on_request(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        names = ("common", "m1_basic", "m7_gptq")
        for name in names:
            monkeypatch.setattr(logging.getLogger(name), "level", logging.NOTSET)
        run("hi")
        assert {logging.getLogger(name).level for name in names} == {logging.NOTSET}
        run("hi", "--verbose")
        assert {logging.getLogger(name).level for name in names} == {logging.INFO}


def test_a_wrong_flag_costs_no_model(engines: list[EchoEngine]) -> None:
    with pytest.raises(ConfigError):
        cli("m1_basic", ["hi", "--dtype", "int3"])
    assert engines == []


def test_the_timing_line() -> None:
    stats = EngineStats(weight_bytes=3 * MIB, kv_bytes=MIB, peak_memory_bytes=5 * MIB)
    assert timing_line(output("hi"), stats) + "\n" == TIMINGS
    one = dataclasses.replace(output("hi"), metrics=RequestMetrics(10.0, (10.25,), 10.25))
    assert timing_line(one, stats).startswith("[TTFT 250 ms · 3 prompt + 2 output tokens")
