"""Model names: folders, the alias, the Hugging Face cache, and a hub played by a local server."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from common import hub
from common.errors import ModelNotFoundError
from common.hub import DEFAULT_MODEL, cache_dir, has_weights, resolve_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"

# ------------------------------------------------------------------------------------ folders


def test_a_folder_with_a_config_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert resolve_model(tmp_path) == tmp_path
    assert resolve_model(str(tmp_path)) == tmp_path


def test_a_home_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert resolve_model("~/") == tmp_path


@pytest.mark.parametrize(
    "name, message",
    [
        ("empty", "the folder empty is not a model: it has no config.json"),
        ("file", "file is a file; a model is named by its folder"),
        ("nothing", "unknown model 'nothing': there is no such folder, .* 'smollm2'"),
        ("./some/where", "unknown model './some/where'"),
        ("/no/such/folder", "unknown model '/no/such/folder'"),
        ("a/b/c", "unknown model 'a/b/c'"),
        ("", "unknown model '': "),
    ],
)
def test_names_that_are_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ModelNotFoundError, match=message) as caught:
        resolve_model(name)
    assert "\n" not in str(caught.value)


def test_the_alias_is_the_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FOLOVLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "embedded_model_folder", lambda cache: cache / "embedded")
    (tmp_path / "smollm2").mkdir()
    (tmp_path / "smollm2" / "config.json").write_text("{}", encoding="utf-8")
    assert resolve_model(DEFAULT_MODEL) == tmp_path / "cache" / "embedded"
    assert resolve_model("./smollm2") == Path("smollm2")


def test_cache_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/reader")
    monkeypatch.delenv("FOLOVLLM_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == Path("/home/reader/.cache/folovllm")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert cache_dir() == Path("/var/cache/folovllm")
    monkeypatch.setenv("FOLOVLLM_CACHE", "~/models")
    assert cache_dir() == Path("/home/reader/models")


def test_has_weights(tmp_path: Path) -> None:
    assert not has_weights(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    (tmp_path / "1.safetensors").write_bytes(b"")
    assert not has_weights(tmp_path)
    (tmp_path / "2.safetensors").write_bytes(b"")
    assert has_weights(tmp_path)
    index.write_text("[]")
    assert not has_weights(tmp_path)
    index.unlink()
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert has_weights(tmp_path)


# ------------------------------------------------------------------------ the hub and its cache


def _resolve(
    name: str, cache: Path, endpoint: str = "http://127.0.0.1:9", **environment: str
) -> tuple[str, str, float]:
    """Resolve a name in a process of its own (the hub client reads its settings on import).

    Returns:
        The folder or "", the error or "", and the seconds that resolving took.
    """
    code = f"""
import time
import huggingface_hub.hf_api  # takes seconds on a busy machine
from common.errors import ModelNotFoundError
from common.hub import resolve_model
start = time.perf_counter()
folder = error = ""
try:
    folder = resolve_model({name!r}, hub_timeout=1.0)
except ModelNotFoundError as caught:
    error = caught
