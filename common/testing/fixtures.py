"""Session fixtures that every stage's tests share (loaded by the root ``conftest.py``)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

from common.hub import resolve_model
from common.testing.checkpoints import Family, tiny_config, write_checkpoint
from common.testing.oracle import HFOracle, margin_prompts
from common.tokenizer import Tokenizer

NEW_TOKENS = 64
FAMILIES: tuple[Family, ...] = ("qwen3", "qwen2", "llama")


@dataclass(frozen=True)
class TinyModel:
    """A random checkpoint with a byte tokenizer, and transformers running it in float32.

    Attributes:
        family: ``qwen3``, ``qwen2`` or ``llama``.
        folder: The checkpoint.
        oracle: Reference outputs.
    """

    family: str
    folder: Path
    oracle: HFOracle

    @cached_property
    def prompts(self) -> list[list[int]]:
        """Prompts whose greedy path is decided by at least 1e-3 at each of 64 steps."""
        return margin_prompts(
            self.oracle, count=4, lengths=(1, 7, 16, 33), new_tokens=NEW_TOKENS, vocab=256, seed=0
        )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's byte tokenizer."""
        return Tokenizer.from_pretrained(self.folder)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TinyModel]:
    """One tiny model per family, all with GQA in groups of 2."""
    models: dict[str, TinyModel] = {}
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp(f"tiny-{family}")
        # Qwen2 can only have head_dim = hidden / heads; the others show that ours is explicit.
        config = tiny_config(family, head_dim=16 if family == "qwen2" else 32)
        write_checkpoint(folder, config, seed=0, tokenizer=True)
        models[family] = TinyModel(family, folder, HFOracle(folder))
    return models


@pytest.fixture(scope="session")
def tiny(tiny_models: dict[str, TinyModel]) -> TinyModel:
    """The tiny Qwen3, for checks that do not depend on the architecture."""
    return tiny_models["qwen3"]


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of the embedded model, converted on first use."""
    return resolve_model("smollm2")
