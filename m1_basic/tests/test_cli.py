"""``python -m m1_basic``: real answers from a tiny model, and every bad input in one line."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.cli import main
from common.errors import (
    CheckpointError,
    ConfigError,
    FoloError,
    InvalidRequestError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from common.request import SamplingParams
from common.testing.conformance import build
from common.testing.fixtures import TinyModel
from common.trace import Trace
from m1_basic.engine import LLMEngine
from m1_basic.tests.helpers import GREEDY, assert_one_line, message, text_of

Invoke = Callable[..., tuple[int, str, str]]


@pytest.fixture
def invoke(
    tiny: TinyModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Invoke:
    """Run the whole command in this process; gives exit code, stdout and stderr."""

    def run(*argv: str, stdin: str = "", model: str | Path = tiny.folder) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        command = ["m1_basic", *argv, "--model", str(model), "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as caught:
            main("m1_basic")
        out, err = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, out, err

    return run


class TestAnswers:
    def test_the_answer_is_that_of_the_engine(self, invoke: Invoke, tiny: TinyModel) -> None:
        code, out, err = invoke("hello", *GREEDY, "--max-tokens", "12")
        assert (code, out) == (0, text_of(tiny, message("hello"), 12) + "\n")
        [line] = err.splitlines()
        assert line.startswith("[TTFT ")
        assert "12 output tokens · finish: length" in line

    def test_raw_text_from_a_pipe(self, invoke: Invoke, tiny: TinyModel) -> None:
        code, out, _ = invoke("--raw", *GREEDY, "--max-tokens", "12", stdin="def f(x):\n")
        assert (code, out) == (0, text_of(tiny, "def f(x):", 12) + "\n")

    def test_several_prompts_are_served_in_order(self, invoke: Invoke, tiny: TinyModel) -> None:
        code, out, err = invoke("one", "two", *GREEDY, "--max-tokens", "6")
        answers = [text_of(tiny, message(prompt), 6) for prompt in ("one", "two")]
        assert (code, out) == (0, f"--- one\n{answers[0]}\n--- two\n{answers[1]}\n")
        assert len(err.splitlines()) == 2

    def test_a_seed_repeats(self, invoke: Invoke) -> None:
        first, again, other = (
            invoke("hello", "--seed", seed, "--max-tokens", "12")[1] for seed in ("1", "1", "2")
        )
        assert first == again != other

    def test_json(self, invoke: Invoke, tiny: TinyModel) -> None:
        flags = ("--json", "--logprobs", "2", "--max-tokens", "4", *GREEDY)
        code, out, err = invoke("hello", *flags)
        assert (code, err) == (0, "")
        result = json.loads(out)
        [row] = result["outputs"]
        [completion] = row["outputs"]
        assert row["prompt"] == "hello"
        assert tiny.tokenizer.decode(row["prompt_token_ids"], False).count("hello") == 1
        assert completion["text"] == text_of(tiny, message("hello"), 4)
        assert [len(entries) for entries in completion["logprobs"]] == [2] * 4
        assert 0 < row["metrics"]["ttft"] < row["metrics"]["duration"]
        assert result["stats"]["generated_tokens"] == 4

    def test_a_trace(self, invoke: Invoke, tmp_path: Path) -> None:
        path = tmp_path / "made" / "trace.json"
        assert invoke("one", "two", "--max-tokens", "3", "--trace", str(path))[0] == 0
        trace = Trace.read(path)
        trace.validate()
        assert trace.info.stage == "m1_basic"
        assert [info.num_prompt_tokens for info in trace.requests.values()] == [22, 22]
        assert all(step.elapsed_ms is not None for step in trace)

    def test_chat_keeps_the_conversation(self, invoke: Invoke, tiny: TinyModel) -> None:
        code, out, _ = invoke("--chat", *GREEDY, "--max-tokens", "6", stdin="hi\nyou?\n")
        first = text_of(tiny, message("hi"), 6)
        turns = [*message("hi"), {"role": "assistant", "content": first}, *message("you?")]
        assert (code, out) == (0, f"{first}\n{text_of(tiny, turns, 6)}\n")


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def config_is_no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{'single': quotes}")


def truncated_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def unsupported_architecture(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {"architectures": ["MambaForCausalLM"]}
    path.write_text(json.dumps(config | {"model_type": "mamba"}))


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


BROKEN: dict[Callable[[Path], None], tuple[type[FoloError], str]] = {
    without_config: (ModelNotFoundError, "no config.json"),
    config_is_no_json: (CheckpointError, "config.json"),
    truncated_weights: (CheckpointError, "model.safetensors"),
    unsupported_architecture: (UnsupportedModelError, "MambaForCausalLM"),
}


@pytest.fixture
def folder(tiny: TinyModel, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be broken."""
    return Path(shutil.copytree(tiny.folder, tmp_path / "model"))


