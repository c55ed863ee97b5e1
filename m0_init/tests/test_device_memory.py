"""Reading a machine's memory, from the tables of Linux or elsewhere."""

import builtins
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.errors import ConfigError
from m0_init.device_memory import device_memory, host_memory

MEMINFO = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    600 kB\n"
KIB = 1024


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    path = tmp_path / "meminfo"
    path.write_text(MEMINFO)
    return path


def group(tmp_path: Path, limit: str, used: str) -> Path:
    folder = tmp_path / "cgroup"
    folder.mkdir()
    (folder / "memory.max").write_text(limit)
    (folder / "memory.current").write_text(used)
    return folder


def test_available_is_more_than_free(meminfo: Path, tmp_path: Path) -> None:
    assert host_memory(meminfo, tmp_path) == (1000 * KIB, 600 * KIB)


@pytest.mark.parametrize(
    "limit, used, expected",
    [
        ("max", "5", (1000 * KIB, 600 * KIB)),
        (str(2000 * KIB), "5", (1000 * KIB, 600 * KIB)),
        (str(500 * KIB), str(100 * KIB), (500 * KIB, 400 * KIB)),
        (str(900 * KIB), str(100 * KIB), (900 * KIB, 600 * KIB)),
        (str(500 * KIB), str(600 * KIB), (500 * KIB, 0)),
    ],
)
def test_a_container_limits_both(
    meminfo: Path, tmp_path: Path, limit: str, used: str, expected: tuple[int, int]
) -> None:
    assert host_memory(meminfo, group(tmp_path, limit, used)) == expected


@pytest.mark.parametrize("content", [None, "", "MemTotal: 5 kB\n", "MemTotal: x kB\n"])
def test_psutil_where_the_table_does_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    path = tmp_path / "meminfo"
    if content is not None:
        path.write_text(content)
    import psutil

    answer = SimpleNamespace(total=70, available=30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: answer)
    assert host_memory(path, tmp_path) == (70, 30)


def test_without_psutil_the_message_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "psutil":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match="install psutil, or name a size with --memory-gib"):
        host_memory(tmp_path / "meminfo", tmp_path)


def test_this_machine() -> None:
    memory = device_memory("cpu")
    assert 0 < memory.free_bytes <= memory.total_bytes
    assert memory.device == "cpu"
    assert memory.name


@pytest.mark.parametrize("name", ["tpu", "cuda:99"])
def test_no_such_device(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        device_memory(name)
