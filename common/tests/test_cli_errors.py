"""How a command ends: exit codes, one line on stderr, in real processes."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRELUDE = """
import sys
from common.cli_errors import OneLineParser, run
from common.errors import ConfigError, InvalidRequestError

def main(argv):
    {body}
    return 0

run(main)
"""


def command(body: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", PRELUDE.format(body=body), *arguments]


def finish(body: str, *arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        command(body, *arguments), capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    return done.returncode, done.stdout, done.stderr


def test_success_passes_arguments_and_output_through() -> None:
    assert finish("print(argv)", "a", "b") == (0, "['a', 'b']\n", "")


def test_the_exit_code_is_mains() -> None:
    assert finish("return 7") == (7, "", "")


@pytest.mark.parametrize("error", ["ConfigError", "InvalidRequestError"])
def test_a_user_error_is_one_line_and_two(error: str) -> None:
    code, out, err = finish(f"print('before'); raise {error}('too big:\\n  9 of 8')")
    assert (code, out, err) == (2, "before\n", "error: too big: 9 of 8\n")


@pytest.mark.parametrize(
    "body, line",
    [
        ("open('/nowhere/at/all')", "error: /nowhere/at/all: No such file or directory\n"),
        ("raise PermissionError(13, 'Permission denied', 'x')", "error: x: Permission denied\n"),
        ("raise OSError('the disk is on fire')", "error: the disk is on fire\n"),
        ("raise TimeoutError", "error: TimeoutError\n"),
    ],
)
def test_errors_of_the_system(body: str, line: str) -> None:
    assert finish(body) == (2, "", line)


def test_a_mistake_of_our_own_shows_its_traceback() -> None:
    code, _, err = finish("raise ZeroDivisionError('ours')")
    assert code == 1
    assert "Traceback" in err
    assert "ZeroDivisionError: ours" in err


def test_ctrl_c() -> None:
    code, _, err = finish("raise KeyboardInterrupt")
    assert (code, err.strip()) == (130, "")


def test_a_reader_that_goes_away() -> None:
    body = "print('first', flush=True); input(); print('x' * 100_000)"
    with subprocess.Popen(
        command(body),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == "first\n"
        process.stdout.close()
        process.stdin.write("go\n")
        process.stdin.close()
        assert process.wait(timeout=120) == 141
        assert process.stderr.read() == ""


class TestOneLineParser:
    BODY = "p = OneLineParser(prog='p'); p.add_argument('--n', type=int); print(p.parse_args(argv))"

    def test_good_arguments(self) -> None:
        assert finish(self.BODY, "--n", "3") == (0, "Namespace(n=3)\n", "")

    @pytest.mark.parametrize(
        "arguments, message",
        [
            (["--bogus"], "unrecognized arguments: --bogus"),
            (["--n", "x"], "argument --n: invalid int value: 'x'"),
            (["--n"], "argument --n: expected one argument"),
        ],
    )
    def test_bad_arguments_take_one_line(self, arguments: list[str], message: str) -> None:
        assert finish(self.BODY, *arguments) == (2, "", f"error: {message} (see --help)\n")

    def test_help_goes_to_stdout(self) -> None:
        code, out, err = finish(self.BODY, "--help")
        assert (code, err) == (0, "")
        assert out.startswith("usage: p ")
