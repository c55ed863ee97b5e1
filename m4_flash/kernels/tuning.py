"""Tile sizes of the attention kernels: measured once per device, committed, read as a table.

Nothing is tuned while an engine runs: a first request would pay for it, and two runs would differ.
``python -m m4_flash.benchmarks.tune`` measures candidates and writes ``tuned/<device>.json``;
a device without a table gets defaults that compile everywhere.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import torch

from common.environment import device_info
from common.errors import ConfigError
from common.records import RecordError, dump, from_plain, load

SCHEMA = "folovllm.tuned"
VERSION = 1
TABLES = Path(__file__).resolve().parent / "tuned"
MANY_SEQUENCES = 32
"""From this batch size on, decode has enough sequences to fill a GPU without splitting them."""

PrefillKind = Literal["prefill_paged", "prefill_few", "prefill_contiguous"]
DecodeKind = Literal["decode_few", "decode_many"]


@dataclass(frozen=True)
class PrefillConfig:
    """Launch of the prefill kernel.

    Attributes:
        block_m: Query rows per program: tokens times query heads of a KV head.
        block_n: Keys per tile.
        num_warps: Warps per program; four of them work on one tensor-core instruction of Hopper.
        num_stages: Tiles in flight between memory and shared memory.
        use_tma: Let Hopper's copy engine fetch contiguous K and V (not pages), where they are
            aligned to 16 bytes.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    use_tma: bool = False

    def __post_init__(self) -> None:
        """Tiles fit ``tl.dot``, whose smallest side is 16."""
        _check_powers(self.block_m, self.block_n, self.num_warps, self.num_stages)


@dataclass(frozen=True)
class DecodeConfig:
    """Launch of the decode kernel.

    Attributes:
        block_n: Keys per tile.
        num_warps: Warps per program.
        num_stages: Tiles in flight between memory and shared memory.
    """

    block_n: int
    num_warps: int
    num_stages: int

    def __post_init__(self) -> None:
        """Tiles fit ``tl.dot``, whose smallest side is 16."""
        _check_powers(16, self.block_n, self.num_warps, self.num_stages)


def _check_powers(block_m: int, block_n: int, num_warps: int, num_stages: int) -> None:
    for name, value, least in (
        ("block_m", block_m, 16),
        ("block_n", block_n, 16),
        ("num_warps", num_warps, 1),
    ):
        if value < least or value & (value - 1):
            raise ConfigError(f"{name} must be a power of two of at least {least}, got {value}")
    if num_stages < 1:
        raise ConfigError(f"num_stages must be at least 1, got {num_stages}")


@dataclass(frozen=True)
class PrefillEntry:
    """One measured choice: which launches it is for, and the choice."""

    kind: PrefillKind
    head_dim: int
    dtype: str
    config: PrefillConfig


@dataclass(frozen=True)
class DecodeEntry:
    """One measured choice: which launches it is for, and the choice."""

    kind: DecodeKind
    head_dim: int
    dtype: str
    config: DecodeConfig


@dataclass(frozen=True)
class Table:
    """The choices of one device.

    Attributes:
        device: Its name, as the driver gives it.
        triton: Version of the compiler that was measured.
        prefill: At most one entry per kind, head_dim and dtype.
        decode: At most one entry per kind, head_dim and dtype.
    """

    device: str
    triton: str
    prefill: tuple[PrefillEntry, ...] = ()
    decode: tuple[DecodeEntry, ...] = ()

    def __post_init__(self) -> None:
        """A launch has one entry.

        Raises:
            ConfigError: Two entries for the same launches.
        """
        keys = [_key(entry) for entry in (*self.prefill, *self.decode)]
        for key in keys:
            if keys.count(key) > 1:
                raise ConfigError(f"two entries for {key}")

    def over(self, known: Table) -> Table:
        """This table, and the entries of ``known`` for launches that it says nothing about."""
        mine = {_key(entry) for entry in (*self.prefill, *self.decode)}
        prefill = [entry for entry in known.prefill if _key(entry) not in mine]
        decode = [entry for entry in known.decode if _key(entry) not in mine]
        return replace(self, prefill=(*self.prefill, *prefill), decode=(*self.decode, *decode))


def write_table(table: Table, path: Path) -> None:
    """Write a table as JSON, one entry a line."""
    head = {"schema": SCHEMA, "version": VERSION, "device": table.device, "triton": table.triton}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump(head, prefill=table.prefill, decode=table.decode), encoding="utf-8")


