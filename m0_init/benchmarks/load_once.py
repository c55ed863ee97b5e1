"""Load one checkpoint once, in a process of its own, and say what it took.

Started by :mod:`m0_init.benchmarks.measure`, which watches this process's memory from outside::

    python -m m0_init.benchmarks.load_once m0_init FOLDER --device cpu --dtype auto

Imports are done before the clock starts: a line ``ready`` is written, and loading begins when a
line arrives. The answer is one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.timing import synchronizer

IO_COUNTERS = Path("/proc/self/io")

Load = Callable[[str, str, str], Any]
"""From folder, device and dtype to a model."""


def main(argv: list[str]) -> int:
    """Import, wait, load, run one token, report. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m m0_init.benchmarks.load_once")
    parser.add_argument("loader", choices=LOADERS)
    parser.add_argument("folder")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args(argv)
    load, first_token = LOADERS[args.loader]()
    sync = synchronizer(args.device)
    _warm_up(args.device)
    print("ready", flush=True)
    sys.stdin.readline()
    read_before, begin = storage_bytes(), time.perf_counter()
    model = load(args.folder, args.device, args.dtype)
    sync()
    loaded = time.perf_counter()
    token = first_token(model)
    sync()
    ended, read_after = time.perf_counter(), storage_bytes()
    read = None if read_before is None or read_after is None else read_after - read_before
    answer = {"load": loaded - begin, "first_token": ended - begin, "read": read, "token": token}
    print(json.dumps(answer), flush=True)
    return 0


def storage_bytes(counters: Path = IO_COUNTERS) -> int | None:
    """Bytes this process made the system fetch from storage so far; None where it does not tell.

    Pages that are in the page cache already cost no fetch. Mapped files count like read ones.
    """
    try:
        lines = counters.read_text(encoding="ascii").splitlines()
        return int(dict(line.split(": ") for line in lines)["read_bytes"])
    except (OSError, KeyError, ValueError):
        return None


def _ours() -> tuple[Load, Callable[[Any], int]]:
    from m0_init.forward import next_token_logits
    from m0_init.loader import load

    def load_model(folder: str, device: str, dtype: str) -> Any:
        return load(folder, device=device, dtype=dtype).model

    return load_model, lambda model: int(next_token_logits(model, [1]).argmax())


def _theirs() -> tuple[Load, Callable[[Any], int]]:
    import torch

    from common.testing.checkpoints import quiet_transformers

    transformers = quiet_transformers()
    # Imported here, because transformers imports its classes on first use.
    for_causal_lm = transformers.AutoModelForCausalLM
    _ = transformers.Qwen3ForCausalLM, transformers.LlamaForCausalLM

    def load_model(folder: str, device: str, dtype: str) -> Any:
        kind = dtype if dtype == "auto" else getattr(torch, dtype)
        options = {} if device == "cpu" else {"device_map": device}
        return for_causal_lm.from_pretrained(folder, dtype=kind, local_files_only=True, **options)

    @torch.inference_mode()
    def first_token(model: Any) -> int:
        ids = torch.tensor([[1]], device=model.device)
        return int(model(input_ids=ids, use_cache=False).logits[0, -1].argmax())

    return load_model, first_token


LOADERS = {"m0_init": _ours, "transformers": _theirs}


def _warm_up(device: str) -> None:
    """Let PyTorch start its threads, and a GPU its context, before the clock runs."""
    import torch

    x = torch.ones(256, 256, device=device)
    (x @ x).sum().item()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
