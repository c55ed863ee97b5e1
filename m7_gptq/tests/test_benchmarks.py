"""The accuracy benchmark at its smallest size: every row it promises, and a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from common.model.linear import DenseLinear
from common.results import Result, read_result
from common.testing.checkpoints import tiny_config, write_checkpoint
from common.workload import DEFAULT_VOCAB
from m1_basic.benchmarks.command import bench
from m6_prefix.engine import LLMEngine as M6Engine
from m7_gptq.benchmarks import accuracy, kept, stream
from m7_gptq.benchmarks.accuracy import cases
from m7_gptq.benchmarks.rounded import RoundedEngine
from m7_gptq.linear import GPTQLinear

VOCAB = -(-DEFAULT_VOCAB // 4) * 4


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
    for text in ("python", "bible"):
        for method, plain in (("float+head8", "float"), ("gptq+head8", "gptq")):
            (eight,) = values("perplexity", text=text, method=method)
            (four,) = values("perplexity", text=text, method=plain)
            assert eight != four
            assert eight == pytest.approx(four, rel=0.05)
    # 320 × 32 floats against 8 bits, a scale and a zero point for each row, and the groups' index.
    saved = 320 * 32 * 4 - 320 * (32 + 2 + 1) - 32 * 4
    assert values("head_bytes_saved") == [saved, saved]
    assert "best 4-bit setting" in capsys.readouterr().out.splitlines()[-1]


def test_finished_cases_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "commit", lambda: "0123abc")
    case = ([{"metric": "x", "median": 1.5}], {"python": 14.25})
    monkeypatch.setattr(kept, "FOLDER", tmp_path)
    first = kept.Kept(True, {"samples": 2})
    assert first.find({"method": "rtn"}) is None
    first.keep({"method": "rtn"}, case)
    again = kept.Kept(True, {"samples": 2})
    assert again.find({"method": "rtn"}) == case
    assert again.find({"method": "gptq"}) is None
    assert kept.Kept(True, {"samples": 4}).find({"method": "rtn"}) is None
    monkeypatch.setattr(kept, "commit", lambda: "4567def")
    assert kept.Kept(True, {"samples": 2}).find({"method": "rtn"}) is None


@pytest.mark.parametrize(("enabled", "source"), [(False, "0123abc"), (True, "unknown")])
def test_nothing_is_kept_of_short_runs_and_unknown_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enabled: bool, source: str
) -> None:
    monkeypatch.setattr(kept, "commit", lambda: source)
    monkeypatch.setattr(kept, "FOLDER", tmp_path)
    found = kept.Kept(enabled, {})
    found.keep({"method": "rtn"}, ([], {}))
    assert found.find({"method": "rtn"}) is None
    assert not list(tmp_path.iterdir())


def test_an_interrupted_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole benchmark at the smallest sizes, stopped in its second case."""
    config = tiny_config("llama", layers=1, hidden=32, heads=2, kv_heads=1, head_dim=16)
    folder = write_checkpoint(tmp_path / "model", config, tokenizer=True)
    out = ["--full", "--model", str(folder), "--device", "cpu", "--out", str(tmp_path / "out")]
    few = accuracy.cases(smoke=True, full=False)
    monkeypatch.setattr(accuracy, "FULL", accuracy.SMOKE)
    monkeypatch.setattr(accuracy, "cases", lambda *_: few)
    monkeypatch.setattr(kept, "commit", lambda: "0123abc")
    monkeypatch.setattr(kept, "FOLDER", tmp_path / "kept")
    quantised, calls = accuracy._quantised, []

    def counted(loaded: Any, case: Any, *args: Any, **options: Any) -> Any:
        calls.append(case.method)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return quantised(loaded, case, *args, **options)

    monkeypatch.setattr(accuracy, "_quantised", counted)
    with pytest.raises(KeyboardInterrupt):
        bench("m7_gptq", ("accuracy",), out)
    assert bench("m7_gptq", ("accuracy",), out) == 0
    assert calls == ["rtn", "gptq", "gptq"]
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("1/2 rtn") and line.endswith("(kept)") for line in lines) == 1
    assert sum(line.startswith("2/2 gptq") for line in lines) == 1


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


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Of the stream benchmark, with a model that has biases."""
    folder = tmp_path_factory.mktemp("stream")
    config = tiny_config("qwen2", layers=2, hidden=64, heads=2, kv_heads=1, vocab=VOCAB)
    model = write_checkpoint(folder / "model", config, tokenizer=True)
    argv = ["--smoke", "--model", str(model), "--device", "cpu", "--out", str(folder / "out")]
    assert bench("m7_gptq", ("stream",), [*argv, "--dtype", "float32", "--repeat", "1"]) == 0
    (file,) = (folder / "out").rglob("m7_gptq-stream.json")
    return read_result(file)


class TestStream:
    def test_every_engine_serves_a_stream_and_batches(self, result: Result) -> None:
        times = {(r["engine"], r["batch"]): r["median"] for r in result.select(metric="step_time")}
        names = {stream.CUBLAS, stream.BEST, stream.FOUR, stream.EIGHT}
        assert set(times) == {(name, 1) for name in names} | {
            (name, 2) for name in names - {stream.CUBLAS}
        }
        for found in result.select(metric="speedup"):
            ours, theirs = (times[found[key], found["batch"]] for key in ("engine", "over"))
            assert found["median"] == pytest.approx(theirs / ours)
        assert len(result.select(metric="speedup", over=stream.CUBLAS)) == 2
        assert len(result.select(metric="speedup", over=stream.BEST)) == 4

    def test_bytes_are_those_of_the_layers(self, result: Result) -> None:
        (dense,) = result.select(metric="linear_bytes", engine=stream.BEST)
        (four,) = result.select(metric="linear_bytes", engine=stream.FOUR)
        # Hidden 64, inner 96, q 64, k and v 32 each, groups of 32: words, scales and zeros, g_idx.
        matrices = [(64, 128), (64, 64), (64, 192), (96, 64)]
        assert dense["median"] == 2 * 4 * sum(a * b for a, b in matrices)
        parts = {(64, 128): 3, (64, 64): 1, (64, 192): 2, (96, 64): 1}
        packed = sum(
            a * b // 2 + a // 32 * (b * 2 + b // 2) + 4 * a * parts[a, b] for a, b in matrices
        )
        assert four["median"] == 2 * packed
        whole = {r["engine"]: r["median"] for r in result.select(metric="weight_bytes")}
        assert whole[stream.EIGHT] < whole[stream.FOUR] < whole[stream.BEST]

    def test_the_rounded_model_says_what_its_weights_say(self, tmp_path: Path) -> None:
        """Merged layers are cut into their parts, with their biases."""
        config = tiny_config("qwen2", layers=1, hidden=64, heads=2, kv_heads=1)
        model = write_checkpoint(tmp_path, config, tokenizer=True)
        options: dict[str, Any] = {"device": "cpu", "dtype": "float32", "num_blocks": 16}
        ours, theirs = (
            engine.model.get_submodule("layers.0.attn.qkv")
            for engine in (
                RoundedEngine(model, **options),
                M6Engine(model, linear_backend="torch", **options),
            )
        )
        assert isinstance(ours, GPTQLinear)
        assert isinstance(theirs, DenseLinear)
        apart = (ours.dequantised(0, 128).T - theirs.weight).abs().max()
        assert 0 < apart < 0.1 * theirs.weight.abs().max()
        assert ours.bias is not None
        assert theirs.bias is not None
        assert torch.equal(ours.bias, theirs.bias)

    def test_the_summary(self, result: Result) -> None:
        assert stream.summary(result).startswith("m7_gptq stream: ")
