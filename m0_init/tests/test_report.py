"""``python -m m0_init``: what it prints, as text and as JSON, and how it fails."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import ConfigError, FoloError, InvalidRequestError, OutOfMemoryError
from common.model_config import ModelConfig
from common.testing.checkpoints import tiny_config, write_checkpoint
from common.testing.oracle import HFOracle
from m0_init.__main__ import main
from m0_init.report import as_dict, make_report
from m0_init.report_text import as_text, table

ROOT = Path(__file__).resolve().parents[2]
TORCH_IS_POISON = "import sys; sys.modules['torch'] = None; sys.argv = {argv!r}; "
RUN = "import runpy; runpy.run_module('m0_init', run_name='__main__')"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config("qwen3", layers=2, eos_token_id=257)
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), config, tokenizer=True)


@pytest.fixture(scope="module")
def ids_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config("llama", layers=1, tied=False, qkv_bias=True, kv_heads=4)
    return write_checkpoint(tmp_path_factory.mktemp("ids"), config)


def shell(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "m0_init", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )


class TestNextTokens:
    def test_they_are_the_likeliest_of_transformers(self, folder: Path) -> None:
        report = make_report(str(folder), device="cpu", prompt="Hello")
        logits = HFOracle(folder).hidden_states(list(b"Hello")).logits[-1]
        probabilities, order = logits.softmax(-1).topk(5)
        assert report.prompt_token_ids == tuple(b"Hello")
        assert [token.token_id for token in report.next_tokens] == order.tolist()
        ours = report.next_tokens
        assert [t.probability for t in ours] == pytest.approx(probabilities.tolist(), rel=1e-3)
        assert [t.logit for t in ours] == pytest.approx(logits[order].tolist(), rel=1e-3)

    def test_without_a_tokenizer_ids_stand_in(self, ids_only: Path) -> None:
        report = make_report(str(ids_only), device="cpu")
        assert report.prompt is None
        assert report.prompt_token_ids == (0, 1, 2, 3)
        assert all(token.text is None for token in report.next_tokens)
        assert "Next token after ids (0, 1, 2, 3) (4 tokens" in as_text(report)

    def test_smollm2_knows_the_capital_of_france(self) -> None:
        report = make_report("smollm2", device="cpu")
        assert report.prompt == "The capital of France is"
        assert report.next_tokens[0].text == " Paris"


class TestText:
    def test_blocks_and_numbers(self, folder: Path) -> None:
        text = as_text(make_report(str(folder), device="cpu", memory_gib=2, dtype="bfloat16"))
        titles = [line for line in text.splitlines() if line and not line.startswith(" ")]
        assert titles[0] == str(folder)
        assert titles[1:5] == [
            "Architecture",
            "Parameters",
            "Bytes by dtype",
            "Memory of a device of 2 GiB",
        ]
        assert titles[5].startswith("Next token after 'The capital of France is' (24 tokens")
        for line in (
            r"  class +Qwen3ForCausalLM",
            r"  query heads +4 of 32 = 128",
            r"  KV heads +2 of 32 = 64, each for 2 query heads",
            r"  QK-norm +yes",
            r"  biases +none",
            r"  lm_head +the embedding",
            r"  end of sequence +id 257",
            r"  component +parameters +share +bfloat16",
            r"  embedding +20,480 .*",
            r"  total +106,944 +100\.0 % +0\.2 MiB",
            r"  KV per token +1,024 B +512 B +512 B",
            r"  budget +1\.80 GiB +90 % of total, or what is free",
            r"  KV for 3,\d\d\d,\d\d\d tokens: 2\d\d,\d\d\d blocks of 16, or 7,\d\d\d sequences .*",
        ):
            assert re.search(f"^{line}$", text, re.MULTILINE), line

    def test_another_family(self, ids_only: Path) -> None:
        text = as_text(make_report(str(ids_only), device="cpu", memory_gib=1))
        for line in (
            r"  KV heads +4 of 32 = 128, one for each query head",
            r"  biases +q, k, v; o",
            r"  lm_head +its own matrix",
            r"  end of sequence +none",
            r"  lm_head +20,480 .*",
        ):
            assert re.search(f"^{line}$", text, re.MULTILINE), line

    def test_no_line_is_wider_than_a_terminal(self, folder: Path) -> None:
        lines = as_text(make_report(str(folder), device="cpu")).splitlines()
        assert max(map(len, lines[1:])) <= 100

    def test_table_aligns(self) -> None:
        assert table([("a", "1"), ("bbb", "22")], " r") == ["a     1", "bbb  22"]
        assert table([("a", ""), ("bb", "")]) == ["a", "bb"]


class TestJson:
    def test_it_holds_everything(self, folder: Path) -> None:
        report = make_report(str(folder), device="cpu", prompt="Hi", memory_gib=2)
        data = json.loads(json.dumps(as_dict(report)))
        assert set(data) == {
            "model", "architecture", "parameters", "weight_bytes", "kv_bytes_per_token", "dtype",
            "device", "memory_plan", "prompt", "prompt_token_ids", "next_tokens", "load_seconds",
        }  # fmt: skip
        config = ModelConfig.from_pretrained(folder)
        assert data["architecture"]["hidden_size"] == config.hidden_size
        parts = dict(data["parameters"])
        assert parts.pop("total") == sum(parts.values())
        assert data["weight_bytes"]["bfloat16"] == 2 * data["parameters"]["total"]
        plan = data["memory_plan"]
        assert plan["num_tokens"] == plan["num_blocks"] * plan["block_size"]
        assert plan["memory_bytes"] == data["device"]["total_bytes"] == 2 * 1024**3
        assert len(data["next_tokens"]) == 5

    def test_on_the_command_line(self, folder: Path) -> None:
        done = shell("--model", str(folder), "--json", "--prompt", "é", "--device", "cpu")
        assert (done.returncode, done.stderr) == (0, "")
        data = json.loads(done.stdout)
        assert data["prompt_token_ids"] == list("é".encode())
        assert data["dtype"] == "float32"


class TestCommandLine:
    def test_the_default_is_the_text(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["--model", str(folder), "--device", "cpu", "--memory-gib", "2"]) == 0
        printed = capsys.readouterr().out
        assert "Architecture" in printed
        assert "Memory of a device of 2 GiB" in printed

    def test_help_needs_no_torch(self) -> None:
        code = TORCH_IS_POISON.format(argv=["m0_init", "--help"]) + RUN
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120
        )
        assert (done.returncode, done.stderr) == (0, "")
        for flag in ("--model", "--dtype", "--device", "--prompt", "--json", "--memory-gib"):
            assert flag in done.stdout

    def test_planning_needs_no_torch(self) -> None:
        code = (
            TORCH_IS_POISON.format(argv=[])
            + "from common.qwen3 import QWEN3_0_6B, CONSTANTS; import m0_init.report_text; "
            + "from m0_init.memory_plan import plan_memory; "
            + "print(plan_memory(QWEN3_0_6B, 24 * 2**30).num_blocks > 10_000, len(CONSTANTS) > 50)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "True True\n", "")

    @pytest.mark.parametrize(
        "arguments, message",
        [
            (["--model", "nobody"], "unknown model 'nobody'"),
            (["--dtype", "int3"], "dtype must be auto, .*, got 'int3'"),
            (["--device", "tpu"], "device must be auto, .*, got 'tpu'"),
            (["--memory-gib", "0"], "memory_gib must be a positive number, got 0"),
            (["--memory-gib", "inf"], "memory_gib must be a positive number, got inf"),
            (["--memory-gib", "x"], "argument --memory-gib: invalid float value: 'x'"),
            (["--turbo"], "unrecognized arguments: --turbo"),
            (["--prom", "x"], "unrecognized arguments: --prom x"),
        ],
    )
    def test_bad_input_is_a_typed_error(self, arguments: list[str], message: str) -> None:
        with pytest.raises(ConfigError if "nobody" not in arguments else FoloError, match=message):
            main(arguments)

    def test_and_one_line_in_the_shell(self) -> None:
        done = shell("--model", "nobody")
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(r"error: unknown model 'nobody'.*\n", done.stderr)

    @pytest.mark.parametrize(
        "options, error, message",
        [
            ({"prompt": ""}, InvalidRequestError, "the prompt is empty"),
            ({"prompt": "x" * 512}, InvalidRequestError, "the prompt has 512 tokens"),
            ({"memory_gib": 0.001}, OutOfMemoryError, r"needed .* and the budget is 0\.9 MiB"),
        ],
    )
    def test_prompts_and_sizes_that_do_not_fit(
        self, folder: Path, options: dict[str, Any], error: type[FoloError], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            make_report(str(folder), device="cpu", **options)

    def test_text_for_a_model_without_tokenizer(self, ids_only: Path) -> None:
        with pytest.raises(InvalidRequestError, match="this model has no tokenizer"):
            make_report(str(ids_only), device="cpu", prompt="Hi")

    def test_inference_leaves_no_gradients_on(self, folder: Path) -> None:
        make_report(str(folder), device="cpu")
        assert torch.is_grad_enabled()