def read_table(path: Path) -> Table:
    """Read what :func:`write_table` wrote.

    Raises:
        ConfigError: Not such a file, an unknown or missing key, or a value outside its range; the
            message names the file and the place.
    """
    try:
        data = load(path.read_text(encoding="utf-8"), SCHEMA, VERSION)
        table: Table = from_plain(Table, data, "table")
    except (OSError, UnicodeDecodeError, RecordError, ConfigError) as error:
        raise ConfigError(f"{path.name}: {error}") from error
    return table


@functools.cache
def table_of(device: torch.device, folder: Path = TABLES) -> Table | None:
    """The committed table of a device, or None; read once per process.

    Raises:
        ConfigError: The file is no table.
    """
    path = folder / f"{device_info(str(device)).slug}.json"
    return read_table(path) if path.exists() else None


@functools.cache
def prefill_config(
    kind: PrefillKind,
    device: torch.device,
    head_dim: int,
    dtype: torch.dtype,
    folder: Path = TABLES,
) -> PrefillConfig:
    """Tile sizes of a prefill: measured ones where there are, else safe ones.

    Args:
        kind: Over pages, over pages with few tokens, or over contiguous K and V.
        device: Where q, k and v are.
        head_dim: Width of a head.
        dtype: Element type of q, k and v.
        folder: Where tables lie.
    """
    table = table_of(device, folder)
    found = _find(table.prefill if table else (), kind, head_dim, dtype)
    return found.config if found else _default_prefill(kind, device, head_dim, dtype)


@functools.cache
def decode_config(
    num_seqs: int,
    device: torch.device,
    head_dim: int,
    dtype: torch.dtype,
    folder: Path = TABLES,
) -> DecodeConfig:
    """Tile sizes of a decode: measured ones where there are, else safe ones.

    Args:
        num_seqs: Sequences of the (captured) batch.
        device: Where q and the cache are.
        head_dim: Width of a head.
        dtype: Element type of q and the cache.
        folder: Where tables lie.
    """
    kind = decode_kind(num_seqs)
    table = table_of(device, folder)
    found = _find(table.decode if table else (), kind, head_dim, dtype)
    return found.config if found else _default_decode(device, head_dim, dtype)


def decode_kind(num_seqs: int) -> DecodeKind:
    """Few sequences, each cut into many parts, or many, hardly cut at all."""
    return "decode_many" if num_seqs >= MANY_SEQUENCES else "decode_few"


Entry = TypeVar("Entry", PrefillEntry, DecodeEntry)


def _key(entry: PrefillEntry | DecodeEntry) -> tuple[str, int, str]:
    """Which launches it is for."""
    return entry.kind, entry.head_dim, entry.dtype


def _find(entries: tuple[Entry, ...], kind: str, head_dim: int, dtype: torch.dtype) -> Entry | None:
    wanted = (kind, head_dim, dtype_name(dtype))
    return next((entry for entry in entries if _key(entry) == wanted), None)


def dtype_name(dtype: torch.dtype) -> str:
    """``bfloat16`` for ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")


def _default_prefill(
    kind: PrefillKind, device: torch.device, head_dim: int, dtype: torch.dtype
) -> PrefillConfig:
    if device.type != "cuda":  # the interpreter: its time goes with the number of tiles
        return PrefillConfig(block_m=64, block_n=64, num_warps=4, num_stages=1)
    if dtype is torch.float32:  # no tensor cores: a thread holds rows of both factors
        side = 32 if head_dim <= 64 else 16
        return PrefillConfig(block_m=side, block_n=side, num_warps=4, num_stages=1)
    if head_dim > 128:
        return PrefillConfig(block_m=64, block_n=32, num_warps=4, num_stages=2)
    if kind == "prefill_few":
        return PrefillConfig(block_m=64, block_n=64, num_warps=4, num_stages=3)
    return PrefillConfig(block_m=128, block_n=64, num_warps=8, num_stages=3)


def _default_decode(device: torch.device, head_dim: int, dtype: torch.dtype) -> DecodeConfig:
    if device.type != "cuda":
        return DecodeConfig(block_n=64, num_warps=4, num_stages=1)
    if dtype is torch.float32:
        return DecodeConfig(block_n=32 if head_dim <= 64 else 16, num_warps=4, num_stages=2)
    if head_dim > 128:
        return DecodeConfig(block_n=32, num_warps=4, num_stages=2)
    return DecodeConfig(block_n=64, num_warps=4, num_stages=3)
