import importlib
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from common import memory
from common.errors import ConfigError
from common.memory import PeakMemory, lifetime_peak_bytes, resident_memory

MIB = 1024**2
on_linux = pytest.mark.skipif(not memory.STATUS.exists(), reason="needs Linux's /proc")

STATUS_TEXT = "Name:\tpython\nVmRSS:\t 3000 kB\nRssAnon:\t 1000 kB\nRssFile:\t 2000 kB\n"


def test_status_file_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "status"
    path.write_text(STATUS_TEXT)
    got = resident_memory(path)
    assert (got.total, got.anonymous, got.file_backed) == (3000 * 1024, 1000 * 1024, 2000 * 1024)
    assert got.source == "proc"


def test_a_kernel_that_does_not_tell_them_apart(tmp_path: Path) -> None:
    path = tmp_path / "status"
    path.write_text("VmRSS:\t 3000 kB\n")
    got = resident_memory(path)
    assert (got.total, got.anonymous) == (3000 * 1024, None)


def test_without_proc_psutil_says_it(tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    got = resident_memory(tmp_path / "none")
    assert got.source == "psutil"
    assert got.total == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)


def test_without_both_the_lifetime_peak_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    got = resident_memory(tmp_path / "none")
    assert got.source == "lifetime peak"
    assert got.total == lifetime_peak_bytes()


def test_lifetime_peak_has_the_right_unit() -> None:
    peak = lifetime_peak_bytes()
    assert 8 * MIB < peak < 2**40
    if memory.STATUS.exists():
        assert peak >= 0.9 * resident_memory().total


def test_lifetime_peak_on_macos_is_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    in_kib = lifetime_peak_bytes()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert lifetime_peak_bytes() == pytest.approx(in_kib / 1024, rel=0.2)


def test_no_resource_module(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    assert lifetime_peak_bytes() == 0


@on_linux
def test_a_peak_that_is_gone_at_the_end_is_seen() -> None:
    with PeakMemory(interval=0.002) as peak:
        block = np.ones(64 * MIB, dtype=np.uint8)
        time.sleep(0.05)
        del block
        time.sleep(0.02)
    assert 60 * MIB < peak.result.growth < 90 * MIB
    assert peak.result.source == "proc"
    assert peak.result.resident_peak >= peak.result.peak


@on_linux
def test_file_mappings_are_not_the_work_s_own(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    np.zeros(64 * MIB, dtype=np.uint8).tofile(path)
    with PeakMemory() as peak:
        mapped = np.memmap(path, dtype=np.uint8, mode="r")
        assert int(mapped.sum()) == 0
    assert peak.result.growth < 16 * MIB
    assert peak.result.resident_peak - peak.result.peak > 60 * MIB
    del mapped


def test_an_error_inside_still_stops_the_watch() -> None:
    watch = PeakMemory()
    with pytest.raises(ValueError, match="inside"), watch:
        raise ValueError("inside")
    assert watch.result.peak > 0


def test_interval() -> None:
    with pytest.raises(ConfigError, match="interval must be positive, got 0"):
        PeakMemory(interval=0)
