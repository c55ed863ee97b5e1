import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common import environment
from common.environment import (
    COMMIT_VARIABLE,
    REPOSITORY,
    DeviceInfo,
    commit,
    device_info,
    versions,
)
from common.errors import ConfigError

H100 = DeviceInfo("cuda", "NVIDIA H100 80GB HBM3", 132, 85_000_000_000)
EPYC = DeviceInfo("cpu", "AMD EPYC 9R14 (x)", 2, 8_000_000_000)


class TestDeviceInfo:
    def test_slug(self) -> None:
        assert H100.slug == "nvidia-h100-80gb-hbm3"
        assert EPYC.slug == "cpu-amd-epyc-9r14-x-2c"

    def test_same_machine(self) -> None:
        assert H100.same_machine(dataclasses.replace(H100, memory_bytes=84_000_000_000))
        for change in (
            {"kind": "cpu"},
            {"name": "NVIDIA H200"},
            {"cores": 114},
            {"memory_bytes": 42_000_000_000},
        ):
            assert not H100.same_machine(dataclasses.replace(H100, **change))

    def test_cpu_of_this_machine(self) -> None:
        info = device_info("cpu")
        assert info.kind == "cpu"
        assert info.name
        assert 1 <= info.cores <= (os.cpu_count() or 1)
        assert info.memory_bytes > 2**28

    @pytest.mark.parametrize("device", ["tpu", "cuda:x", "mps", ""])
    def test_no_such_kind(self, device: str) -> None:
        with pytest.raises(ConfigError, match="device must be cpu, cuda or cuda:N"):
            device_info(device)

    def test_no_such_gpu(self) -> None:
        with pytest.raises(ConfigError, match="'cuda:99' asked for"):
            device_info("cuda:99")

    def test_name_without_proc(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(*_: object, **__: object) -> str:
            raise FileNotFoundError

        monkeypatch.setattr(Path, "read_text", missing)
        monkeypatch.setattr(environment, "_output", lambda *_, **__: "Apple M4")
        assert environment._cpu_name() == "Apple M4"
        monkeypatch.setattr(environment, "_output", lambda *_, **__: None)
        assert environment._cpu_name()


def test_versions_name_what_is_installed() -> None:
    found = versions()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "torch" in found
    assert "cuda" not in found


def git(root: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True)


class TestCommit:
    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        git(tmp_path, "init", "-q")
        (tmp_path / "a.py").write_text("a = 1\n")
        git(tmp_path, "add", ".")
        git(tmp_path, "commit", "-qm", "one")
        return tmp_path

    def test_clean(self, tree: Path) -> None:
        assert len(commit(tree)) == 40

    def test_results_do_not_make_it_dirty(self, tree: Path) -> None:
        folder = tree / "docs" / "benchmarks" / "results" / "cpu"
        folder.mkdir(parents=True)
        (folder / "x.json").write_text("{}")
        assert len(commit(tree)) == 40

    def test_dirty_trees_differ_by_their_changes(self, tree: Path) -> None:
        head = commit(tree)
        (tree / "a.py").write_text("a = 2\n")
        changed = commit(tree)
        assert changed.startswith(f"{head}-dirty.")
        (tree / "a.py").write_text("a = 3\n")
        assert commit(tree) != changed
        (tree / "a.py").write_text("a = 2\n")
        assert commit(tree) == changed
        (tree / "b.py").write_text("new\n")
        with_new = commit(tree)
        assert with_new != changed
        (tree / "b.py").write_text("newer\n")
        assert commit(tree) not in (with_new, changed)
        (tree / "b.py").unlink()
        (tree / "a.py").write_text("a = 1\n")
        assert commit(tree) == head

    def test_without_git_the_environment_says_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv(COMMIT_VARIABLE, raising=False)
        assert commit(tmp_path) == "unknown"
        monkeypatch.setenv(COMMIT_VARIABLE, "abc")
        assert commit(tmp_path) == "abc"

    def test_a_folder_inside_another_checkout_is_none(
        self, tree: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv(COMMIT_VARIABLE, raising=False)
        (tree / "site-packages").mkdir()
        assert commit(tree / "site-packages") == "unknown"


class TestCommandLine:
    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, check=True, cwd=REPOSITORY
        )
        return done.stdout.strip()

    def test_a_script_outside_shows_its_name(self, tmp_path: Path) -> None:
        script = tmp_path / "bench.py"
        script.write_text(
            f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n"
            "from common.environment import command_line; print(command_line())"
        )
        shown = self.run(str(script), "--model", "/data/models/Qwen3-0.6B", "--out=/tmp/x", "a b")
        assert shown == "python bench.py --model Qwen3-0.6B --out=x 'a b'"

    def test_a_module_shows_as_one(self, tmp_path: Path) -> None:
        package = tmp_path / "pkg"
        package.mkdir()
        (package / "__main__.py").write_text(
            "from common.environment import command_line; print(command_line())"
        )
        code = f"import sys, runpy; sys.path[:0] = [{str(tmp_path)!r}, {str(REPOSITORY)!r}]; "
        shown = self.run(
            "-c", f"{code}sys.argv = ['x', '--full']; runpy._run_module_as_main('pkg', False)"
        )
        assert shown == "python -m pkg --full"
