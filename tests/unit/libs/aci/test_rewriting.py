"""JSON that is read and written on keeps all that is not changed."""

from __future__ import annotations

import pytest

from libs.aci.rewriting import JsonNotRewritable, NameRepeated, Number, dumps, is_text, loads


@pytest.mark.parametrize(
    "text",
    [
        '{"z":1e400,"a":-0.10,"n":12345678901234567890123}',
        '["\\u0000\\n\\"\\\\/ é 😀 \u2028",true,false,null,{},[]]',
        '"\\ud800"',
        "17",
    ],
)
def test_what_is_compact_comes_back_byte_for_byte(text: str) -> None:
    assert dumps(loads(text.encode())) == text.encode()


def test_what_need_not_be_escaped_is_not() -> None:
    assert dumps(loads(rb'{ "a" : "\u00e9\ud83d\ude00\/" }')) == '{"a":"é😀/"}'.encode()


def test_a_number_is_no_text() -> None:
    (number, text) = loads(b'[17,"17"]')
    assert isinstance(number, Number)
    assert not is_text(number)
    assert is_text(text)


@pytest.mark.parametrize("data", [b"", b"{", b'{"a":1}x', b"\xff", b"[NaN]", b"[Infinity]", b"[" * 100_000])
def test_what_is_no_json_is_refused_without_quoting_it(data: bytes) -> None:
    with pytest.raises(JsonNotRewritable, match=r"^not one UTF-8 JSON value$"):
        loads(data)


def test_a_name_that_is_repeated_is_refused() -> None:
    with pytest.raises(NameRepeated):
        loads(b'[{"a":1,"a":2}]')


def test_what_is_nested_too_deeply_to_write_is_refused() -> None:
    value: list[object] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(JsonNotRewritable):
        dumps(value)
