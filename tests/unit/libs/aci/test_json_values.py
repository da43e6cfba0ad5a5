"""What a text holds is told before it is read: never less than it has, and no more where it matters."""

from __future__ import annotations

import json
from typing import Any

import pytest

from libs.aci.json_values import MOST_LEVELS, has_more_values, is_nested, most_values

QUOTED = [",[{:", '"', "\\", '\\"', '\\\\",', '","', "", "\\,", 'a"b,c"d']


def held(value: Any) -> int:
    """How many values and names there are."""
    if isinstance(value, dict):
        return 1 + sum(1 + held(member) for member in value.values())
    return 1 + sum(map(held, value)) if isinstance(value, list) else 1


VALUES: list[Any] = [
    7,
    [],
    {},
    [[]],
    [0] * 100,
    [[[0], {}], {"a": [1, 2, {"b": ""}]}],
    QUOTED,
    {text: text for text in QUOTED},
    {"model": "m", "messages": [{"role": "user", "content": 'He said: "[1, 2]", {and} left: \\"so\\".'}], "n": 1},
]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("indent", [None, 2])
def test_no_text_has_more_values_than_is_told(value: Any, indent: int | None) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=False).encode()
    assert most_values(text) >= held(value)
    assert has_more_values(text, held(value) - 1)


@pytest.mark.parametrize("value", VALUES)
def test_what_stands_in_strings_is_no_value(value: Any) -> None:
    text = json.dumps(value).encode()
    # Each list and object that has something is told once more.
    assert not has_more_values(text, 2 * held(value))
    said = json.dumps({"content": text.decode() * 100}).encode()
    assert most_values(said) >= 100 * (held(value) - 1)
    assert not has_more_values(said, 5)


def levels(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, list | dict) + max(map(levels, inner), default=0)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("indent", [None, 2])
def test_a_text_has_the_levels_of_its_value(value: Any, indent: int | None) -> None:
    many = [value] * 2
    text = json.dumps(many, indent=indent, ensure_ascii=False).encode()
    assert not is_nested(text, levels(many))
    assert is_nested(text, levels(many) - 1)


@pytest.mark.parametrize(
    ("opening", "ending"), [("[", "]"), ('{"a":', "}"), ('[0,{"]}":', "}]"), (' [ "\\\\" , [', "] ]")]
)
def test_levels_are_counted_however_they_are_written(opening: str, ending: str) -> None:
    each = levels(json.loads(opening + "0" + ending))
    depth = MOST_LEVELS // each
    assert not is_nested((opening * depth + "0" + ending * depth).encode())
    assert is_nested((opening * (depth + 1) + "0" + ending * (depth + 1)).encode())
    assert is_nested((opening * (depth + 1)).encode())


@pytest.mark.parametrize(
    "text", [b"", b"]" * 999, b"]" + b"[" * 999, b'"' + b"[" * 999 + b'"', b'["\\"' + b"[" * 999 + b'"]']
)
def test_what_nobody_would_read_is_no_level(text: bytes) -> None:
    assert not is_nested(text)


@pytest.mark.parametrize("text", [b"", b'"', b'"' * 7, b"\\", b'["\\', b'"",' * 9, b"\xff,\x00", b'[0,"0,0,0'])
def test_what_is_no_json_is_counted_all_the_same(text: bytes) -> None:
    assert has_more_values(text, 0)
    assert not has_more_values(text, most_values(text))


def test_a_string_that_does_not_end_hides_nothing_before_it() -> None:
    assert has_more_values(b"[" + b"0," * 100 + b'"' + b"," * 9, 100)
