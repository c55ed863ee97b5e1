"""What the tests of the command line share."""

from __future__ import annotations

from typing import Any

from common.request import SamplingParams
from common.testing.conformance import build
from common.testing.fixtures import TinyModel

GREEDY = ("--temperature", "0", "--ignore-eos")


def text_of(model: TinyModel, prompt: Any, tokens: int) -> str:
    """What the engine itself answers."""
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    [output] = build("m1_basic", model).generate([prompt], params)
    text: str = output.outputs[0].text
    return text


def message(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def assert_one_line(result: tuple[int, str, str], said: str) -> None:
    """Bad input ends with 2, one line on stderr, and nothing on stdout."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert said in err
