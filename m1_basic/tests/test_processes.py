"""``python -m m1_basic`` as a user runs it: in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from common.config import options_of
from common.request import SamplingParams
from common.testing.fixtures import TinyModel
from m1_basic.tests.helpers import GREEDY, assert_one_line, message, text_of

ROOT = Path(__file__).resolve().parents[2]


def process(
    *argv: str, stdin: bytes = b"", python: tuple[str, ...] = (), **variables: str
) -> tuple[int, str, str]:
    """Run the command as a user does."""
    done = subprocess.run(
        [sys.executable, *python, "-m", "m1_basic", *argv],
        input=stdin,
        capture_output=True,
        cwd=ROOT,
        timeout=240,
        env=os.environ | {"PYTHONUTF8": "1"} | variables,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


class TestProcesses:
    def test_an_answer_and_its_log(self, tiny: TinyModel) -> None:
        code, out, err = process(
            "hello", *GREEDY, "--max-tokens", "8", "--model", str(tiny.folder), "--device", "cpu",
            "--verbose",
        )  # fmt: skip
        assert (code, out) == (0, text_of(tiny, message("hello"), 8) + "\n")
        log, timings = err.splitlines()
        assert log.startswith("INFO m1_basic.engine: Qwen3ForCausalLM as torch.float32 on cpu")
        assert timings.startswith("[TTFT ")

    def test_a_conversation_through_a_pipe(self, tiny: TinyModel) -> None:
        code, out, err = process(
            "--chat", "--max-tokens", "3", *GREEDY, "--model", str(tiny.folder), "--device", "cpu",
            stdin=b"hi\nbye\n",
        )  # fmt: skip
        first = text_of(tiny, message("hi"), 3)
        turns = [*message("hi"), {"role": "assistant", "content": first}, *message("bye")]
        assert (code, out) == (0, f"{first}\n{text_of(tiny, turns, 3)}\n")
        assert [line[:6] for line in err.splitlines()] == ["[TTFT "] * 2

    def test_a_terminal_that_cannot_show_a_character(self, tiny: TinyModel) -> None:
        code, out, err = process(
            "é", "--raw", *GREEDY, "--max-tokens", "32", "--model", str(tiny.folder),
            "--device", "cpu", PYTHONIOENCODING="ascii", PYTHONUTF8="0",
        )  # fmt: skip
        assert code == 0
        expected = text_of(tiny, "é", 32)
        assert not expected.isascii(), "this answer has characters beyond ASCII"
        assert out == expected.encode("ascii", "replace").decode() + "\n"
        assert err.startswith("[TTFT ")

    def test_bad_input_in_one_line(self, tiny: TinyModel) -> None:
        assert_one_line(process("hi", "--max-tokens", "0"), "max_tokens")
        strict = process("--raw", stdin=b"\xff\xfe", PYTHONIOENCODING="utf-8:strict")
        assert_one_line(strict, "not utf-8 text")

    def test_help_needs_no_torch(self) -> None:
        code, out, err = process("--help", python=("-X", "importtime"))
        assert code == 0
        imported = {line.rpartition("|")[2].strip() for line in err.splitlines()}
        assert "common.cli" in imported
        assert not {name for name in imported if name.split(".")[0] in ("torch", "transformers")}
        names = [*SamplingParams.__dataclass_fields__, *(o.name for o in options_of("m1_basic"))]
        assert all("--" + name.replace("_", "-") in out for name in names)
