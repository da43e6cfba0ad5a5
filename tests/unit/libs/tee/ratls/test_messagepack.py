from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from libs.tee.ratls.messagepack import MessagePackMalformed, MessagePackReader
from tests.unit.libs.tee.ratls.maker import messagepack, packed


def _reader(value: Any) -> MessagePackReader:
    return MessagePackReader(packed(value))


def _refused(take: Callable[[], object], words: str | None = None) -> None:
    with pytest.raises(MessagePackMalformed, match=words):
        take()


def test_each_value_is_taken_as_its_own_type() -> None:
    assert _reader(2**64 - 1).unsigned() == 2**64 - 1
    assert _reader("€").text() == "€"
    assert _reader(b"\xff").binary() == b"\xff"
    reader = _reader([["a"], ["b"]])
    assert reader.items(lambda: reader.items(reader.text, 1), 2) == [["a"], ["b"]]
    reader.finish()


@pytest.mark.parametrize(
    ("take", "others"),
    [
        (MessagePackReader.unsigned, [-1, 1.0, True, None, "1", b"1", [1], {}, messagepack.ExtType(1, b"1")]),
        (MessagePackReader.text, [1, None, b"a", ["a"], {}, messagepack.ExtType(1, b"a"), messagepack.Timestamp(1)]),
        (MessagePackReader.binary, [1, None, "a", [1], {}, messagepack.ExtType(1, b"a")]),
        (lambda reader: reader.items(reader.text, 9), [1, None, "a", b"a", {}, messagepack.ExtType(1, b"a")]),
        (lambda reader: reader.members({}), [1, None, "a", b"a", [], messagepack.ExtType(1, b"a")]),
    ],
    ids=["number", "text", "bytes", "list", "map"],
)
def test_other_types_are_refused(take: Callable[[MessagePackReader], object], others: list[Any]) -> None:
    for other in others:
        reader = _reader(other)
        _refused(lambda reader=reader: take(reader), "expected")  # type: ignore[misc]


def test_text_that_is_not_utf8_is_refused() -> None:
    _refused(MessagePackReader(b"\xa1\xff").text, "UTF-8")


def test_bytes_are_read_in_both_spellings_up_to_a_bound() -> None:
    assert _reader([0, 255]).octets(2) == _reader(b"\x00\xff").octets(2) == b"\x00\xff"
    _refused(lambda: _reader([0, 0, 0]).octets(2), "at most 2")
    _refused(lambda: _reader(b"abc").octets(2), "at most 2")
    _refused(lambda: _reader([256]).octets(2), "above 255")
    _refused(lambda: _reader("ab").octets(2), "a list is expected")


def test_map_has_exactly_the_known_members() -> None:
    def take(value: Any) -> Any:
        reader = MessagePackReader(value if isinstance(value, bytes) else packed(value))
        return reader.members({"a": reader.unsigned, "b": reader.text}, optional=frozenset({"b"}))

    assert take({"b": "x", "a": 1}) == {"a": 1, "b": "x"}
    assert take({"a": 1}) == {"a": 1}
    _refused(lambda: take({"b": "x"}), "lacks a")
    _refused(lambda: take({"a": 1, "c": 1}), "not known")
    _refused(lambda: take({b"a": 1}), "a text is expected")
    _refused(lambda: take(b"\x82\xa1a\x01\xa1a\x02"), "twice")


@pytest.mark.parametrize(
    "value",
    [
        {"data": 1, "kind": "k"},
        {"kind": "k"},
        {"kind": "k", "data": 1, "more": 1},
        {"kind": "k", "more": 1},
        {"sort": "k", "data": 1},
    ],
)
def test_other_forms_of_a_tagged_value_are_refused(value: Any) -> None:
    assert _reader({"kind": "k", "data": 1}).tagged(lambda kind: kind) == "k"
    reader = _reader(value)
    _refused(lambda: reader.tagged(lambda kind: kind), "kind and data")


def test_what_nothing_took_is_refused() -> None:
    reader = MessagePackReader(b"\x01\x02")
    assert reader.unsigned() == 1
    _refused(reader.finish, "followed")


@pytest.mark.parametrize("data", ["", "cd01", "d905", "a1", "c402ff", "dc00", "de", "c1"])
def test_cut_values_are_refused(data: str) -> None:
    takes: list[Callable[[MessagePackReader], object]] = [
        MessagePackReader.unsigned,
        MessagePackReader.text,
        MessagePackReader.binary,
        lambda reader: reader.items(reader.unsigned, 9),
        lambda reader: reader.members({}),
    ]
    for take in takes:
        reader = MessagePackReader(bytes.fromhex(data))
        _refused(lambda take=take, reader=reader: take(reader))  # type: ignore[misc]


@pytest.mark.parametrize(
    "data",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdd\x00\x00\x02\x00" * 1000,
        b"\xdf\x00\xff\xff\xff\xa1a" * 1000,
    ],
)
def test_hostile_headers_do_not_allocate(data: bytes) -> None:
    takes: list[Callable[[MessagePackReader], object]] = [
        MessagePackReader.text,
        lambda reader: reader.octets(16 * 1024),
        lambda reader: reader.items(lambda: reader.items(reader.text, 512), 512),
        lambda reader: reader.members({"a": reader.unsigned}),
    ]
    for take in takes:
        reader = MessagePackReader(data)
        tracemalloc.start()
        try:
            _refused(lambda take=take, reader=reader: take(reader))  # type: ignore[misc]
            assert tracemalloc.get_traced_memory()[1] < 64 * 1024
        finally:
            tracemalloc.stop()
