"""From a model's name to a local folder.

A name is a folder, ``smollm2`` (the embedded model), ``qwen3-0.6b-random`` (its shape, for
measuring), or a hub id such as ``Qwen/Qwen3-0.6B``. Of a hub repository only weights in
safetensors, JSON files and tokenizer files are fetched: no pickle and no Python code ever reach
this machine.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from common.embedded_model import embedded_model_folder
from common.errors import ModelNotFoundError
from common.random_model import RANDOM_MODEL, random_model_folder

DEFAULT_MODEL = "smollm2"
"""Alias of the embedded model; a folder of that name is reached as ``./smollm2``."""

ALLOWED_FILES = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "tokenizer.model")
"""What is fetched from a hub repository (fnmatch patterns)."""

IGNORED_FILES = ("*/*",)
"""Sub-folders hold the same weights for other programs (``original/``, ``onnx/``)."""


def cache_dir() -> Path:
    """Where this project keeps what it makes: ``$FOLOVLLM_CACHE`` or ``~/.cache/folovllm``.

    Follows ``$XDG_CACHE_HOME`` where that is set. Models of the hub are kept in the Hugging Face
    cache instead, where other programs find them too.
    """
    own = os.environ.get("FOLOVLLM_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    base = Path(shared) if shared else Path("~/.cache")
    return base.expanduser().absolute() / "folovllm"


def resolve_model(name: str | Path, *, hub_timeout: float = 5.0) -> Path:
    """Find the local folder of a model; fetch or convert it if need be.

    Args:
        name: A folder that holds a ``config.json``, the alias ``smollm2``, a hub id
            ``organisation/name`` (local Hugging Face cache first, then the hub), or
            ``qwen3-0.6b-random`` (random weights of that shape, for measuring).
        hub_timeout: Seconds to wait for the hub's first answer.

    Returns:
        A folder with a ``config.json``.

    Raises:
        ModelNotFoundError: Nothing was found; the message names what was tried.
        CheckpointError: The embedded model's package is broken.
    """
    text = str(name)
    if name == DEFAULT_MODEL:
        return embedded_model_folder(cache_dir())
    if name == RANDOM_MODEL:
        return random_model_folder(cache_dir())
    path = Path(text).expanduser()
    if text and path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelNotFoundError(f"the folder {text} is not a model: it has no config.json")
        return path
    if path.is_file():
        raise ModelNotFoundError(f"{text} is a file; a model is named by its folder")
    if isinstance(name, str) and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        return _from_cache(name) or _from_hub(name, hub_timeout)
    raise ModelNotFoundError(
        f"unknown model {text!r}: there is no such folder, it is not {DEFAULT_MODEL!r} "
        "(the embedded model), and it is no hub id of the form organisation/name"
    )


def has_weights(folder: Path) -> bool:
    """Whether a folder holds all of its safetensors weights, in one file or in shards."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return (folder / "model.safetensors").is_file()
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    return all((folder / shard).is_file() for shard in shards)


def _from_cache(repo_id: str) -> Path | None:
    """The repository's folder in the Hugging Face cache, if it can be loaded from there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(repo_id, "config.json")
    except HFValidationError as error:
        raise ModelNotFoundError(f"{repo_id!r} is no hub id: {_one_line(error)}") from error
    if not isinstance(config, str):
        return None
    # Other programs cache a config or a tokenizer alone; such a folder is no model yet.
    folder = Path(config).parent
    return folder if has_weights(folder) else None


def _from_hub(repo_id: str, timeout: float) -> Path:
    """Fetch a repository into the Hugging Face cache."""
    from huggingface_hub import HfApi, snapshot_download

    tried = f"{repo_id!r} is no local folder and not (completely) in the Hugging Face cache"
    # The hub client raises errors of several families, and they depend on the HTTP library it was
    # built on. All of them mean the same here: no model.
    try:
        # Asked first, because it is one request with a time limit: the download itself retries.
        info = HfApi().model_info(repo_id, timeout=timeout)
    except Exception as error:
        raise ModelNotFoundError(
            f"{tried}, and the hub did not give it: {_one_line(error)}"
        ) from error
    names = {file.rfilename for file in info.siblings or ()}
    if "config.json" not in names:
        raise ModelNotFoundError(f"the hub repository {repo_id!r} has no config.json")
    if not names & {"model.safetensors", "model.safetensors.index.json"}:
        raise ModelNotFoundError(
            f"the hub repository {repo_id!r} has no safetensors weights, the only format read here"
        )
    try:
        found = snapshot_download(
            repo_id,
            allow_patterns=list(ALLOWED_FILES),
            ignore_patterns=list(IGNORED_FILES),
        )
    except Exception as error:
        raise ModelNotFoundError(
            f"{tried}, and its download from the hub failed: {_one_line(error)}"
        ) from error
    return Path(found)


def _one_line(error: Exception) -> str:
    """An error's message without line breaks, shortened to what a terminal shows at once."""
    text = " ".join(str(error).split()) or "no message"
    text = text if len(text) <= 200 else text[:199] + "…"
    return f"{type(error).__name__}: {text}"
