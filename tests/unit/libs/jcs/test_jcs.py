"""Canonical JSON: the fast way gives the reference implementation's bytes, or its refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from libs import jcs

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**54), 2**54) | st.floats(allow_nan=False) | NAMES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


def reference(value: Any) -> bytes | None:
    try:
        return rfc8785.dumps(value)
    except ValueError:
        return None


@given(VALUES)
def test_every_value_has_the_reference_form_or_none(value: Any) -> None:
    expected = reference(value)
    if expected is None:
        with pytest.raises(jcs.JsonMalformed):
            jcs.dumps(value)
    else:
        assert jcs.dumps(value) == expected


@given(VALUES)
def test_what_was_read_has_the_reference_form(value: Any) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))):
        data = text.encode()
        try:
            parsed = jcs.loads(data)
        except jcs.JsonMalformed:
            continue
        assert jcs.dumps_parsed(parsed) == reference(parsed)


@given(VALUES | st.tuples(VALUES, VALUES) | st.dictionaries(st.sampled_from(["a", "__proto__"]), VALUES))
def test_what_is_readable_is_what_the_reader_gives_back(value: Any) -> None:
    try:
        data = jcs.dumps_readable(value)
    except jcs.JsonMalformed:
        # Only a float has a form that can be read, as an integer, and was none.
        assert has_float(value) or not is_read(reference(value))
    else:
        assert data == reference(value)
        assert is_read(data)


def is_read(data: bytes | None) -> bool:
    try:
        return data is not None and jcs.dumps(jcs.loads(data)) == data
    except jcs.JsonMalformed:
        return False


def has_float(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(has_float, value.values()))
    return isinstance(value, float) or (isinstance(value, list | tuple) and any(map(has_float, value)))


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, 0.5]},
        [2**53],
        [{"a": -(2**53)}],
        {"a": {"__proto__": 1}},
        {"a": [{1: "a"}]},
        {None: "a"},
        [b"bytes"],
        ["\udfff"],
        {"\ud800": 1},
    ],
)
def test_what_the_reader_would_refuse_is_not_readable(value: Any) -> None:
    with pytest.raises(jcs.JsonMalformed):
        jcs.dumps_readable(value)


@pytest.mark.parametrize("wrap", [lambda value: [value], lambda value: {"a": value}, lambda value: (value,)])
def test_what_is_nested_too_deep_is_not_readable(wrap: Callable[[Any], Any]) -> None:
    value: Any = 1
    for _ in range(jcs.MAX_DEPTH):
        value = wrap(value)
    assert jcs.loads(jcs.dumps_readable(value)) is not None
    with pytest.raises(jcs.JsonMalformed):
        jcs.dumps_readable(wrap(value))


def test_names_beyond_the_basic_plane_are_ordered_by_utf16() -> None:
    value = {"\U00010000": 1, "\uffff": 2}
    assert jcs.dumps(value) == '{"\U00010000":1,"\uffff":2}'.encode()
    assert jcs.dumps_parsed(value) == jcs.dumps(value)


@pytest.mark.parametrize("value", [{1: "a"}, {None: "a"}, {"a": {True: 1}}, b"bytes", {"a": object()}, "\ud800"])
def test_what_is_no_json_is_refused(value: Any) -> None:
    with pytest.raises(jcs.JsonMalformed):
        jcs.dumps(value)


def test_a_circle_is_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(jcs.JsonMalformed):
        jcs.dumps(circle)


@pytest.mark.parametrize("text", [r'"\ud800"', r'{"\udfff":1}', r'["\ud800\u0041"]', '["\\ud800","\U00010000"]'])
def test_half_a_surrogate_pair_is_refused_when_it_is_read(text: str) -> None:
    with pytest.raises(jcs.JsonMalformed):
        jcs.loads(text.encode())


def test_a_whole_pair_and_other_escapes_are_read() -> None:
    assert jcs.loads(rb'["\ud83d\ude00","\u00e9"]') == ["\U0001f600", "\xe9"]


def read_canonical(data: bytes) -> Any:
    """What the strict reader and a comparison say; the refusal's reason where they refuse."""
    try:
        value = jcs.loads(data)
    except jcs.JsonMalformed as error:
        return error.reason
    return value if jcs.dumps(value) == data else jcs.JsonNotCanonical.reason


@given(VALUES)
def test_the_canonical_reader_takes_what_reading_and_comparing_takes(value: Any) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))):
        data = text.encode()
        try:
            found = jcs.loads_canonical(data)
        except jcs.JsonMalformed as error:
            found = error.reason
        assert found == read_canonical(data)


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"a":1}',
        '{"a":1,"a":2}',
        '{"a":{"b":1,"b":1}}',
        '{"b":1,"a":2}',
        '{"a": 1}',
        '{"a":1} ',
        r'"\u0041"',
        r'"\/"',
        "-0",
        '{"\uffff":2,"\U00010000":1}',
    ],
)
def test_json_in_another_form_is_not_read_as_canonical(text: str) -> None:
    with pytest.raises(jcs.JsonNotCanonical):
        jcs.loads_canonical(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        '{"__proto__":1}',
        '[{"a":{"__proto__":null}}]',
        "1.0",
        "1e3",
        "NaN",
        "9007199254740992",
        "-9007199254740992",
        "9" * 5000,
        '"\\ud800"',
        "[" * 65 + "]" * 65,
        '{"a":' * 65 + "1" + "}" * 65,
        "[" * 100_000,
        "",
        "{",
    ],
    ids=lambda text: text[:20],
)
def test_what_the_strict_reader_refuses_the_canonical_reader_refuses(text: str) -> None:
    with pytest.raises(jcs.JsonMalformed) as strictly:
        jcs.loads(text.encode())
    with pytest.raises(jcs.JsonMalformed) as refusal:
        jcs.loads_canonical(text.encode())
    assert refusal.value.reason == strictly.value.reason


@pytest.mark.parametrize("data", [b"\xff", b'"\xed\xa0\x80"'])
def test_bytes_that_are_not_utf8_are_refused(data: bytes) -> None:
    with pytest.raises(jcs.JsonMalformed):
        jcs.loads_canonical(data)


def test_text_that_looks_like_a_refused_name_or_like_depth_is_read() -> None:
    value = {"a": '"__proto__":', "b": "[{" * 65, "c": "__proto__"}
    assert jcs.loads_canonical(jcs.dumps(value)) == value