class TestBadInput:
    @pytest.mark.parametrize(
        ("argv", "said"),
        [
            ([], "no prompt"),
            ([""], "the prompt is empty"),
            (["", "--raw"], "the prompt is empty"),
            (["x" * 600], "the prompt has 619 tokens"),
            (["fine", "x" * 600], "max_model_len (512)"),
            (["hi", "--max-model-len", "16"], "max_model_len (16)"),
            (["hi", "--max-model-len", "513"], "max_model_len must be at most 512"),
            (["hi", "--max-tokens", "0"], "max_tokens must be an integer of at least 1, got 0"),
            (["hi", "--max-tokens", "-1"], "max_tokens must be an integer of at least 1, got -1"),
            (["hi", "--max-tokens", "ten"], "--max-tokens: invalid int value: 'ten'"),
            (["hi", "--temperature", "-0.5"], "temperature must be in [0, inf), got -0.5"),
            (["hi", "--top-p", "0"], "top_p must be in (0, 1], got 0.0"),
            (["hi", "--top-p", "1.5"], "top_p must be in (0, 1], got 1.5"),
            (["hi", "--stop-token-ids", "320"], "token id 320, outside the vocabulary [0, 320)"),
            (["hi", "--stop-token-ids", "-1"], "stop_token_ids must be an integer of at least 0"),
            (["hi", "--dtype", "int3"], "dtype must be one of auto, float32, bfloat16, float16"),
            (["hi", "--no-thinking"], "chat template has no option 'enable_thinking'"),
            (["hi", "--bogus"], "unknown flag --bogus"),
            (["hi", "--block-size", "4"], "no option 'block_size': it arrives with m3_paged"),
            (["caf\udce9"], "not valid Unicode"),
        ],
        ids=lambda value: " ".join(value)[:40].encode("ascii", "replace").decode()
        if isinstance(value, list) else "",
    )  # fmt: skip
    def test_requests_and_flags(self, invoke: Invoke, argv: list[str], said: str) -> None:
        assert_one_line(invoke(*argv), said)

    @pytest.mark.parametrize("damage", BROKEN, ids=lambda damage: damage.__name__)
    def test_model_folders(
        self, invoke: Invoke, folder: Path, damage: Callable[[Path], None]
    ) -> None:
        damage(folder)
        assert_one_line(invoke("hi", model=folder), BROKEN[damage][1])

    def test_unknown_model(self, invoke: Invoke) -> None:
        assert_one_line(invoke("hi", model="no-such-model"), "unknown model 'no-such-model'")

    def test_a_model_without_tokenizer(self, invoke: Invoke, folder: Path) -> None:
        no_tokenizer(folder)
        assert_one_line(invoke("hi", model=folder), "no tokenizer: pass token ids")

    def test_a_trace_that_cannot_be_written(self, invoke: Invoke, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        result = invoke("hi", "--trace", str(tmp_path))
        assert_one_line(result, "--trace needs a file")
        code, _, err = invoke(
            "hi", "--max-tokens", "1", "--trace", str(tmp_path / "file" / "t.json")
        )
        assert code == 2
        assert err.splitlines()[-1].startswith("error: ")

    def test_a_conversation_that_outgrows_the_context(self, invoke: Invoke) -> None:
        code, out, err = invoke(
            "--chat", "--max-model-len", "64", "--max-tokens", "4", *GREEDY, stdin="hi\n" * 9
        )
        assert code == 2
        assert out.count("\n") >= 1, "earlier turns were answered"
        assert err.splitlines()[-1].startswith("error: the prompt has ")


class TestTypedErrors:
    """The same mistakes from Python."""

    @pytest.mark.parametrize("damage", BROKEN, ids=lambda damage: damage.__name__)
    def test_model_folders(self, folder: Path, damage: Callable[[Path], None]) -> None:
        damage(folder)
        kind, said = BROKEN[damage]
        with pytest.raises(kind, match=said):
            LLMEngine(folder, device="cpu")

    def test_names_and_options(self, folder: Path) -> None:
        with pytest.raises(ModelNotFoundError, match="no-such-model"):
            LLMEngine("no-such-model", device="cpu")
        with pytest.raises(ConfigError, match="dtype must be one of"):
            LLMEngine(folder, dtype="int3")
        with pytest.raises(ConfigError, match="arrives with m3_paged"):
            LLMEngine(folder, block_size=4)

    @pytest.mark.parametrize(
        "field", [{"max_tokens": 0}, {"max_tokens": -1}, {"temperature": -1}, {"top_p": 0},
                  {"top_p": 1.01}], ids=str,
    )  # fmt: skip
    def test_parameters(self, field: dict[str, Any]) -> None:
        with pytest.raises(InvalidRequestError, match=next(iter(field))):
            SamplingParams(**field)

    @pytest.mark.parametrize(
        ("prompt", "params", "said"),
        [
            ("", {}, "empty"),
            ([[]], {}, "empty"),
            ([[5] * 512], {}, r"max_model_len \(512\)"),
            ([[5, 320]], {}, r"prompt holds token id 320, outside the vocabulary \[0, 320\)"),
            ([[-1]], {}, "prompt holds token id -1"),
            ([[5]], {"stop_token_ids": (320,)}, "stop_token_ids holds token id 320"),
        ],
        ids=["text", "no id", "long", "id", "negative id", "stop id"],
    )
    def test_requests(
        self, tiny: TinyModel, prompt: Any, params: dict[str, Any], said: str
    ) -> None:
        engine = build("m1_basic", tiny)
        with pytest.raises(InvalidRequestError, match=said):
            engine.generate(prompt, SamplingParams(**params))
        with pytest.raises(InvalidRequestError, match=said):
            engine.stream(prompt[0] if prompt else prompt, SamplingParams(**params))
