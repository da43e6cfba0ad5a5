from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest

from libs.tee.ratls.scale import ScaleMalformed, ScaleReader
from services.devtee.attestation import compact


@pytest.mark.parametrize(
    ("encoded", "value"),
    [
        # The examples of the SCALE specification, and both ends of every mode.
        ("00", 0),
        ("04", 1),
        ("a8", 42),
        ("fc", 63),
        ("0101", 64),
        ("1501", 69),
        ("fdff", 2**14 - 1),
        ("02000100", 2**14),
        ("feff0300", 65535),
        ("feffffff", 2**30 - 1),
        ("0300000040", 2**30),
        ("0b00407a10f35a", 100_000_000_000_000),
        ("13" + "ff" * 8, 2**64 - 1),
        ("ff" * 68, 2**536 - 1),
    ],
)
def test_compact_integers_are_the_published_ones(encoded: str, value: int) -> None:
    reader = ScaleReader(bytes.fromhex(encoded))
    assert reader.compact() == value
    reader.finish()
    if value < 2**30:
        assert compact(value).hex() == encoded


@pytest.mark.parametrize(
    "encoded", ["0100", "fd00", "02000000", "feff0000", "03ffffff3f", "0300000000", "070000004000", "13" + "00" * 8]
)
def test_longer_forms_are_refused(encoded: str) -> None:
    with pytest.raises(ScaleMalformed, match="shortest"):
        ScaleReader(bytes.fromhex(encoded)).compact()


@pytest.mark.parametrize("encoded", ["", "01", "020000", "03000000", "ff" * 67])
def test_cut_compact_integers_are_refused(encoded: str) -> None:
    with pytest.raises(ScaleMalformed, match="too early"):
        ScaleReader(bytes.fromhex(encoded)).compact()


def test_values_are_taken_in_order() -> None:
    reader = ScaleReader(b"\x07" + b"\x01\x02\x00\x00" + b"\x08hi" + b"\x0c\xe2\x82\xac" + b"abc" + b"\x08\x04x\x04y")
    assert reader.unsigned(1) == 7
    assert reader.unsigned(4) == 513
    assert reader.vector() == b"hi"
    assert reader.text() == "€"
    assert reader.fixed(3) == b"abc"
    assert reader.items(reader.text, 2) == ["x", "y"]
    reader.finish()


def test_what_nothing_took_is_refused() -> None:
    with pytest.raises(ScaleMalformed, match="followed"):
        ScaleReader(b"\x00").finish()


def test_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(ScaleMalformed, match="UTF-8"):
        ScaleReader(b"\x04\xff").text()


def test_list_over_its_bound_is_refused_before_its_first_item() -> None:
    taken: list[int] = []
    with pytest.raises(ScaleMalformed, match="3 items, at most 2"):
        ScaleReader(b"\x0c\x00\x00\x00").items(lambda: taken.append(1), 2)
    assert not taken


@pytest.mark.parametrize(
    "take",
    [ScaleReader.vector, ScaleReader.text, lambda reader: reader.items(reader.vector, 512)],
    ids=["vector", "text", "list"],
)
@pytest.mark.parametrize("length", ["feffffff", "0300000040", "13" + "ff" * 8, "ff" * 68])
def test_hostile_lengths_do_not_allocate(take: Callable[[ScaleReader], object], length: str) -> None:
    reader = ScaleReader(bytes.fromhex(length) + b"short")
    tracemalloc.start()
    try:
        with pytest.raises(ScaleMalformed):
            take(reader)
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()
