"""The accuracy benchmark at its smallest size: every row it promises, and a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.testing.checkpoints import tiny_config, write_checkpoint
from m1_basic.benchmarks.command import bench
from m7_gptq.benchmarks.accuracy import cases


def test_accuracy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config("llama", layers=1, hidden=32, heads=2, kv_heads=1, head_dim=16)
    folder = write_checkpoint(tmp_path / "model", config, tokenizer=True)
    argv = ["--smoke", "--model", str(folder), "--device", "cpu", "--out", str(tmp_path / "out")]
    assert bench("m7_gptq", ("accuracy",), argv) == 0
    (file,) = (tmp_path / "out").rglob("m7_gptq-accuracy.json")
    rows = json.loads(file.read_text())["rows"]

    def values(metric: str, **labels: str) -> list[float]:
        return [
            each["median"]
            for each in rows
            if each["metric"] == metric and labels.items() <= each.items()
        ]

    for text in ("python", "bible"):
        (dense,) = values("perplexity", text=text, method="float")
        (gptq,) = values("perplexity", text=text, method="gptq")
        (rise,) = values("perplexity_rise", text=text, method="gptq")
        assert rise == pytest.approx(gptq / dense - 1)
    assert values("layers_below_rtn", samples="calibration") == [1.0]
    assert len(values("layers_below_rtn", samples="held_out")) == 1
    (ratio,) = values("error_over_rtn", samples="calibration")
    assert 0 < ratio < 1
    assert len(values("checkpoint_bytes")) == 2
    assert "best 4-bit setting" in capsys.readouterr().out.splitlines()[-1]


def test_every_case_is_another_one() -> None:
    found = cases(smoke=False, full=True)
    assert len({str(case) for case in found}) == len(found) == 13
    short = cases(smoke=False, full=False)
    assert [str(case) for case in short] == [
        "rtn g64 sym (python+bible)",
        "gptq g64 sym (python+bible)",
        "gptq g64 sym act-order (python+bible)",
    ]
    assert all(case in found for case in short)
    assert all(case.spec.bits == 4 for case in found)
    assert not any(case.method == "rtn" and case.spec.desc_act for case in found)
