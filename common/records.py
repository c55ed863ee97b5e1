"""Frozen dataclasses to plain JSON values and back, with every field checked.

Traces and benchmark results are files that other programs read (the site, a notebook, a later
stage), so both are written in one layout and read with the same strictness: an unknown key, a
missing key or a value of another type is an error that names the place.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


class RecordError(ValueError):
    """A JSON value does not have the shape of the record it should become."""


def to_plain(value: Any) -> Any:
    """Turn dataclasses, mappings and sequences into what ``json.dumps`` takes.

    Args:
        value: A dataclass instance, a mapping with string keys, a sequence, or a scalar.

    Raises:
        RecordError: A value that JSON has no form for.
    """
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    raise RecordError(f"a {type(value).__name__} has no JSON form: {value!r}")


def from_plain(hint: Any, value: Any, where: str) -> Any:
    """Build the value that ``hint`` describes out of decoded JSON.

    Args:
        hint: A dataclass, ``tuple[X, ...]``, ``dict[str, Any]``, ``Literal``, a union of those with
            None, or a scalar type.
        value: What ``json.loads`` returned.
        where: Path of the value in the file, for the error.

    Raises:
        RecordError: The value is not of that shape; the message starts with ``where``.
    """
    origin = get_origin(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _record(hint, value, where)
    if origin in (Union, UnionType):
        if value is None and type(None) in get_args(hint):
            return None
        (inner,) = (arg for arg in get_args(hint) if arg is not type(None))
        return from_plain(inner, value, where)
    if origin is Literal:
        if value not in get_args(hint):
            accepted = ", ".join(map(repr, get_args(hint)))
            raise RecordError(f"{where} must be one of {accepted}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise RecordError(f"{where} must be a list, got {value!r}")
        item = get_args(hint)[0]
        return tuple(from_plain(item, part, f"{where}[{i}]") for i, part in enumerate(value))
    if hint is dict or origin is dict:
        if not isinstance(value, dict):
            raise RecordError(f"{where} must be an object, got {value!r}")
        return value
    return _scalar(hint, value, where)


def _record(cls: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise RecordError(f"{where} must be an object, got {value!r}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in value:
        if name not in fields:
            raise RecordError(f"{where} has an unknown key {name!r}")
    hints, given = _hints(cls), {}
    for name, field in fields.items():
        if name in value:
            given[name] = from_plain(hints[name], value[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise RecordError(f"{where} has no key {name!r}")
    return cls(**given)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise RecordError(f"{where} must be {hint.__name__}, got {value!r}")
    return value


def dump(head: Mapping[str, Any], **lists: Iterable[Any]) -> str:
    """JSON text with one line per key of ``head`` and one line per item of each list.

    Line per item keeps the files readable in a diff. Keys keep their order, so equal records
    give equal text.

    Args:
        head: The leading keys; values in any form that :func:`to_plain` takes.
        **lists: The trailing keys, each a list of records.

    Raises:
        RecordError: A number that JSON cannot hold (NaN or an infinity).
    """
    lines = [f"{_compact(key)}: {_compact(value)}" for key, value in head.items()]
    for key, items in lists.items():
        rows = [_compact(item) for item in items]
        body = "[\n" + ",\n".join(rows) + "\n]" if rows else "[]"
        lines.append(f"{_compact(key)}: {body}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _compact(value: Any) -> str:
    try:
        return json.dumps(to_plain(value), ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise RecordError(f"not a JSON number in {value!r}") from error


def load(text: str, schema: str, version: int) -> dict[str, Any]:
    """Decode a file of ours and check what it says it is.

    Args:
        text: The file's content.
        schema: The value its ``schema`` key must have.
        version: The value its ``version`` key must have.

    Returns:
        The object without those two keys.

    Raises:
        RecordError: Not JSON, another schema, or another version.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise RecordError(f"not JSON: {error}") from error
    if not isinstance(data, dict) or data.get("schema") != schema:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise RecordError(f"schema must be {schema!r}, got {found!r}")
    if data.get("version") != version:
        raise RecordError(f"version must be {version}, got {data.get('version')!r}")
    return {key: value for key, value in data.items() if key not in ("schema", "version")}


def non_default(record: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults, as JSON values.

    A float field gives a float whatever it was given, so that 1 and 1.0 read the same.
    """
    changed = {}
    for item in dataclasses.fields(record):
        value = getattr(record, item.name)
        if value != item.default:
            is_float = isinstance(item.default, float)
            changed[item.name] = float(value) if is_float else to_plain(value)
    return changed


def without_paths(value: Any) -> Any:
    """Replace every absolute path inside ``value`` by its last part.

    Traces and results are published; the folder layout of the machine that made them is not.

    Args:
        value: Nested mappings, sequences and scalars.
    """
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str):
        for flavour in (PurePosixPath, PureWindowsPath):
            if flavour(value).is_absolute():
                return flavour(value).name or value
        return value
    if isinstance(value, Mapping):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return type(value)(without_paths(item) for item in value)  # type: ignore[call-arg]
    return value
