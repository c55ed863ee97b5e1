"""An engine that nobody refers to is freed, the first one of a process too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from common.testing.checkpoints import tiny_config, write_checkpoint

PROGRAM = """
import gc, sys, weakref
from common.request import SamplingParams
from m2_batching.engine import LLMEngine

for _ in range(2):
    engine = LLMEngine(sys.argv[1], device="cpu", max_num_seqs=2, max_model_len=32)
    engine.generate([[1, 2, 3]], SamplingParams(temperature=0, max_tokens=2))
    weights = weakref.ref(engine.model.embed_tokens.weight)
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    print(gone() is None and weights() is None, gc.get_freeze_count() > 1000)
"""


def test_engines_are_freed(tmp_path: Path) -> None:
    """The collector leaves imports alone, not the engine that was made at that time."""
    model = write_checkpoint(tmp_path, tiny_config("qwen3"), tokenizer=True)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(model)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True"] * 4, done.stdout