print(folder, error, time.perf_counter() - start, sep="|")
"""
    settings = {
        "HF_ENDPOINT": endpoint,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "*",
    }
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | settings | environment,
        cwd=Path(__file__).parents[2],
    )
    assert run.returncode == 0, run.stderr
    folder, error, seconds = run.stdout.rstrip("\n").split("|")
    return folder, error, float(seconds)


def _cached(cache: Path, repo_id: str, *names: str) -> Path:
    """Put a repository into a Hugging Face cache, in the layout of its own client."""
    root = cache / f"models--{repo_id.replace('/', '--')}"
    folder = root / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    for name in names:
        (folder / name).write_text("{}", encoding="utf-8")
    return folder


def test_a_cached_model_needs_no_network(tmp_path: Path) -> None:
    folder = _cached(tmp_path, "org/model", "config.json", "model.safetensors")
    assert _resolve("org/model", tmp_path)[:2] == (str(folder), "")
    assert _resolve("org/model", tmp_path, HF_HUB_OFFLINE="1")[:2] == (str(folder), "")


def test_no_network_and_not_cached_fails_at_once(tmp_path: Path) -> None:
    _cached(tmp_path, "org/half", "config.json")
    for name in ("org/model", "org/half"):
        folder, error, seconds = _resolve(name, tmp_path)
        assert folder == ""
        assert error.startswith(
            f"'{name}' is no local folder and not (completely) in the Hugging Face cache, "
            "and the hub did not give it: "
        )
        assert seconds < 5
    assert "offline" in _resolve("org/model", tmp_path, HF_HUB_OFFLINE="1")[1].lower()


def test_a_silent_hub_is_not_waited_for(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        folder, error, seconds = _resolve("org/model", tmp_path, endpoint)
    assert folder == ""
    assert "the hub did not give it" in error
    assert seconds < 5


def test_a_name_the_hub_does_not_allow(tmp_path: Path) -> None:
    assert "'org/a--b' is no hub id" in _resolve("org/a--b", tmp_path)[1]


class FakeHub:
    """A hub with a few repositories; notes every file that is asked for."""

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        self.fetched: set[str] = set()
        hub_self = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._answer(with_body=False)

            def do_GET(self) -> None:
                self._answer(with_body=True)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Keep the test's output clean."""

            def _answer(self, with_body: bool) -> None:
                path = self.path.split("?")[0].strip("/")
                for name, files in repositories.items():
                    if path.startswith(f"api/models/{name}"):
                        return self._send(hub_self._describe(path, name, files), with_body)
                    if path.startswith(f"{name}/resolve/"):
                        file_name = path.split("/", 4)[4]
                        hub_self.fetched.add(file_name)
                        return self._send(files[file_name], with_body)
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("X-Error-Message", "Repository not found")
                self.send_header("Content-Length", "0")
                return self.end_headers()

            def _send(self, body: bytes, with_body: bool) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
                self.end_headers()
                if with_body:
                    self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @staticmethod
    def _describe(path: str, name: str, files: dict[str, bytes]) -> bytes:
        if "/tree/" in path:
            tree = [
                {"type": "file", "path": file, "size": len(body), "oid": "0"}
                for file, body in files.items()
            ]
            return json.dumps(tree).encode()
        siblings = [{"rfilename": file} for file in files]
        return json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def fake_hub() -> Iterator[FakeHub]:
    wanted = {
        "config.json": b"{}",
        "tokenizer.json": b"{}",
        "tokenizer.model": b"spm",
        "merges.txt": b"",
        "chat_template.jinja": b"",
        "model.safetensors": b"weights",
    }
    unwanted = {
        "pytorch_model.bin": b"pickle",
        "model.pt": b"pickle",
        "modeling_custom.py": b"import os",
        "original/params.json": b"{}",
        "onnx/model.safetensors": b"",
        "README.md": b"",
    }
    server = FakeHub(
        {
            "org/model": wanted | unwanted,
            "org/pickle": {"config.json": b"{}", "pytorch_model.bin": b"pickle"},
            "org/weights": {"model.safetensors": b"weights"},
        }
    )
    yield server
    server.close()


def test_only_data_files_are_fetched(fake_hub: FakeHub, tmp_path: Path) -> None:
    folder, error, _ = _resolve("org/model", tmp_path, fake_hub.endpoint)
    assert error == ""
    names = {"config.json", "tokenizer.json", "tokenizer.model", "merges.txt"}
    names |= {"chat_template.jinja", "model.safetensors"}
    assert {path.name for path in Path(folder).rglob("*")} == names
    assert fake_hub.fetched == names
    assert (Path(folder) / "model.safetensors").read_bytes() == b"weights"
    # From now on it is in the cache.
    assert _resolve("org/model", tmp_path)[:2] == (folder, "")


@pytest.mark.parametrize(
    "name, message",
    [
        ("org/pickle", "the hub repository 'org/pickle' has no safetensors weights"),
        ("org/weights", "the hub repository 'org/weights' has no config.json"),
        ("org/missing", "the hub did not give it: RepositoryNotFoundError"),
    ],
)
def test_repositories_that_are_no_model(
    fake_hub: FakeHub, tmp_path: Path, name: str, message: str
) -> None:
    folder, error, _ = _resolve(name, tmp_path, fake_hub.endpoint)
    assert folder == ""
    assert message in error
    assert fake_hub.fetched == set()
