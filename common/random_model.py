"""A checkpoint of Qwen3-0.6B's exact shape with random weights, made once in the cache.

Speed and memory depend on shapes alone, so it is the honest stand-in where the hub is out of
reach. Results that were measured with it say so.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

RANDOM_MODEL = "qwen3-0.6b-random"
NOTE = "random weights of the exact Qwen3-0.6B shape: speed and memory depend on shapes alone"


def random_model_folder(cache: Path) -> Path:
    """The folder of the random checkpoint: bfloat16, two shards, no tokenizer. 1.2 GB.

    Args:
        cache: Folder of converted and generated models.
    """
    folder = cache / f"{RANDOM_MODEL}-v1"
    if (folder / "model.safetensors.index.json").is_file():
        return folder
    from common.qwen3 import QWEN3_0_6B_HF_CONFIG
    from common.testing.checkpoints import write_checkpoint

    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        made = write_checkpoint(
            Path(scratch) / "model", QWEN3_0_6B_HF_CONFIG, shards=2, dtype="bfloat16"
        )
        try:
            made.replace(folder)
        except OSError:  # another process was first
            if not (folder / "config.json").is_file():
                raise
    return folder
