from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import ConfigError
from tools.interview.__main__ import main
from tools.interview.numbers import read_number, show

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "typed, unit, value",
    [
        ("112 KiB", "bytes", 114_688),
        ("114688", "bytes", 114_688),
        ("114,688", "bytes", 114_688),
        ("114_688 bytes", "bytes", 114_688),
        ("1.1e5", "bytes", 1.1e5),
        ("1.19 GB", "bytes", 1.19e9),
        ("0.112 mib", "bytes", 0.112 * 1024**2),
        ("~ 1.5GiB", "bytes", 1.5 * 1024**3),
        (".5 ms", "s", 5e-4),
        ("585 µs", "s", 585e-6),
        ("2", "s", 2),
        ("26 %", "fraction", 0.26),
        ("0.26", "fraction", 0.26),
        ("3.85x", "ratio", 3.85),
        ("about 10k", "tokens", 10_000),
        ("10.4 k tokens", "tokens", 10_400),
        ("596M parameters", "parameters", 596e6),
        ("0.6 billion", "parameters", 0.6e9),
        ("2,810 tokens/s", "tokens/s", 2810),
    ],
)
def test_numbers_as_people_type_them(typed: str, unit: str, value: float) -> None:
    assert read_number(typed, unit) == pytest.approx(value)


@pytest.mark.parametrize(
    "typed, unit, message",
    [
        ("many", "bytes", "'many' is not a number"),
        ("", "bytes", "'' is not a number"),
        ("1.2.3", "bytes", "is not a number"),
        ("3 ms", "bytes", "'ms' is not a unit of bytes; known: b,"),
        ("3 bytes", "s", "'bytes' is not a unit of s"),
        ("3 apples", "tokens", "'apples' is not tokens"),
        ("3 k apples", "tokens", "'k apples' is not tokens"),
    ],
)
def test_what_is_no_number_of_the_unit(typed: str, unit: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_number(typed, unit)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "value, unit, text",
    [
        (114_688, "bytes", "114,688 bytes (112 KiB)"),
        (512, "bytes", "512 bytes"),
        (0.000356, "s", "356 µs"),
        (1.5, "s", "1.50 s"),
        (0.261, "fraction", "26.1 %"),
        (3.85, "ratio", "3.85×"),
        (10_394.0, "tokens", "10,394 tokens"),
        (10.2, "sequences", "10.2 sequences"),
    ],
)
def test_values_for_people(value: float, unit: str, text: str) -> None:
    assert show(value, unit).replace("\u00a0", " ") == text


def ask(typed: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """The command as ``make interview`` runs it, with a pipe for a user."""
    return subprocess.run(
        [sys.executable, "-m", "tools.interview", *flags],
        cwd=ROOT,
        input=typed,
        capture_output=True,
        text=True,
        check=False,
    )


ONE = ("--stage", "m3", "--in-order", "--count", "1", "--model", "Qwen3-4B")


class TestPipe:
    def test_question_points_grade_number_and_summary(self) -> None:
        done = ask("kv heads times head_dim\nmaybe\ny\n144 apples\n144 KiB\n", *ONE)
        assert (done.returncode, done.stderr) == (0, "")
        places = [
            done.stdout.index(text)
            for text in (
                "1/1 · m3 · memory · warm-up",
                "> kv heads times head_dim",
                "An interviewer listens for:",
                "Asked next:",
                "test common/tests/test_model_costs.py::TestAgainstTheModel",
                "Did you have it? [y/n] maybe",
                "y or n, please.",
                "And a number: Bytes of KV cache per token of Qwen3-4B",
                "'apples' is not a unit of bytes",
                "Right: 147,456 bytes (144 KiB).",
                "1 of 1 known.",
                "1 of 1 numbers right.",
            )
        ]
        assert places == sorted(places)

    def test_a_wrong_number_and_a_question_to_come_back_to(self) -> None:
        out = ask("\nn\n112 KiB\n", *ONE).stdout
        assert "Not quite: 147,456 bytes (144 KiB), from kv_bytes(model)." in out
        assert out.endswith("Come back to: m3-kv-bytes-per-token\n")
        assert "0 of 1 known.\n0 of 1 numbers right.\n" in out

    def test_an_empty_line_shows_the_number_and_is_not_graded(self) -> None:
        out = ask("\ny\n\n", *ONE).stdout
        assert "It is 147,456 bytes (144 KiB)." in out
        assert "numbers right" not in out

    @pytest.mark.parametrize(
        "typed, end", [("", "No question was graded.\n"), ("x\ny\n", "known.")]
    )
    def test_the_end_of_the_input_is_a_summary(self, typed: str, end: str) -> None:
        done = ask(typed, "--stage", "m3", "--in-order")
        assert (done.returncode, done.stderr) == (0, "")
        assert end in done.stdout[-40:]

    def test_a_seed_repeats_order_and_models(self) -> None:
        first, again, other = (
            ask("\ny\n" * 3, "--seed", seed, "--count", "3").stdout for seed in ("1", "1", "2")
        )
        assert first == again
        assert first != other

    @pytest.mark.parametrize(
        "flags, message",
        [
            (("--stage", "m9"), "error: argument --stage: invalid choice: 'm9'"),
            (("--count", "0"), "error: argument --count: must be at least 1, got 0"),
            (("--seed", "x"), "error: argument --seed: invalid int value"),
            (("--stage", "m0", "--theme", "kernels"), "error: no question of stage m0 and theme"),
        ],
    )
    def test_bad_flags_are_one_line(self, flags: tuple[str, ...], message: str) -> None:
        done = ask("", *flags)
        assert done.returncode == 2
        assert done.stderr.startswith(message)
        assert done.stderr.count("\n") == 1


def test_ctrl_c_ends_with_a_summary(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_sign: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    assert main([*ONE]) == 0
    assert capsys.readouterr().out.endswith("\n\nNo question was graded.\n")


def test_a_drawn_model_is_one_that_the_answer_does_not_give_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["", "y", ""] * 4)
    monkeypatch.setattr("builtins.input", lambda _sign: next(lines))
    for seed in range(4):
        assert main(["--stage", "m3", "--in-order", "--count", "1", "--seed", str(seed)]) == 0
    out = capsys.readouterr().out
    assert out.count("It is 147,456 bytes") == 4  # never 114,688, which the 1.7B shares


def test_theme_picks_across_stages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="invalid choice"):
        main(["--theme", "cooking"])
    assert capsys.readouterr().out == ""
