"""Run one load in a fresh process and watch its memory from outside.

A process that has loaded once has warm allocators and imported modules, so every measurement gets
a process of its own. Its private and its file-mapped memory are sampled apart: a mapped checkpoint
is not a copy, the system may drop those pages at any time.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.environment import REPOSITORY
from common.errors import FoloError
from common.memory import ResidentMemory, resident_memory
from common.model.weights import safetensors_files

INTERVAL = 0.002
"""Seconds between two samples of the child's memory."""


class LoadError(FoloError, RuntimeError):
    """The process that was to load a model ended without an answer."""


@dataclass(frozen=True)
class LoadRun:
    """What one load took.

    Attributes:
        load_seconds: Until the model could be used.
        first_token_seconds: Until a forward pass of one token had ended, loading included. A
            loader that only maps the file pays for reading it here.
        peak_private: Growth of private memory over what the imports held, bytes.
        peak_file_mapped: Growth of mapped-file memory, bytes. Both are None where the system does
            not tell.
        bytes_read: Bytes fetched from storage, or None where the system does not tell.
        token: The most likely token after id 1, to see that both loaded the same.
    """

    load_seconds: float
    first_token_seconds: float
    peak_private: int | None
    peak_file_mapped: int | None
    bytes_read: int | None
    token: int


def load_in_fresh_process(
    loader: str, folder: Path, *, device: str = "cpu", dtype: str = "auto"
) -> LoadRun:
    """Load ``folder`` once with ``loader`` and report.

    Args:
        loader: ``m0_init`` or ``transformers``.
        folder: A model folder.
        device: Where to.
        dtype: Element type.

    Raises:
        LoadError: The process failed; the message ends with its last line.
    """
    command = [sys.executable, "-m", "m0_init.benchmarks.load_once", loader, str(folder)]
    command += ["--device", device, "--dtype", dtype]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        if child.stdout.readline() != "ready\n":
            raise LoadError(_failure(loader, child.stderr.read()))
        watch = _Watch(Path(f"/proc/{child.pid}/status"))
        watch.start()
        child.stdin.write("go\n")
        child.stdin.flush()
        line = child.stdout.readline()
        private, mapped = watch.finish()
        errors = child.stderr.read()
    if not line:
        raise LoadError(_failure(loader, errors))
    answer = json.loads(line)
    return LoadRun(
        answer["load"], answer["first_token"], private, mapped, answer["read"], answer["token"]
    )


@contextlib.contextmanager
def weights_only(folder: Path) -> Iterator[Path]:
    """A temporary folder with links to a checkpoint's config and weights, and no tokenizer.

    ``load`` brings the tokenizer along and transformers' ``from_pretrained`` does not: without
    one, both do the same work.

    Args:
        folder: A model folder.
    """
    index = folder / "model.safetensors.index.json"
    files = [folder / "config.json", *([index] if index.is_file() else [])]
    with tempfile.TemporaryDirectory() as name:
        for path in (*files, *safetensors_files(folder)):
            (Path(name) / path.name).symlink_to(path.resolve())
        yield Path(name)


def drop_from_page_cache(folder: Path) -> bool:
    """Make the next load of a checkpoint fetch it from storage. False where that cannot be done.

    Args:
        folder: A model folder.
    """
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in safetensors_files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())  # only clean pages can be dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def fill_page_cache(folder: Path) -> None:
    """Read a checkpoint's weight files once, so that the next load finds them in memory."""
    for path in safetensors_files(folder):
        with path.open("rb") as file:
            while file.read(2**24):
                pass


class _Watch(threading.Thread):
    """Samples the memory of another process."""

    def __init__(self, status: Path) -> None:
        super().__init__(name="child-memory", daemon=True)
        self.status, self.done = status, threading.Event()
        self.samples: list[ResidentMemory] = []
        self.sample()

    def run(self) -> None:
        """Sample until told to finish."""
        while not self.done.wait(INTERVAL):
            self.sample()

    def sample(self) -> None:
        """Take one sample; a process that is gone, or a system that does not tell, gives none."""
        if self.status.exists():
            now = resident_memory(self.status)
            if now.source == "proc":
                self.samples.append(now)

    def finish(self) -> tuple[int | None, int | None]:
        """Growth of the private and of the file-mapped peak over the first sample."""
        self.done.set()
        self.join()
        return (
            _growth([sample.anonymous for sample in self.samples]),
            _growth([sample.file_backed for sample in self.samples]),
        )


def _growth(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return max(known) - known[0] if known else None


def _failure(loader: str, errors: str) -> str:
    last = (errors.strip().splitlines() or ["it said nothing"])[-1]
    return f"loading with {loader} failed: {last}"
