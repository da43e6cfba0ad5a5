"""A manifest has one form, and says which file is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest

from libs.weights import Manifest, ManifestMalformed, WeightsDiffer, WeightsFile, read_manifest, require_same

ONE = WeightsFile("a", b"\x01" * 32, 1)
TWO = WeightsFile("b/c", b"\x02" * 32, 2)
BOTH = Manifest((ONE, TWO))


def test_what_is_written_is_read() -> None:
    assert read_manifest(BOTH.document) == BOTH
    assert read_manifest(BOTH.document + b"\n") == BOTH


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{}",
        b'{"files":[]}',
        b'{"files":{}}',
        b'{"files":["a"]}',
        BOTH.document.replace(b":", b": "),
        BOTH.document.replace(b'"size":1', b'"size":-1'),
        BOTH.document.replace(b'"size":1', b'"size":"1"'),
        BOTH.document.replace(b'"size":1', b'"more":0,"size":1'),
        BOTH.document.replace(b"01", b"0", 1),
        BOTH.document.replace(b"01" * 32, b"01" * 31),
        BOTH.document.replace(b"}]}", b'}],"more":0}'),
        Manifest((TWO, ONE)).document,
        Manifest((ONE, ONE)).document,
        *[Manifest((replace(ONE, name=name),)).document for name in ("", "/a", "../a", "a/../b", "./a", "a//b", "a\0")],
        b" " * (5 << 20),
    ],
    ids=lambda document: document[:40].decode(),
)
def test_anything_else_is_refused(document: bytes) -> None:
    with pytest.raises(ManifestMalformed):
        read_manifest(document)


@pytest.mark.parametrize(
    ("found", "named"),
    [
        ((ONE,), "b/c is missing"),
        ((ONE, TWO, WeightsFile("d", b"\x03" * 32, 0)), "d is not listed"),
        ((replace(ONE, size=7), TWO), "a has 7 bytes and not 1"),
        ((replace(ONE, sha256=b"\x05" * 32), TWO), f"a has SHA-256 {'05' * 32} and not {'01' * 32}"),
    ],
)
def test_what_differs_is_named(found: tuple[WeightsFile, ...], named: str) -> None:
    require_same(BOTH, BOTH)
    with pytest.raises(WeightsDiffer) as refused:
        require_same(BOTH, Manifest(found))
    assert str(refused.value) == f"not the weights of the manifest: {named}"


def test_of_many_files_a_few_are_named() -> None:
    many = Manifest(tuple(WeightsFile(f"{number:02}", b"\x01" * 32, 1) for number in range(20)))
    with pytest.raises(WeightsDiffer, match=r"; 04 is not listed and 15 more$"):
        require_same(Manifest(()), many)
