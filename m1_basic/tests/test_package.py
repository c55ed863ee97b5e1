"""What a user of M1 sees besides tokens: its log, its progress bar, its imports."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import m1_basic
from common.request import SamplingParams
from common.testing.conformance import build
from common.testing.fixtures import TinyModel
from m1_basic.engine import LLMEngine

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("options", "kv"), [({}, "KV cache of 512 tokens"), ({"use_cache": False}, "of 0 tokens")]
)
def test_the_log_says_what_was_loaded(
    tiny: TinyModel, caplog: pytest.LogCaptureFixture, options: dict[str, Any], kv: str
) -> None:
    with caplog.at_level(logging.INFO, logger="m1_basic"):
        build("m1_basic", tiny, **options)
    [record] = [r for r in caplog.records if r.name == "m1_basic.engine"]
    assert "Qwen3ForCausalLM as torch.float32 on cpu" in record.getMessage()
    assert kv in record.getMessage()


@pytest.mark.parametrize(
    ("terminal", "prompts", "bar"), [(True, 2, True), (True, 1, False), (False, 2, False)]
)
def test_a_progress_bar_for_many_prompts_on_a_terminal(
    tiny: TinyModel, monkeypatch: pytest.MonkeyPatch, terminal: bool, prompts: int, bar: bool
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stderr", screen)
    build("m1_basic", tiny).generate(
        [tiny.prompts[1]] * prompts, SamplingParams(temperature=0, max_tokens=2)
    )
    assert ("2/2" in screen.getvalue()) == bar
    assert bar or not screen.getvalue()


def test_the_face_of_the_package() -> None:
    assert m1_basic.LLMEngine is LLMEngine
    assert m1_basic.SamplingParams is SamplingParams
    with pytest.raises(AttributeError, match="no attribute 'Engine'"):
        _ = m1_basic.Engine


def test_torch_comes_with_the_engine_and_not_before() -> None:
    program = (
        "import sys, m1_basic; m1_basic.SamplingParams(); early = 'torch' in sys.modules; "
        "m1_basic.LLMEngine; print(early, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert (done.stdout, done.stderr) == ("False True\n", "")
