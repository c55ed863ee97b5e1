import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.records import RecordError, dump, from_plain, load, non_default, to_plain, without_paths


@dataclass(frozen=True)
class Inner:
    number: int
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    name: str
    items: tuple[Inner, ...] = ()
    ratio: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)


inners = st.builds(Inner, st.integers(), st.sampled_from(["a", "b"]))
outers = st.builds(
    Outer,
    st.text(),
    st.lists(inners, max_size=3).map(tuple),
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
    st.dictionaries(st.text(), st.integers() | st.booleans() | st.none(), max_size=3),
)


@given(outers)
def test_round_trip_through_text(value: Outer) -> None:
    text = json.dumps(to_plain(value))
    assert from_plain(Outer, json.loads(text), "outer") == value


def test_missing_keys_take_defaults_and_ints_become_floats() -> None:
    value = from_plain(Outer, {"name": "x", "ratio": 2}, "outer")
    assert value == Outer("x", ratio=2.0)
    assert isinstance(value.ratio, float)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "outer must be an object, got []"),
        ({}, "outer has no key 'name'"),
        ({"name": 1}, "outer.name must be str, got 1"),
        ({"name": "x", "more": 1}, "outer has an unknown key 'more'"),
        ({"name": "x", "items": {}}, "outer.items must be a list, got {}"),
        ({"name": "x", "items": [{"number": "1"}]}, "outer.items[0].number must be int, got '1'"),
        ({"name": "x", "items": [{"number": True}]}, "number must be int, got True"),
        ({"name": "x", "items": [{"number": 1, "kind": "c"}]}, "must be one of 'a', 'b', got 'c'"),
        ({"name": "x", "ratio": "2"}, "outer.ratio must be float, got '2'"),
        ({"name": "x", "extra": []}, "outer.extra must be an object, got []"),
    ],
)
def test_refusals(data: object, message: str) -> None:
    with pytest.raises(RecordError) as caught:
        from_plain(Outer, data, "outer")
    assert message in str(caught.value)


@pytest.mark.parametrize("value", [object(), {"x": {1, 2}}, float("nan"), float("inf")])
def test_what_json_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises(RecordError):
        dump({"value": value})


def test_one_line_per_item() -> None:
    text = dump({"schema": "s", "version": 1}, rows=[Inner(1), Inner(2, "b")], none=[])
    assert text == (
        '{\n"schema": "s",\n"version": 1,\n"rows": [\n{"number": 1, "kind": "a"},\n'
        '{"number": 2, "kind": "b"}\n],\n"none": []\n}\n'
    )
    assert load(text, "s", 1)["rows"][1] == {"number": 2, "kind": "b"}


def test_non_default() -> None:
    assert non_default(Inner(3)) == {"number": 3}

    @dataclass
    class Floats:
        ratio: float = 1.0

    assert non_default(Floats(1)) == {}
    assert json.dumps(non_default(Floats(2))) == '{"ratio": 2.0}'


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/home/me/models/Qwen3-0.6B", "Qwen3-0.6B"),
        (Path("/data/x.json"), "x.json"),
        ("C:\\models\\qwen", "qwen"),
        ("docs/result.json", "docs/result.json"),
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        (["/a/b", 3, {"k": "/c/d"}], ["b", 3, {"k": "d"}]),
        (("/a/b",), ("b",)),
        (None, None),
    ],
)
def test_without_paths(value: object, expected: object) -> None:
    assert without_paths(value) == expected
    assert without_paths(expected) == expected
