"""The benchmarks at their smallest, on a tiny checkpoint: which rows, which labels, what ends."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import ConfigError, InvalidRequestError
from common.metrics import Peak
from common.model_costs import decode_bytes, kv_bytes, weight_bytes
from common.random_model import NOTE, RANDOM_MODEL
from common.results import Result, read_result
from common.testing.fixtures import TinyModel
from m1_basic.benchmarks import cache_curve, command, latency
from m1_basic.benchmarks.baseline import TransformersGenerate
from m1_basic.benchmarks.command import bench
from m1_basic.engine import LLMEngine

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("latency", "cache_curve")
BANDWIDTH = 1e9


@pytest.fixture(scope="module", autouse=True)
def known_ceilings() -> Iterator[None]:
    """Measuring a ceiling takes longer than everything else here."""
    peak = Peak(BANDWIDTH, "measured", "a device")
    with pytest.MonkeyPatch.context() as patch:
        for module in (latency, cache_curve):
            patch.setattr(module, "measured_bandwidth", lambda _device: peak)
        patch.setattr(latency, "measured_flops", lambda _device, _dtype: peak)
        yield


def run_bench(model: TinyModel, out: Path, *flags: str) -> None:
    command = ["--model", str(model.folder), "--device", "cpu", "--out", str(out), *flags]
    assert bench("m1_basic", NAMES, command) == 0


@pytest.fixture(scope="module")
def results(
    known_ceilings: None, tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Result], str]:
    """Both results of one smoke run, and the text of the files."""
    out = tmp_path_factory.mktemp("results")
    run_bench(tiny, out, "--smoke", "--repeat", "3")
    files = {name: next(out.glob(f"*/m1_basic-{name}.json")) for name in NAMES}
    text = "".join(path.read_text(encoding="utf-8") for path in files.values())
    return {name: read_result(path) for name, path in files.items()}, text


class TestLatency:
    @pytest.fixture
    def result(self, results: tuple[dict[str, Result], str]) -> Result:
        return results[0]["latency"]

    def test_both_engines_are_measured_alike(self, result: Result) -> None:
        metrics = {
            "ttft": ("s", 3),
            "tpot": ("s", 3),
            "decode_throughput": ("tok/s", 3),
            "output_throughput": ("tok/s", 3),
            "request_memory": ("B", 1),
            "peak_memory": ("B", 1),
        }
        for engine in ("m1_basic", "transformers", "transformers-eager"):
            rows = result.select(engine=engine, prompt_tokens=16)
            assert {item["metric"]: (item["unit"], item["n"]) for item in rows} == metrics
            assert all(item["median"] > 0 for item in rows if item["metric"] != "request_memory")
        assert len(result.rows) == 3 * len(metrics)

    def test_quantities_fit_together(self, result: Result) -> None:
        for engine in ("m1_basic", "transformers"):
            value = {row["metric"]: row["median"] for row in result.select(engine=engine)}
            # Medians of three, so they keep the relations that hold in every run.
            assert value["tpot"] * value["decode_throughput"] == pytest.approx(1)
            assert value["output_throughput"] < 5 / value["ttft"], "five tokens, the first is one"

    def test_memory_counts_what_was_held_before(self, result: Result, tiny: TinyModel) -> None:
        config = LLMEngine(tiny.folder, device="cpu").model.config
        held = {"transformers": weight_bytes(config, "float32")}
        held["m1_basic"] = held["transformers"] + kv_bytes(config, 512, "float32")
        for engine, size in held.items():
            value = {row["metric"]: row["median"] for row in result.select(engine=engine)}
            assert value["peak_memory"] - value["request_memory"] == size
        assert result.config["reserved_kv_bytes"] == kv_bytes(config, 512, "float32")
        assert latency.MEMORY_NOTE in result.notes

    def test_the_file_says_what_ran(self, result: Result, tiny: TinyModel) -> None:
        assert (result.stage, result.benchmark) == ("m1_basic", "latency")
        assert result.config["model"] == tiny.folder.name
        assert result.config["dtype"] == "float32"
        assert result.workload is not None
        assert (result.workload.num_requests, result.workload.prompt_tokens) == (1, 16)


class TestCacheCurve:
    @pytest.fixture
    def result(self, results: tuple[dict[str, Result], str]) -> Result:
        return results[0]["cache_curve"]

    def test_a_curve_with_one_without_and_the_floor(self, result: Result) -> None:
        for context in (8, 16):
            for cache in ("on", "off"):
                [row] = result.select(metric="step_time", cache=cache, context=context)
                assert row["median"] > 0
                assert (row["unit"], row["n"]) == ("s", 3)
        assert len(result.rows) == 4 + 2

    def test_the_floor_is_bytes_over_bandwidth(self, result: Result, tiny: TinyModel) -> None:
        config = LLMEngine(tiny.folder, device="cpu").model.config
        for context in (8, 16):
            [row] = result.select(metric="step_floor", context=context)
            expected = decode_bytes(config, 1, context, "float32") / BANDWIDTH
            assert row["median"] == pytest.approx(expected)
        assert result.config["copy_bandwidth"] == BANDWIDTH

    def test_a_step_is_a_decode_step(self, tiny: TinyModel) -> None:
        engine = LLMEngine(tiny.folder, device="cpu")
        measure = cache_curve._step_of(engine, list(tiny.prompts[1]))
        stats = engine.stats()
        assert measure() > 0
        assert engine.stats().num_steps - stats.num_steps == 4
        assert engine.stats().generated_tokens - stats.generated_tokens == 4


def test_files_name_no_folder_of_this_machine(
    results: tuple[dict[str, Result], str], tiny: TinyModel
) -> None:
    assert str(tiny.folder.parent) not in results[1]


@pytest.mark.parametrize(
    ("size", "prompts", "contexts"),
    [
        ({"smoke": True, "full": False}, (16,), (8, 16)),
        ({"smoke": False, "full": False}, (128, 512), (16, 32, 64, 128, 256)),
        (
            {"smoke": False, "full": True},
            (128, 512, 2048),
            (16, 32, 64, 128, 256, 512, 1024, 2048),
        ),
    ],
    ids=["smoke", "default", "full"],
)
def test_sizes(size: dict[str, bool], prompts: tuple[int, ...], contexts: tuple[int, ...]) -> None:
    args = Namespace(**size)
    assert latency.prompt_lengths(args) == prompts
    assert cache_curve.context_lengths(args) == contexts
    workload = latency.one_of_each(prompts, 3, vocab=50)
    assert all(0 <= token < 50 for prompt in workload.prompts for token in prompt)
    assert tuple(len(prompt) for prompt in workload.prompts) == prompts
    assert {request.sampling_params.max_tokens for request in workload.requests} == {3}


class TestBaseline:
    def test_token_times_and_ids_are_those_of_generate(
        self, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        baseline = TransformersGenerate(tiny.folder, torch.float32, "cpu")
        generated: list[list[int]] = []
        generate = baseline.model.generate

        def kept(**arguments: Any) -> Any:
            out = generate(**arguments)
            generated.append(out[0].tolist())
            return out

        monkeypatch.setattr(baseline.model, "generate", kept)
        prompt = tiny.prompts[1]
        times = baseline.token_times(prompt, 6)
        assert len(times) == 6
        assert all(early < late for early, late in pairwise(times))
        assert generated == [[*prompt, *tiny.oracle.greedy(prompt, 6)]]
        assert len(baseline.token_times(prompt, 3)) == 3

    def test_a_batch_gives_each_prompt_its_own_ids(self, tiny: TinyModel) -> None:
        baseline = TransformersGenerate(tiny.folder, torch.float32, "cpu")
        prompts = [[5, 6, 7], [9, 8, 7]]
        assert baseline.generate(prompts, 4) == [tiny.oracle.greedy(p, 4) for p in prompts]

    def test_eos_of_the_checkpoint_does_not_shorten_it(self, tiny: TinyModel) -> None:
        baseline = TransformersGenerate(tiny.folder, torch.float32, "cpu")
        baseline.model.config.eos_token_id = tiny.oracle.greedy(tiny.prompts[1], 1)[0]
        assert len(baseline.token_times(tiny.prompts[1], 4)) == 4


class TestCommand:
    def test_only_one_and_the_summary_comes_last(
        self, tiny: TinyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run_bench(tiny, tmp_path, "--smoke", "--only", "cache_curve", "--repeat", "1")
        assert [path.name for path in tmp_path.glob("*/*.json")] == ["m1_basic-cache_curve.json"]
        last = capsys.readouterr().out.strip().splitlines()[-1]
        assert last.startswith("m1_basic with cache, context 16: ")
        assert "tok/s · MBU" in last

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--only", "nothing"], "--only: invalid choice"),
            (["--bogus"], "unrecognized arguments: --bogus"),
            (["--device", "tpu"], "device must be"),
        ],
    )
    def test_bad_flags(self, flags: list[str], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            bench("m1_basic", NAMES, flags)

    def test_a_prompt_longer_than_the_context(self, tiny: TinyModel, tmp_path: Path) -> None:
        with pytest.raises(InvalidRequestError, match="512 tokens"):
            run_bench(tiny, tmp_path, "--only", "latency", "--repeat", "1")
        assert not list(tmp_path.glob("*/*.json"))

    @pytest.mark.parametrize(
        ("device", "model", "notes"), [("cpu", "smollm2", []), ("cuda:0", RANDOM_MODEL, [NOTE])]
    )
    def test_the_model_suits_the_device(
        self, monkeypatch: pytest.MonkeyPatch, device: str, model: str, notes: list[str]
    ) -> None:
        seen: list[Any] = []
        monkeypatch.setattr("m0_init.loader.resolve_device", lambda _name: device)

        def run(args: Namespace, given: list[str]) -> tuple[None, str]:
            seen.append((args, given))
            return None, ""

        monkeypatch.setattr(latency, "run", run)
        monkeypatch.setattr(command, "finish", lambda *_: None)
        bench("m1_basic", ("latency",), ["--smoke"])
        [(args, given)] = seen
        assert (args.device, args.model, given) == (device, model, notes)


def test_the_command_itself_refuses_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "m1_basic.benchmarks", "--repeat", "0"],
        capture_output=True, text=True, cwd=ROOT, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: argument --repeat: must be at least 1, got 0 (see --help)\n"
