"""The quantize command, in this process: what it writes, says, and refuses in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from common.cli_errors import run
from common.errors import ConfigError, FoloError, ModelNotFoundError, UnsupportedModelError
from common.testing.checkpoints import tiny_config, write_checkpoint
from m0_init.loader import load
from m1_basic.attention import UncachedAttend
from m7_gptq.linear import gptq_linear
from m7_gptq.quantize import main, make_parser
from m7_gptq.tests.samples import FIXTURES

SMALL = ["--group-size", "16", "--samples", "2", "--seq-len", "16", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("dense") / "model"
    config = tiny_config("llama", layers=1, hidden=32, heads=2, kv_heads=1, head_dim=16)
    return write_checkpoint(made, config, tokenizer=True)


def config_of(out: Path) -> dict[str, object]:
    config: dict[str, object] = json.loads((out / "quantize_config.json").read_text())
    return config


class TestWhatItWrites:
    def test_a_checkpoint_that_runs(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out"
        assert main([str(folder), str(out), *SMALL]) == 0
        said = capsys.readouterr().out
        assert "7 linear layers of 4 bits" in said
        assert re.search(r"mean output error on the calibration text: [\d.]+% \(gptq\)", said)
        model = load(out, device="cpu", linear=gptq_linear(out))
        assert model.tokenizer is not None
        hidden = model.model(torch.tensor([1, 2]), torch.arange(2), UncachedAttend())
        assert bool(torch.isfinite(model.model.logits(hidden)).all())
        assert config_of(out)["format"] == "gptq"

    def test_every_flag_reaches_the_file(self, folder: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        flags = ["--bits", "8", "--desc-act", "--asym", "--damp", "0.05"]
        assert main([str(folder), str(out), *SMALL, *flags]) == 0
        config = config_of(out)
        assert (config["bits"], config["group_size"]) == (8, 16)
        assert (config["desc_act"], config["sym"]) == (True, False)
        assert config["format"] == "gptq_v2"
        assert config["meta"]["damp_percent"] == 0.05  # type: ignore[index]

    def test_round_to_nearest_and_a_format(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out"
        assert main([str(folder), str(out), *SMALL, "--method", "rtn", "--format", "gptq_v2"]) == 0
        assert config_of(out)["format"] == "gptq_v2"
        assert "smaller in 0 of 7 layers" in capsys.readouterr().out

    def test_a_text_of_ones_own(self, folder: Path, tmp_path: Path) -> None:
        text = tmp_path / "text.txt"
        text.write_text("abcdefghij" * 4, encoding="utf-8")
        assert main([str(folder), str(tmp_path / "out"), *SMALL, "--text", str(text)]) == 0
        text.write_text("abc", encoding="utf-8")
        with pytest.raises(ConfigError, match="the calibration text has 3"):
            main([str(folder), str(tmp_path / "other"), *SMALL, "--text", str(text)])

    def test_defaults(self) -> None:
        args = make_parser().parse_args(["m", "o"])
        assert (args.bits, args.group_size, args.samples, args.seq_len) == (4, 128, 32, 512)
        assert not args.desc_act
        assert not args.asym


class TestRefusals:
    def refuse(self, argv: list[str], kind: type[FoloError], message: str) -> None:
        with pytest.raises(kind, match=message):
            main(argv)

    def test_a_group_that_does_not_divide(self, folder: Path, tmp_path: Path) -> None:
        out = str(tmp_path / "out")
        argv = [str(folder), out, "--group-size", "24"]
        self.refuse(argv, ConfigError, "group_size 24 does not divide the 32 inputs")
        assert list(tmp_path.iterdir()) == []

    def test_a_taken_folder(self, folder: Path) -> None:
        self.refuse([str(folder), str(folder), *SMALL], ConfigError, "exists already")

    def test_a_quantised_model(self, tmp_path: Path) -> None:
        source = str(FIXTURES / "llama-asym-v1")
        self.refuse(
            [source, str(tmp_path / "out"), *SMALL],
            UnsupportedModelError, r"quantised already \(gptq\)",
        )  # fmt: skip

    def test_a_model_without_tokenizer(self, tmp_path: Path) -> None:
        config = tiny_config("llama", layers=1, hidden=32, heads=2, kv_heads=1, head_dim=16)
        source = write_checkpoint(tmp_path / "bare", config)
        argv = [str(source), str(tmp_path / "out"), *SMALL]
        self.refuse(argv, ConfigError, "has no tokenizer")

    def test_a_text_that_is_not_utf8(self, folder: Path, tmp_path: Path) -> None:
        text = tmp_path / "text.txt"
        text.write_bytes(b"\xff\xfe")
        argv = [str(folder), str(tmp_path / "out"), *SMALL, "--text", str(text)]
        self.refuse(argv, ConfigError, "is not UTF-8 text")

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--bits", "3"], "invalid choice: 3"),
            (["--bits", "x"], "invalid"),
            (["--group-size", "0"], "group_size must be −1 or at least 1"),
            (["--damp", "0"], r"damp must be in \(0, 1\)"),
            (["--samples", "0"], "at least 1"),
            (["--what"], "unrecognized arguments: --what"),
        ],
    )
    def test_bad_flags(self, folder: Path, tmp_path: Path, flags: list[str], message: str) -> None:
        self.refuse([str(folder), str(tmp_path / "out"), *flags], ConfigError, message)

    def test_a_model_that_is_not_there(self, tmp_path: Path) -> None:
        self.refuse(["./nowhere", str(tmp_path / "out")], ModelNotFoundError, "nowhere")

    def test_one_line_and_exit_code_two(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        argv = ["quantize", "./nowhere", str(tmp_path / "out")]
        monkeypatch.setattr("sys.argv", argv)
        with pytest.raises(SystemExit) as caught:
            run(main)
        assert caught.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1

    def test_a_missing_text_file_is_one_line_too(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
        tmp_path: Path, folder: Path,
    ) -> None:  # fmt: skip
        argv = ["quantize", str(folder), str(tmp_path / "out"), *SMALL, "--text", "no-such-file"]
        monkeypatch.setattr("sys.argv", argv)
        with pytest.raises(SystemExit) as caught:
            run(main)
        assert caught.value.code == 2
        assert capsys.readouterr().err == "error: no-such-file: No such file or directory\n"
